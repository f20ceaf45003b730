"""Fewer bits: what a policy loses in success when its decisions are computed in bf16 or int8, paired on the seeds.

    python -m benchmarks.precision                  run what is missing, then write the result file
    python -m benchmarks.precision --summary        only write the result file from the finished cells
    python -m benchmarks.precision --restore FILE   go on from the cells that a result file holds

A cell is one task with one form of the same trained policy: eager (the checkpoint as it is), compiled-bf16
(`compile=bf16`), onnx-fp32 and onnx-int8 (`flowhand export`); eager and int8 with fewer evaluations too. Every form
decides from the same noise on the same held-out seeds. Finished cells, policies and exports are kept below --cells, so
a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import policies
from benchmarks import cells
from benchmarks.result import write
from conf.verbs.export import ExportConfig
from flowhand.commands import eval as evaluation
from flowhand.commands.export import export, of_checkpoint
from flowhand.deploy.runner import Runner, load
from flowhand.evaluation.statistics import compare_paired

CHOSEN_ON = ("peg-insert-side", "soccer", "stick-pull", "pick-place-wall")  # tasks that shaped int8's rounding
UNSEEN = ("basketball", "bin-picking", "disassemble", "hand-insert")  # tasks that did not
TASKS = (*CHOSEN_ON, *UNSEEN)
EVALUATIONS = 10
HEAD = ["head=flow", f"head.steps={EVALUATIONS}"]
EAGER = "eager"
FORMS = (EAGER, "compiled-bf16", "onnx-fp32", "onnx-int8")
COMPARED = {EVALUATIONS: FORMS, 4: (EAGER, "onnx-int8")}  # by the number of evaluations
TOLERANCE = {"fp32": 0.0, "int8": 1.0}  # of the export: the default; any, because its cost is what is measured here
MARGIN = 0.02  # largest loss in success rate that still counts as not worse


@dataclass(frozen=True)
class Cell:
    """One task with one form of its policy."""

    task: str
    form: str
    evaluations: int = EVALUATIONS

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.task}-{self.form}" + ("" if self.evaluations == EVALUATIONS else f"-{self.evaluations}")


PLAN = [Cell(task, form, n) for task in TASKS for n, forms in COMPARED.items() for form in forms]


def run_cell(cell: Cell, folder: Path, episodes: int, steps: int | None) -> dict[str, Any] | None:
    """Evaluates one form; None while another process trains the policy."""
    overrides = [f"env.task={cell.task}-v3", *HEAD, *([f"train.steps={steps}"] if steps else [])]
    config = cells.configure(overrides, episodes)
    policy = cells.trained(folder, cell.task, config)
    if policy is None:
        return None
    decides, error = formed(policy, cell, folder)
    started = time.perf_counter()
    records = evaluation.evaluate(decides, config.env, config.eval, config.execution)
    seconds = round(time.perf_counter() - started, 1)
    return {**vars(cell), **cells.outcomes(records), "max_error": error, "evaluate_seconds": seconds}


def formed(policy: policies.Policy, cell: Cell, folder: Path) -> tuple[policies.Policy | Runner, float | None]:
    """The policy in this form; and for an export its largest error, as a share of the action's spread."""
    head = {} if cell.evaluations == EVALUATIONS else {"steps": cell.evaluations}
    if cell.form == EAGER:
        return policy.with_head(**head), None
    how, precision = cell.form.split("-")
    if how == "compiled":
        policy.compile(precision)
        return policy, None
    options = ExportConfig(precision=precision, tolerance=TOLERANCE[precision])
    manifest = export(folder / f"{cell.name}-export", *of_checkpoint(folder / cell.task, head), options)
    return load(folder / f"{cell.name}-export"), manifest.parity.max_error


def summarize(folder: Path) -> dict[str, Any]:
    """Every form with interval, and against the checkpoint as it is over the tasks that both have finished."""
    finished = cells.finished(folder, PLAN)
    rows = []
    groups = {"all": TASKS, "unseen": UNSEEN}.items()
    compared = [(n, form) for n, forms in COMPARED.items() for form in forms]
    for (which, tasks), (evaluations, form) in itertools.product(groups, compared):
        pairs = [(Cell(t, form, evaluations), Cell(t, EAGER, evaluations)) for t in tasks]
        pairs = [pair for pair in pairs if finished.keys() >= set(pair)]
        if not pairs:
            continue
        mine, its = ([cells.solved(finished[cell]) for cell in each] for each in zip(*pairs, strict=True))
        errors = [finished[cell]["max_error"] for cell, _ in pairs]
        rows.append(
            {
                "which": which,
                "form": form,
                "evaluations": evaluations,
                "tasks": [cell.task for cell, _ in pairs],
                "successes": sum(map(sum, mine)),
                "n": sum(map(len, mine)),
                "max_error": None if None in errors else max(errors),
                "against_eager": vars(compare_paired(mine, its, MARGIN)),
            }
        )
    return {"head": HEAD, "margin": MARGIN, "rows": rows, "cells": list(finished.values())}


def table(result: dict[str, Any]) -> str:
    """One line per form."""
    lines = []
    for row in result["rows"]:
        versus = row["against_eager"]
        difference = f"{100 * versus['difference']:+.2f} points (bound {100 * versus['lower_bound']:+.2f})"
        error = "" if row["max_error"] is None else f", largest error {row['max_error']:.1e}"
        who = f"{row['which']:6s} {row['form']:14s} {row['evaluations']:2d} evaluations"
        lines.append(f"{who} {row['successes']}/{row['n']}, {difference}{error}")
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS), help="only these tasks")
    parser.add_argument("--forms", nargs="*", choices=FORMS, default=list(FORMS), help="only these forms")
    parser.add_argument("--episodes", type=int, default=200, help="held-out episodes of every cell")
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps instead of the recipe's, for a trial")
    cells.options(parser, "precision")
    a = parser.parse_args()
    if a.restore:
        cells.restore(a.restore, a.cells, Cell)
    if not a.summary:
        chosen = [cell for cell in PLAN if cell.task in a.tasks and cell.form in a.forms]
        cells.sweep(a.cells, chosen, partial(run_cell, folder=a.cells, episodes=a.episodes, steps=a.steps))
    result = summarize(a.cells)
    print(table(result))
    print(write("precision", result, a.out, device="cpu", threads=1))


if __name__ == "__main__":
    main()
