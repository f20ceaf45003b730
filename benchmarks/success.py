"""Success on all 50 Meta-World tasks: one default recipe, flow beside regression, the expert on the same seeds.

    python -m benchmarks.success                 run what is missing, then write the result file
    python -m benchmarks.success --summary       only write the result file from the finished cells

A cell is one task with one head: collect, train, evaluate. Each finished cell is a file below --cells and is never run
again, so a killed sweep goes on where it was. Start the command once per core that you want to give it: the processes
share the cells out among themselves. Every process computes with one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cells
from benchmarks.result import processor, write
from conf.cli import compose
from envs.metaworld import TASKS
from flowhand.commands import eval as evaluation
from flowhand.evaluation.statistics import compare_paired, wilson

HEADS = ("flow", "regression")
# The recipe was chosen on these tasks (with seeds from 5,000,000 on); the others had no influence on it.
CHOSEN_ON = ("lever-pull-v3", "soccer-v3", "stick-pull-v3")


def run_cell(task: str, head: str, episodes: int, steps: int | None) -> dict[str, Any]:
    """Collects, trains and evaluates; the outcomes of the episodes in the order of their seeds."""
    overrides = [f"env.task={task}", f"head={head}", *([f"train.steps={steps}"] if steps else [])]
    config = cells.configure(overrides, episodes)
    trainer, about = cells.learn(config)
    started = time.perf_counter()
    records = evaluation.evaluate(trainer.ema.module, config.env, config.eval, config.execution)
    evaluated = round(time.perf_counter() - started, 1)
    evaluations = trainer.policy.head.evaluations
    told = {"evaluations_per_decision": evaluations, "evaluate_seconds": evaluated}
    return {"task": task, "head": head, **cells.outcomes(records), **about, **told}


def run_expert(task: str, episodes: int) -> dict[str, Any]:
    """The scripted expert on the same seeds."""
    config = cells.configure([f"env.task={task}"], episodes)
    return {"task": task, "head": "expert", **cells.outcomes(evaluation.evaluate_expert(config.env, config.eval))}


def sweep(folder: Path, tasks: list[str], episodes: int, steps: int | None) -> None:
    """Runs every cell that is not finished and that no other process is at."""
    for task in tasks:
        for head in ("expert", *HEADS):
            with cells.claim(folder / f"{task}-{head}.json") as save:
                if save is None:
                    continue
                cell = run_expert(task, episodes) if head == "expert" else run_cell(task, head, episodes, steps)
                save(cell)
                print(f"{task:30s} {head:11s} {cell['outcomes'].count('1')}/{cell['n']}", flush=True)


def summarize(folder: Path) -> dict[str, Any]:
    """The result file: every finished cell, the means, and the paired comparison of the heads."""
    finished = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    by_task: dict[str, dict[str, Any]] = {}
    for cell in finished:
        low, high = wilson(cell["outcomes"].count("1"), cell["n"])
        cell |= {"successes": cell["outcomes"].count("1"), "wilson_low": low, "wilson_high": high}
        by_task.setdefault(cell["task"], {})[cell["head"]] = cell
    complete = [task for task, heads in by_task.items() if all(h in heads for h in ("expert", *HEADS))]
    held_out = [task for task in complete if task not in CHOSEN_ON]
    return {
        "recipe": asdict(compose([])),
        "recipe_chosen_on": CHOSEN_ON,
        "all_tasks": totals(by_task, complete),
        "tasks_not_used_to_choose_the_recipe": totals(by_task, held_out),
        "cells": finished,
    }


def totals(by_task: dict[str, dict[str, Any]], tasks: list[str]) -> dict[str, Any]:
    """Means over the tasks, and flow against regression on the same seeds."""
    if not tasks:
        return {"tasks": 0}
    chosen = {head: [by_task[task][head] for task in tasks] for head in ("expert", *HEADS)}
    rates = {head: float(np.mean([c["successes"] / c["n"] for c in of])) for head, of in chosen.items()}
    seconds = {head: float(np.mean([c["train_seconds"] for c in chosen[head]])) for head in HEADS}
    flow, regression = ([[bit == "1" for bit in by_task[t][h]["outcomes"]] for t in tasks] for h in HEADS)
    return {
        "tasks": len(tasks),
        "mean_success": rates,
        "of_expert": {head: rates[head] / rates["expert"] for head in HEADS},
        "mean_train_seconds": seconds,
        "flow_against_regression": asdict(compare_paired(flow, regression)),
    }


def page(result: dict[str, Any], source: Path) -> str:
    """The table of every task, as docs/metaworld.md."""
    by_task: dict[str, dict[str, dict[str, Any]]] = {}
    for cell in result["cells"]:
        by_task.setdefault(cell["task"], {})[cell["head"]] = cell
    where = processor(json.loads(source.read_text())["hardware"])
    lines = [
        "# Success on every Meta-World task",
        "",
        "Successes of held-out episodes with 95 % Wilson intervals in percent. `python -m benchmarks.success` wrote",
        f"this page from `benchmarks/results/{source.name}` ({where}). Goal visible; success at any time",
        f"within 500 steps. The recipe was chosen on {', '.join(CHOSEN_ON)}, with other seeds.",
        "",
        "| task | expert | flow | regression |",
        "|---|---|---|---|",
    ]
    for task, heads in by_task.items():
        told = [
            f"{c['successes']}/{c['n']} ({100 * c['wilson_low']:.0f} to {100 * c['wilson_high']:.0f})"
            for c in (heads[head] for head in ("expert", *HEADS) if head in heads)
        ]
        lines.append(f"| {task} | {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=sorted(TASKS), help="tasks to run (default: all 50)")
    parser.add_argument("--episodes", type=int, default=100, help="held-out episodes per cell")
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps (default: the recipe's)")
    parser.add_argument("--cells", type=Path, default=Path("outputs/success"), help="folder of the finished cells")
    parser.add_argument("--summary", action="store_true", help="run nothing, only write the result file")
    parser.add_argument("--out", type=Path, default=None, help="result file (default: in benchmarks/results)")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.tasks) - set(TASKS)):
        parser.error(f"unknown tasks {unknown}; choices: {', '.join(sorted(TASKS))}")
    if not arguments.summary:
        sweep(arguments.cells, arguments.tasks, arguments.episodes, arguments.steps)
    result = summarize(arguments.cells)
    print(json.dumps(result["all_tasks"], indent=1))
    written = write("success", result, arguments.out, device="cpu", threads=1)
    Path("docs/metaworld.md").write_text(page(result, written))
    print(written)


if __name__ == "__main__":
    main()
