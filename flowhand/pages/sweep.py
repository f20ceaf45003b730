"""The page of a sweep: its cells in groups that differ in more than the seed, as a table and as a heat map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

from flowhand.contracts.durable import write_whole
from flowhand.evaluation.statistics import PairedComparison

from .page import page, paragraph, table
from .svg import h

HEAD = ("seeds", "solved", "mean rate", "sd of seeds", "difference", "pairs", "p (McNemar)", "p (Holm)", "not worse")


@dataclass(frozen=True)
class Group:
    """The cells of a sweep that have the same settings but the seed."""

    settings: dict[str, str]
    planned: int  # cells
    rates: dict[str, float]  # success rate by seed, of the cells that are done
    successes: int
    episodes: int
    against: PairedComparison | None = None  # beside the reference, on the seeds that both have
    corrected_p: float | None = None

    @property
    def name(self) -> str:
        """Its settings in words."""
        return ", ".join(f"{name}={value}" for name, value in self.settings.items()) or "all"

    @property
    def mean(self) -> float | None:
        """Of the rates over the seeds; None where no cell is done."""
        return sum(self.rates.values()) / len(self.rates) if self.rates else None


def rows(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    """The table as texts: the settings, and what stands under `HEAD`."""
    return [(*group.settings.values(), *_cells(group)) for group in groups]


def _cells(group: Group) -> tuple[str, ...]:
    seeds = f"{len(group.rates)}/{group.planned}"
    if group.mean is None:
        return (seeds, *[""] * (len(HEAD) - 1))
    n, mean = len(group.rates), group.mean
    spread = f"{(sum((rate - mean) ** 2 for rate in group.rates.values()) / (n - 1)) ** 0.5:.1%}" if n > 1 else ""
    cells = (seeds, f"{group.successes}/{group.episodes}", f"{mean:.1%}", spread)
    if group.against is None or group.corrected_p is None:
        return (*cells, *[""] * 5)
    c = group.against
    worse = f"{'yes' if c.non_inferior else 'not shown'} (margin {c.margin:.1%})"
    return (*cells, f"{c.difference:+.1%}", str(c.n), f"{c.mcnemar_p:.3g}", f"{group.corrected_p:.3g}", worse)


def heat_map(groups: Sequence[Group]) -> Element:
    """Mean rates by the first setting, downwards, and by all others; a cell without a result says so."""
    names = list(groups[0].settings)
    down, across = names[:1], names[1:]

    def place(group: Group, which: Sequence[str]) -> str:
        return ", ".join(f"{name}={group.settings[name]}" for name in which)

    values: Mapping[tuple[str, str], Group] = {(place(g, down), place(g, across)): g for g in groups}
    columns = list(dict.fromkeys(column for _, column in values))
    lines = [h("thead", h("tr", h("th", ""), *(h("th", column or "mean rate") for column in columns)))]
    lines += [
        h("tr", h("th", row or "all"), *(_tile(values.get((row, column))) for column in columns))
        for row in dict.fromkeys(row for row, _ in values)
    ]
    return h("div", h("table", *lines), class_="scroll")


def _tile(group: Group | None) -> Element:
    """One cell: the darker, the more was solved."""
    if group is None or group.mean is None:
        return h("td", "missing")
    dark = group.mean > 0.55
    colour = f"background:hsl(210,60%,{95 - 60 * group.mean:.0f}%);color:{'white' if dark else 'black'}"
    some = "" if len(group.rates) == group.planned else f" ({len(group.rates)} of {group.planned})"
    return h("td", f"{group.mean:.0%}{some}", style=colour)


def write_sweep(groups: Sequence[Group], reference: str, missing: Sequence[str], path: Path) -> None:
    """Writes the page, whole or not at all."""
    text = (
        f"Mean rates are over the seeds of the training. Differences are to {reference}, on the same start states and "
        "training seeds: p is of the exact McNemar test of all pairs, once as it is and once corrected for the number "
        "of comparisons (Holm 1979). The test takes the trained policies as given; how much another seed changes is "
        'the standard deviation beside it. "not worse" is a one-sided non-inferiority test with its margin.'
    )
    what = ", ".join(missing) if missing else "none"
    head = (*groups[0].settings, *HEAD)
    body = [
        h("h1", "Sweep"),
        paragraph(text),
        h("section", h("h2", "Success"), table(head, rows(groups))),
        h("section", h("h2", "Heat map"), heat_map(groups)),
        h("section", h("h2", f"Cells without a result: {len(missing)}"), paragraph(what)),
    ]
    write_whole(path, page("Sweep", body).encode("utf-8", "replace"))
