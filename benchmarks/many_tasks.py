"""One policy for many tasks, told which: MT10, MT50, and detour's sides, which words alone tell apart.

    python -m benchmarks.many_tasks                                      run what is missing, then write the result file
    python -m benchmarks.many_tasks --arms mt10-index --told own expert
    python -m benchmarks.many_tasks --summary                            only write the result file

A cell is one task of one policy (arm), told in one way: the task's own text; five wordings that share no verb with the
texts of the training (benchmarks/wordings_mt10.json, written before any training from the names of the tasks, by one
who had seen the texts); the text of the next task in its place; or the expert in place of the policy. All have the same
start states. A policy is trained on one core with one thread before its first cell, with the steps that its arm says,
and what its training took of the CPU is kept. Finished cells and policies are kept below --cells, so a killed run goes
on where it was.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import envs
from benchmarks import cells
from benchmarks.result import write
from flowhand.commands import train
from flowhand.commands.tasks.episodes import evaluate, evaluate_expert
from flowhand.evaluation.statistics import compare_paired, wilson

WORDINGS = Path(__file__).parent / "wordings_mt10.json"
SHORT = ["net.width=256", "train.steps=6000"]
DETOUR = ["env=detour", "env.task=[left,right]", "data.episodes=20", "train.steps=1500"]
ARMS: dict[str, list[str]] = {
    "mt10-index": ["experiment=mt10"],
    "mt10-sentence": ["experiment=mt10", "words=sentence"],
    "mt10-unspoken": ["experiment=mt10", "words=none"],
    "mt10-each": ["experiment=mt10", "data.statistics=each"],
    "detour-index": [*DETOUR, "words=index"],
    "detour-sentence": [*DETOUR, "words=sentence"],
    "mt50-index": ["experiment=mt50"],
    "mt10-short-index": ["experiment=mt10", *SHORT],
    "mt10-short-sentence": ["experiment=mt10", "words=sentence", *SHORT],
}
REPORTED = tuple(ARMS)[:7]
TOLD = ("own", "held_out", "exchanged", "expert")
MARGIN = 0.02  # of "no worse"


@dataclass(frozen=True)
class Cell:
    """One task of one policy."""

    arm: str
    told: str  # one of TOLD
    task: str
    seed: int  # of the training
    first_seed: int  # of the held-out episodes
    episodes: int

    @property
    def name(self) -> str:
        """Of its file; the expert is the same beside every policy of a set of tasks."""
        arm = self.arm.partition("-")[0] if self.told == "expert" else self.arm
        return "-".join(map(str, (arm, self.told, self.task, self.seed, self.first_seed, self.episodes)))


def possible(arm: str, told: str) -> bool:
    """Whether there is such a cell: other words than a task's own need a policy that takes them."""
    if told == "held_out":
        return arm.startswith("mt10") and arm.endswith("sentence")
    return told != "exchanged" or "words=none" not in ARMS[arm]


def run(folder: Path, cell: Cell) -> dict[str, Any] | None:
    """What a cell keeps; None while another process trains its policy."""
    extra = ["wandb.mode=disabled", f"seed={cell.seed}", f"eval.seed={cell.first_seed}"]
    config = cells.configure([*ARMS[cell.arm], *extra], cell.episodes)
    worlds = {envs.name_of(world): world for world in config.env.each()}
    world = worlds[cell.task]
    if cell.told == "expert":
        return {**asdict(cell), "name": cell.name, **cells.outcomes(evaluate_expert(world, config.eval))}
    name = f"{cell.arm}-{cell.seed}"
    policy = cells.trained(folder / "policies", name, config, lambda: train.demonstrations(config)[0])
    if policy is None:
        return None
    settings = config.eval
    if cell.told == "held_out":
        settings = replace(settings, wordings=str(WORDINGS))
    elif cell.told == "exchanged":
        settings = replace(settings, wordings=str(exchanged(folder, cell.arm, worlds)))
    records = evaluate(policy, world, settings, config.execution)
    about = json.loads((folder / "policies" / f"{name}.trained.json").read_text())
    return {**asdict(cell), **about, "name": cell.name, **cells.outcomes(records)}


def exchanged(folder: Path, arm: str, worlds: dict[str, envs.EnvConfig]) -> Path:
    """A file of wordings in which every task has the text of the next one."""
    told = {}
    for config in worlds.values():
        world = envs.make(config)
        told[world.task] = world.task_text
        world.close()
    texts = list(told.values())
    path = folder / f"{arm}-exchanged.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({name: [text] for name, text in zip(told, texts[1:] + texts[:1], strict=True)}))
    return path


def plan(arguments: argparse.Namespace) -> list[Cell]:
    """All cells that were asked for: arm by arm, and of each what it is told, task by task."""
    found = []
    for arm in arguments.arms:
        episodes = arguments.episodes or (20 if arm.startswith("mt50") else 100)
        tasks = [envs.name_of(world) for world in cells.configure(ARMS[arm], episodes).env.each()]
        for told in arguments.told:
            if possible(arm, told):
                found += [Cell(arm, told, task, arguments.seed, arguments.first_seed, episodes) for task in tasks]
    return list({cell.name: cell for cell in found}.values())


def summarize(folder: Path, asked: list[Cell]) -> dict[str, Any]:
    """Every finished cell; and of every arm that is complete, each way of telling it beside its own texts."""
    finished = cells.finished(folder, asked)
    groups: dict[tuple[str, str], dict[str, list[bool]]] = {}
    for cell, told in finished.items():
        arm = cell.arm.partition("-")[0] if cell.told == "expert" else cell.arm
        groups.setdefault((arm, cell.told), {})[cell.task] = cells.solved(told)
    rows = []
    for (arm, told), tasks in groups.items():
        if told == "expert":
            continue
        row: dict[str, Any] = {"arm": arm, "told": told, **counted(tasks)}
        expert = groups.get((arm.partition("-")[0], "expert"), {})
        if expert.keys() == tasks.keys():
            row["expert"] = counted(expert)["mean"]
        for other in ((arm, "own"), (arm.replace("sentence", "index"), told if told == "exchanged" else "own")):
            if other != (arm, told) and groups.get(other, {}).keys() == tasks.keys():
                pairs = [list(side.values()) for side in (tasks, {task: groups[other][task] for task in tasks})]
                row[f"beside {' '.join(other)}"] = asdict(compare_paired(*pairs, margin=MARGIN))
        rows.append(row)
    return {"rows": rows, "cells": list(finished.values())}


def counted(tasks: dict[str, list[bool]]) -> dict[str, Any]:
    """The mean over tasks and the rate of each, with the Wilson interval of all episodes together."""
    every = [bit for bits in tasks.values() for bit in bits]
    rates = {task: float(np.mean(bits)) for task, bits in tasks.items()}
    return {
        "tasks": len(tasks),
        "n": len(every),
        "mean": float(np.mean(list(rates.values()))),
        "wilson": list(wilson(sum(every), len(every))),
        "rates": rates,
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=REPORTED)
    parser.add_argument("--told", nargs="+", choices=TOLD, default=TOLD)
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--episodes", type=int, default=0, help="of a cell; 0: 100 a task, 20 of MT50")
    parser.add_argument("--first-seed", type=int, default=1_000_000, help="of the held-out episodes")
    cells.options(parser, "many_tasks")
    arguments = parser.parse_args()
    if arguments.restore:
        cells.restore(arguments.restore, arguments.cells, Cell)
    asked = plan(arguments)
    if not arguments.summary:
        cells.sweep(arguments.cells, asked, partial(run, arguments.cells))
    result = summarize(arguments.cells, asked)
    for row in result["rows"]:
        beside = f", expert {row['expert']:.3f}" if "expert" in row else ""
        print(f"{row['arm']:20s} told {row['told']:10s} {row['mean']:.3f} over {row['tasks']} tasks{beside}")
    print(write("many_tasks", result, arguments.out, device="cpu", threads=1))


if __name__ == "__main__":
    main()
