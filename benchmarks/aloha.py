"""ALOHA from states: both tasks, 50 scripted demonstrations, named recipes, and the expert on the same seeds.

    python -m benchmarks.aloha                  run what is missing, then write the result file
    python -m benchmarks.aloha --summary        only write the result file from the finished cells
    python -m benchmarks.aloha --tasks insertion --arms default --first-seed 5000000 --episodes 100

A cell is one task with one recipe (arm): collect, train on one core, evaluate on held-out episodes. Finished cells and
policies are kept below --cells, so a killed run goes on where it was, and processes started beside it share the cells
out among themselves. Recipes are chosen with --first-seed 5000000, start states that are reported nowhere; the arms
beside "default" are candidates. The result also has what a control step costs, with and without a camera.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import envs
from benchmarks import cells
from benchmarks.result import write
from envs.aloha import TASKS
from flowhand.commands import eval as evaluation
from flowhand.commands.collect import attempts, collect
from flowhand.evaluation.records import EpisodeRecord

EXPERT = "expert"
ARMS: dict[str, list[str]] = {
    EXPERT: [],
    "default": ["experiment=aloha"],
    "steps-6000": ["experiment=aloha", "train.steps=6000"],
    "history-1": ["experiment=aloha", "chunk.history=1"],
    "chunk-32": ["experiment=aloha", "chunk.prediction_horizon=32"],
    "execute-8": ["experiment=aloha", "chunk.execution_horizon=8"],
    "noise-0.005": ["experiment=aloha", "data.noise=0.005"],
}


@dataclass(frozen=True)
class Cell:
    """One recipe on one task, or its expert."""

    task: str
    arm: str
    seed: int  # of the training
    first_seed: int  # of the held-out episodes
    episodes: int

    @property
    def name(self) -> str:
        """Of its file."""
        return "-".join(map(str, (self.arm, self.task, self.seed, self.first_seed, self.episodes)))

    @property
    def overrides(self) -> list[str]:
        """Its configuration."""
        world = ["env=aloha", f"env.task={self.task}", f"eval.seed={self.first_seed}"]
        return [*world, f"seed={self.seed}", *ARMS[self.arm]]


def run(folder: Path, cell: Cell) -> dict[str, Any] | None:
    """What a cell keeps; None while another process trains its policy."""
    config = cells.configure(cell.overrides, cell.episodes)
    if cell.arm == EXPERT:
        return {**asdict(cell), **kept(evaluation.evaluate_expert(config.env, config.eval))}
    name = f"{cell.arm}-{cell.task}-{cell.seed}"
    policy = cells.trained(folder / "policies", name, config)
    if policy is None:
        return None
    about = json.loads((folder / "policies" / f"{name}.trained.json").read_text())
    store = collect(config.env, config.data, progress=False)
    collected = {"collected": len(store), "attempts": attempts(store), "noise": config.data.noise}
    records = evaluation.evaluate(policy, config.env, config.eval, config.execution)
    return {**asdict(cell), **about, "name": cell.name, **collected, **kept(records)}


def kept(records: list[EpisodeRecord]) -> dict[str, Any]:
    """The outcomes, the control steps of the successes, and what the failures are called."""
    steps = [record.steps for record in records if record.success]
    failures = [record.failure for record in records if not record.success]
    named = {name: failures.count(name) for name in sorted(set(failures))}
    return {**cells.outcomes(records), "median_steps": float(np.median(steps)) if steps else None, "failures": named}


def cost(task: str, steps: int = 100, **fields: Any) -> dict[str, float]:
    """CPU time of a control step of the world and of its expert, ms, after a first episode of a few steps."""
    spent = {"world": 0.0, "expert": 0.0}
    with closing(envs.make(envs.AlohaConfig(task=task, **fields))) as env:
        for last in (5, steps):
            _, info = env.reset(seed=5_000_000)
            spent = dict.fromkeys(spent, 0.0)
            for _ in range(last):
                assert env.expert is not None
                started = time.process_time()
                action = env.expert(info["expert_observation"])
                asked = time.process_time()
                *_, info = env.step(action)
                spent["expert"] += asked - started
                spent["world"] += time.process_time() - asked
    return {name: round(1000 * seconds / steps, 3) for name, seconds in spent.items()}


def costs() -> dict[str, dict[str, float]]:
    """What a control step costs, by what is observed."""
    seen = {"states": {}, "one 96 x 96 camera": {"observes": "pixels", "cameras": ["top"], "pixels": 96}}
    return {f"{task}, {name}": cost(task, **fields) for task in TASKS for name, fields in seen.items()}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[EXPERT, "default"])
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--episodes", type=int, default=200, help="held-out episodes of a cell")
    parser.add_argument("--first-seed", type=int, default=1_000_000, help="of the held-out episodes")
    cells.options(parser, "aloha")
    arguments = parser.parse_args()
    if arguments.restore:
        cells.restore(arguments.restore, arguments.cells, Cell)
    place = (arguments.seed, arguments.first_seed, arguments.episodes)
    asked = [Cell(task, arm, *place) for arm in arguments.arms for task in arguments.tasks]
    if not arguments.summary:
        cells.sweep(arguments.cells, asked, partial(run, arguments.cells))
    finished = cells.finished(arguments.cells, asked)
    for cell, told in finished.items():
        low, high = told["wilson"]
        print(f"{cell.task:14s} {cell.arm:12s} {told['successes']}/{told['n']} ({100 * low:.1f} to {100 * high:.1f})")
    result = {"ms_per_step": costs(), "recipes": ARMS, "cells": list(finished.values())}
    print(write("aloha", result, arguments.out, device="cpu", threads=1))


if __name__ == "__main__":
    main()
