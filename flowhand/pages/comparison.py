"""The page of a comparison: policies on the same start states, with paired tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flowhand.contracts.durable import write_whole
from flowhand.evaluation.statistics import Summary

from ..evaluation.statistics import PairedComparison
from .page import page, paragraph, table
from .svg import h


@dataclass(frozen=True)
class Compared:
    """One policy beside the first one."""

    name: str
    tasks: list[str]
    summary: Summary
    against_first: PairedComparison | None  # None: it is the first one


HEAD = ("policy", "tasks", "solved", "rate", "95 % Wilson", "difference", "gained", "lost", "p (McNemar)", "not worse")


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """The lines with their cells in columns, for a terminal."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def rows(policies: Sequence[Compared]) -> list[tuple[str, ...]]:
    """The table as texts, a row for each policy."""
    found = []
    for each in policies:
        s, c = each.summary, each.against_first
        cells = [each.name, str(len(each.tasks)), f"{s.successes}/{s.n}", f"{s.rate:.1%}"]
        cells.append(f"{s.wilson_low:.1%} to {s.wilson_high:.1%}")
        if c is None:
            cells += [""] * 5
        else:
            cells += [f"{c.difference:+.1%}", str(c.a_only), str(c.b_only), f"{c.mcnemar_p:.3g}"]
            cells.append(f"{'yes' if c.non_inferior else 'not shown'} (margin {c.margin:.1%})")
        found.append(tuple(cells))
    return found


def write_comparison(policies: Sequence[Compared], path: Path) -> None:
    """Writes the page, whole or not at all."""
    first = policies[0].name
    text = (
        f"Every policy ran on the same start states. Differences are to {first}: gained are episodes that only the "
        'policy solved, lost are those that only the first one solved. p is of the exact McNemar test; "not worse" '
        "is a one-sided non-inferiority test with its margin."
    )
    body = [h("h1", "Comparison"), paragraph(text), h("section", h("h2", "Success"), table(HEAD, rows(policies)))]
    write_whole(path, page("Comparison", body).encode("utf-8", "replace"))
