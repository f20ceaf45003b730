"""Push-T from the public human demonstrations, from states: every head on `experiment=pusht`.

    python -m benchmarks.pusht --data PATH            run what is missing, then write the result file
    python -m benchmarks.pusht --summary              only write the result file from the finished cells
    python -m benchmarks.pusht --data PATH --arms flow unmirrored --seeds 0 --first-seed 5000000 --episodes 200

A cell is one recipe (arm) with one training seed: train on one core with one thread, then evaluate on held-out start
states. A training that took more than 600 seconds of the CPU is marked; it is not cut, for then its learning rate would
end high. Flow comes first and regression second, with three training seeds each, and then the other heads with one.
Start states from 5,000,000 are for choosing, those from 1,000,000 are reported. Finished cells and policies are kept
below --cells, so a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cells
from benchmarks.result import write
from flowhand.commands import eval as evaluation
from flowhand.commands import train
from flowhand.evaluation.statistics import bootstrap_mean

MOST_CPU_S = 600.0
FIRST_SEED = 1_000_000
HEADS = ("diffusion", "edm", "mip", "shortcut", "mean_flow", "consistency", "drift")
# What is trained, by name: experiment=pusht with these overrides.
ARMS: dict[str, list[str]] = {
    "flow": [],
    "regression": ["head=regression"],
    **{head: [f"head={head}"] for head in HEADS},
    # What the recipe was chosen from, on start states of its own.
    "unmirrored": ["data.mirror=false"],
    "unpadded": ["chunk.loss_on_padding=false"],
    "width-256": ["net.width=256", "train.steps=8000"],
    "preconditioned": ["head.prediction=preconditioned", "head.time=log_normal"],
}
REPORTED = ("flow", "regression", *HEADS)
STEPS = 18_000  # of experiment=pusht
# What a step costs, in steps of flow's (benchmarks/results/heads_cpu_2026-11-23.json): so many fewer are taken.
COST = {"consistency": 1.4, "shortcut": 1.4, "mip": 1.5, "mean_flow": 2.3, "drift": 2.6}
SEEDS = {"flow": (0, 1, 2), "regression": (0, 1, 2)}  # of the trainings; 0 for the other heads


@dataclass(frozen=True)
class Cell:
    """One recipe with one training seed."""

    arm: str
    seed: int  # of the training
    first_seed: int  # of the held-out episodes
    episodes: int

    @property
    def name(self) -> str:
        """Of its file."""
        return "-".join(map(str, (self.arm, self.seed, self.first_seed, self.episodes)))

    @property
    def overrides(self) -> list[str]:
        """Its configuration."""
        steps = [f"train.steps={int(STEPS / COST[self.arm])}"] if self.arm in COST else []
        return ["experiment=pusht", *ARMS[self.arm], *steps, f"seed={self.seed}", f"eval.seed={self.first_seed}"]


def run(folder: Path, data: Path, cell: Cell) -> dict[str, Any] | None:
    """What a cell keeps; None while another process trains its policy."""
    config = cells.configure([*cell.overrides, f"data.path={data}"], cell.episodes)
    name = f"{cell.arm}-{cell.seed}"
    policy = cells.trained(folder / "policies", name, config, lambda: train.demonstrations(config)[0])
    if policy is None:
        return None
    records = evaluation.evaluate(policy, config.env, config.eval, config.execution)
    about = json.loads((folder / "policies" / f"{name}.trained.json").read_text())
    facts = {"evaluations_per_decision": policy.head.evaluations, "too_long": about["train_cpu_seconds"] > MOST_CPU_S}
    scores = [round(record.score or 0.0, 6) for record in records]
    return {**asdict(cell), **about, "name": cell.name, **facts, **cells.outcomes(records), "scores": scores}


def plan(arguments: argparse.Namespace) -> list[Cell]:
    """All cells that were asked for, arm by arm."""
    place = (arguments.first_seed, arguments.episodes)
    return [
        Cell(arm, seed, *place)
        for arm in arguments.arms
        for seed in (SEEDS.get(arm, (0,)) if arguments.seeds is None else arguments.seeds)
    ]


def summarize(folder: Path, asked: list[Cell]) -> dict[str, Any]:
    """Every finished cell, and of every arm the means over its training seeds."""
    finished = cells.finished(folder, asked)
    for told in finished.values():
        told["score_mean"] = float(np.mean(told["scores"]))
        told["score_bootstrap"] = [float(end) for end in bootstrap_mean(np.array(told["scores"]))]
    rows = []
    for arm in dict.fromkeys(cell.arm for cell in finished):
        of = [told for cell, told in finished.items() if cell.arm == arm]
        means = {name: [told[name] for told in of] for name in ("score_mean", "train_cpu_seconds")}
        row = {"arm": arm, "seeds": len(of), "success": float(np.mean([told["successes"] / told["n"] for told in of]))}
        rows.append(
            {**row, "score": float(np.mean(means["score_mean"])), "most_cpu_s": max(means["train_cpu_seconds"])}
        )
    return {"most_cpu_s": MOST_CPU_S, "rows": rows, "cells": list(finished.values())}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None, help="the human demonstrations (docs/data.md says where)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=REPORTED)
    parser.add_argument("--seeds", nargs="+", type=int, default=None, help="of the trainings (default: 3 or 1 an arm)")
    parser.add_argument("--episodes", type=int, default=500, help="held-out episodes of a cell")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="of the held-out episodes")
    cells.options(parser, "pusht")
    arguments = parser.parse_args()
    if arguments.restore:
        cells.restore(arguments.restore, arguments.cells, Cell)
    asked = plan(arguments)
    if not arguments.summary:
        if arguments.data is None:
            parser.error("--data is missing: where the human demonstrations are")
        cells.sweep(arguments.cells, asked, partial(run, arguments.cells, arguments.data))
    result = summarize(arguments.cells, asked)
    for row in result["rows"]:
        print(f"{row['arm']:12s} success {row['success']:.3f}, score {row['score']:.3f}, {row['seeds']} seeds")
    print(write("pusht", result, arguments.out, device="cpu", threads=1))


if __name__ == "__main__":
    main()
