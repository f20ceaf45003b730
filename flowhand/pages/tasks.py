"""The page of an evaluation of many tasks: a table, and a heat map of who solved what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from flowhand.contracts.durable import write_whole
from flowhand.evaluation.records import EpisodeRecord
from flowhand.evaluation.statistics import Summary, summarize

from .evaluation import _learning_curve
from .page import page, paragraph, table
from .svg import h

BLOCKS = 10  # of episodes, side by side in the heat map
HEAD = ("task", "told", "solved", "rate", "95 % Wilson", "expert")


@dataclass(frozen=True)
class TaskRow:
    """One task."""

    name: str
    texts: list[str]  # that the policy was told; empty: none
    link: str  # to the task's own page
    records: list[EpisodeRecord]  # in the order of the seeds
    expert: list[EpisodeRecord]  # on the same seeds; empty: none was run


def write_tasks_page(
    title: str, command: str, rows: Sequence[TaskRow], history: list[dict[str, Any]], path: Path
) -> None:
    """Writes the page, whole or not at all."""
    summaries = [summarize(row.records) for row in rows]
    mean = sum(s.rate for s in summaries) / len(rows)
    pooled = summarize([record for row in rows for record in row.records])
    big = h("p", h("b", f"{100 * mean:.3g} %"), h("span", f"mean success rate of {len(rows)} tasks"), class_="big")
    told = (
        f"{pooled.successes} of {pooled.n} episodes succeeded, {100 * pooled.wilson_low:.1f} to "
        f"{100 * pooled.wilson_high:.1f} % (95 % Wilson, all tasks together). Every task had the same number of seeds."
    )
    seeds = sorted({record.seed for row in rows for record in row.records})
    where = f"Start states of the seeds {seeds[0]} to {seeds[-1]} of every task."
    head = h("header", h("h1", title), h("p", h("code", command), " ", where, class_="command"), big, paragraph(told))
    lines = [_line(row, summary) for row, summary in zip(rows, summaries, strict=True)]
    body = [
        head,
        h("section", h("h2", "Tasks"), table(HEAD, lines), _links(rows)),
        h("section", h("h2", "Heat map"), *_heat(rows, summaries)),
        h("section", h("h2", "Learning curve"), *_learning_curve(history)),
    ]
    write_whole(path, page(title, body).encode("utf-8", "replace"))


def _line(row: TaskRow, summary: Summary) -> tuple[str, ...]:
    expert = summarize(row.expert) if row.expert else None
    told = "; ".join(row.texts) or "nothing"
    rates = f"{summary.successes}/{summary.n}", f"{summary.rate:.1%}"
    interval = f"{summary.wilson_low:.1%} to {summary.wilson_high:.1%}"
    return (row.name, told, *rates, interval, f"{expert.rate:.1%}" if expert else "not run")


def _links(rows: Sequence[TaskRow]) -> Element:
    links = [part for row in rows for part in (h("a", row.name, href=row.link), " ")]
    return h("p", "Each task's own page: ", *links)


def _heat(rows: Sequence[TaskRow], summaries: Sequence[Summary]) -> Iterator[Element]:
    blocks = min(BLOCKS, min(len(row.records) for row in rows))
    yield paragraph(
        f"The darker, the more episodes were solved: by the policy, by the expert, and by the policy in {blocks} "
        "blocks of seeds in their order."
    )
    names = ("task", "policy", "expert", *(f"{number + 1}" for number in range(blocks)))
    lines = [h("tr", *(h("th", name) for name in names))]
    for row, summary in zip(rows, summaries, strict=True):
        expert = [summarize(row.expert).rate] if row.expert else [None]
        cuts = [len(row.records) * number // blocks for number in range(blocks + 1)]
        parts = [row.records[a:b] for a, b in pairwise(cuts)]
        rates = [summary.rate, *expert, *(sum(r.success for r in part) / len(part) for part in parts)]
        lines.append(h("tr", h("td", row.name), *map(_heated, rates)))
    yield h("div", h("table", h("tbody", *lines)), class_="scroll")


def _heated(rate: float | None) -> Element:
    if rate is None:
        return h("td", "not run")
    colour = f"background: color-mix(in srgb, var(--policy) {70 * rate:.0f}%, transparent)"
    return h("td", f"{100 * rate:.0f}", style=colour)
