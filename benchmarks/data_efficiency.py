"""Success from few demonstrations: named recipes on the same demonstrations, start states and training seeds.

    python -m benchmarks.data_efficiency                        run what is missing, then write the result file
    python -m benchmarks.data_efficiency --summary              only write the result file from the finished cells
    python -m benchmarks.data_efficiency --tasks all --demonstrations 10 --arms default preconditioned --seeds 0

A cell is one task, a number of demonstrations, a recipe (arm) and a training seed: train on one core, then evaluate on
held-out episodes. A training that took more than 120 seconds of the CPU is marked; it is not cut, for then its learning
rate would end high, and what else the machine does would decide how much is learned. The first n demonstrations of a
task are the same for every n. Arms that differ only in the sampler share a trained policy. By default the tasks are
those on which recipes are tuned, with start states that are reported nowhere. Finished cells and policies are kept
below --cells, so a killed sweep goes on where it was; --workers processes share the cells out among themselves.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cells
from benchmarks.result import write
from envs.metaworld import TASKS
from flowhand.commands import eval as evaluation
from flowhand.evaluation.statistics import compare_paired

TUNING = ("hand-insert-v3", "peg-insert-side-v3", "pick-place-v3", "stick-push-v3", "lever-pull-v3")
TUNING_SEED = 5_000_000  # of the first episode: start states for choosing; 1,000,000 is where reported ones begin
MOST_CPU_S = 120.0
BASELINE = "default"
EXPERT = "expert"
PRECONDITIONED = ["head.prediction=preconditioned", "head.time=log_normal"]
# What is trained, by name: the recipe with these overrides.
TRAININGS: dict[str, list[str]] = {
    "default": [],
    "velocity": ["head.prediction=velocity", "head.time=uniform"],
    "preconditioned": PRECONDITIONED,
    "log-mean-0.5": [*PRECONDITIONED, "head.log_mean=-0.5"],
    "log-mean-2": [*PRECONDITIONED, "head.log_mean=-2.0"],
    "no-guard": [*PRECONDITIONED, "head.uniform_share=0.0"],
    "edm": ["head=edm"],
    "edm-log-mean-1.2": ["head=edm", "head.log_mean=-1.2", "head.uniform_share=0.1"],
    "diffusion": ["head=diffusion"],
    "diffusion-preconditioned": ["head=diffusion", *PRECONDITIONED],
    "regression": ["head=regression"],
    "mip": ["head=mip"],
    # Preconditioned, and one thing more.
    "collected-0.05": [*PRECONDITIONED, "data.noise=0.05"],
    "collected-0.2": [*PRECONDITIONED, "data.noise=0.2"],
    "steps-1000": [*PRECONDITIONED, "train.steps=1000"],
    "steps-4000": [*PRECONDITIONED, "train.steps=4000"],
    "ema-0.99": [*PRECONDITIONED, "train.ema_decay=0.99"],
    "ema-0.999": [*PRECONDITIONED, "train.ema_decay=0.999"],
    "decay-0.03": [*PRECONDITIONED, "train.weight_decay=0.03"],
    "decay-0.3": [*PRECONDITIONED, "train.weight_decay=0.3"],
    "history-1": [*PRECONDITIONED, "chunk.history=1"],
    "history-4": [*PRECONDITIONED, "chunk.history=4"],
    "chunk-8": [*PRECONDITIONED, "chunk.prediction_horizon=8"],
    "chunk-32": [*PRECONDITIONED, "chunk.prediction_horizon=32"],
    "width-128": [*PRECONDITIONED, "net.width=128"],
    # What helped, together; 1,500 steps keep within MOST_CPU_S.
    "history-1-chunk-8": [*PRECONDITIONED, "chunk.history=1", "chunk.prediction_horizon=8"],
    "together": [*PRECONDITIONED, "chunk.history=1", "chunk.prediction_horizon=8", "train.steps=1500"],
    # The registered choice (docs/decisions.md, 44).
    "candidate": [*PRECONDITIONED, "chunk.history=1", "train.steps=1500"],
    "together-edm": ["head=edm", "chunk.history=1", "chunk.prediction_horizon=8", "train.steps=1500"],
}
MULTISTEP = {"solver": "multistep", "grid": "tabulated"}
# Arms: what is trained, and the fields of the head that the sampler has otherwise.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in TRAININGS},
    **{f"multistep-{k}": ("preconditioned", {**MULTISTEP, "steps": k}) for k in (2, 4, 6, 8, 10)},
    **{f"euler-{k}": ("preconditioned", {"steps": k}) for k in (1, 2, 10)},
    "velocity-multistep-8": ("velocity", {**MULTISTEP, "steps": 8}),
}


@dataclass(frozen=True)
class Cell:
    """One recipe on one task, or its expert."""

    task: str
    demonstrations: int
    arm: str
    seed: int  # of the training
    first_seed: int  # of the held-out episodes
    episodes: int

    @property
    def name(self) -> str:
        """Of its file."""
        return "-".join(map(str, (self.arm, *self.trained[:2], self.seed, self.first_seed, self.episodes)))

    @property
    def trained(self) -> tuple[str, int, str, int]:
        """What tells its trained policy from others."""
        return self.task, self.demonstrations, "" if self.arm == EXPERT else ARMS[self.arm][0], self.seed

    @property
    def overrides(self) -> list[str]:
        """Its configuration."""
        task = [f"env.task={self.task}", f"eval.seed={self.first_seed}"]
        if self.arm == EXPERT:
            return task
        return [*task, f"data.episodes={self.demonstrations}", f"seed={self.seed}", *TRAININGS[self.trained[2]]]


def run(folder: Path, cell: Cell) -> dict[str, Any] | None:
    """What a cell keeps; None while another process trains its policy."""
    config = cells.configure(cell.overrides, cell.episodes)
    if cell.arm == EXPERT:
        return {**asdict(cell), **cells.outcomes(evaluation.evaluate_expert(config.env, config.eval))}
    name = "-".join(map(str, cell.trained))
    policy = cells.trained(folder / "policies", name, config)
    if policy is None:
        return None
    policy = policy.with_head(**ARMS[cell.arm][1])
    records = evaluation.evaluate(policy, config.env, config.eval, config.execution)
    about = json.loads((folder / "policies" / f"{name}.trained.json").read_text())
    facts = {"evaluations_per_decision": policy.head.evaluations, "too_long": about["train_cpu_seconds"] > MOST_CPU_S}
    return {**asdict(cell), **about, "name": cell.name, **facts, **cells.outcomes(records)}


def plan(arguments: argparse.Namespace) -> list[Cell]:
    """All cells that were asked for: the experts, then task by task, so that a part is a fair comparison."""
    tasks = sorted(TASKS) if arguments.tasks == ["all"] else arguments.tasks
    place = (arguments.first_seed, arguments.episodes)
    experts = [Cell(task, 0, EXPERT, 0, *place) for task in tasks]
    return experts + [
        Cell(task, n, arm, seed, *place)
        for seed in arguments.seeds
        for n in arguments.demonstrations
        for task in tasks
        for arm in arguments.arms
    ]


def summarize(folder: Path, asked: list[Cell]) -> dict[str, Any]:
    """Every finished cell, and the mean of every arm, beside the experts' and paired with the default's episodes."""
    finished = cells.finished(folder, asked)
    experts = {cell.task: told for cell, told in finished.items() if cell.arm == EXPERT}
    pairs: dict[tuple[str, int], list[Cell]] = {}
    for cell in finished:
        if cell.arm != EXPERT:
            pairs.setdefault((cell.arm, cell.demonstrations), []).append(cell)
    rows = []
    for (arm, demonstrations), of in pairs.items():
        rate = float(np.mean([finished[c]["successes"] / finished[c]["n"] for c in of]))
        best = [experts[c.task]["successes"] / experts[c.task]["n"] for c in of if c.task in experts]
        row = {"arm": arm, "demonstrations": demonstrations, "cells": len(of), "mean_success": rate}
        row["of_expert"] = rate / float(np.mean(best)) if len(best) == len(of) else None
        shared = {c: Cell(**{**asdict(c), "arm": BASELINE}) for c in of}
        shared = {c: other for c, other in shared.items() if other in finished}
        if shared and arm != BASELINE:
            mine, theirs = ([cells.solved(finished[c]) for c in side] for side in (shared, shared.values()))
            row["against_default"] = asdict(compare_paired(mine, theirs))
        rows.append(row)
    return {"most_cpu_s": MOST_CPU_S, "rows": rows, "cells": list(finished.values())}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=[*sorted(TASKS), "all"], default=list(TUNING))
    parser.add_argument("--demonstrations", nargs="+", type=int, default=[10])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["default", "preconditioned"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the trainings")
    parser.add_argument("--episodes", type=int, default=200, help="held-out episodes of a cell")
    parser.add_argument("--first-seed", type=int, default=TUNING_SEED, help="of the held-out episodes")
    parser.add_argument("--workers", type=int, default=1, help="processes, one core each")
    cells.options(parser, "data_efficiency")
    arguments = parser.parse_args()
    if arguments.restore:
        cells.restore(arguments.restore, arguments.cells, Cell)
    asked = plan(arguments)
    if not arguments.summary:
        sweep = partial(cells.sweep, arguments.cells, asked, partial(run, arguments.cells))
        with ProcessPoolExecutor(arguments.workers, multiprocessing.get_context("spawn")) as pool:
            for worker in [pool.submit(sweep) for _ in range(arguments.workers)]:
                worker.result()
    result = summarize(arguments.cells, asked)
    for row in result["rows"]:
        print(
            f"{row['arm']:28s} {row['demonstrations']:3d} {row['mean_success']:.3f} of {row['cells']} cells", flush=True
        )
    print(write("data_efficiency", result, arguments.out, device="cpu", threads=1))


if __name__ == "__main__":
    main()
