"""The results of many tasks as one: a table with intervals, the expert beside, and a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf import sweep
from flowhand.contracts.durable import write_whole
from flowhand.evaluation.records import EpisodeRecord, lines
from flowhand.pages.tasks import TaskRow, write_tasks_page


@dataclass(frozen=True)
class Judged:
    """One task of an evaluation."""

    name: str  # of the task, and of its folder
    texts: Sequence[str]  # that the policy was told; empty: none
    metrics: dict[str, Any]
    records: list[EpisodeRecord]
    expert: list[EpisodeRecord]


KEPT = ("n", "successes", "rate", "wilson_low", "wilson_high", "expert_successes", "expert_rate")


def gathered(name: str, judged: Sequence[Judged]) -> dict[str, Any]:
    """What metrics.json says of each task, and of all: the rate is the mean over the tasks, which have equal n."""
    tasks = [
        {"task": each.name, "texts": list(each.texts), **{key: each.metrics[key] for key in KEPT}} for each in judged
    ]
    return {"task": name, "tasks": tasks}


def write_joint(
    out: Path, judged: Sequence[Judged], metrics: dict[str, Any], policy: str, history: list[dict[str, Any]]
) -> None:
    """Writes episodes.jsonl, report.html and, last, metrics.json of all tasks together."""
    (out / "metrics.json").unlink(missing_ok=True)
    write_whole(out / "episodes.jsonl", lines([record for each in judged for record in each.records]))
    rows = [TaskRow(j.name, list(j.texts), f"tasks/{j.name}/report.html", j.records, j.expert) for j in judged]
    title = f"{metrics['task']}: {policy}{metrics['conditions']}"
    write_tasks_page(title, sweep.command_line(), rows, history, out / "report.html")
    write_whole(out / "metrics.json", (json.dumps(metrics, indent=1) + "\n").encode())
