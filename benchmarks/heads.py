"""Which head to take: every head on one net, the same demonstrations, the same training budget, the same seeds.

    python -m benchmarks.heads                  run what is missing, then write the result file
    python -m benchmarks.heads --summary        only write the result file from the finished cells
    python -m benchmarks.heads --restore FILE   go on from the cells that a result file holds

Two tables: every head on the default mlp, and three heads on three nets of equal size. A cell is one world with one
trained head; it is evaluated with every sampler setting of that head. Finished cells are kept below --cells, so a
killed run goes on where it was; start the command once per core that you want to give it. The worlds are Meta-World
tasks of mixed difficulty and detour, where there are two right ways (8 steps are executed open-loop there).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import policies
from benchmarks import cells
from benchmarks.result import write
from flowhand.commands import eval as evaluation
from flowhand.commands import train
from flowhand.evaluation.records import EpisodeRecord
from flowhand.evaluation.statistics import compare_paired, wilson

TASKS = (
    "assembly",
    "peg-insert-side",
    "soccer",
    "stick-pull",
    "basketball",
    "hammer",
    "pick-place-wall",
    "push-back",
)
WORLDS = {
    **{task: [f"env.task={task}-v3"] for task in TASKS},
    "detour": ["env=detour", "data.noise=0.05", "chunk.execution_horizon=8"],
}
# Name: what is trained, and the head's fields of every sampler setting it is evaluated with.
ARMS: dict[str, tuple[list[str], dict[str, dict[str, Any]]]] = {
    "flow": (["head=flow"], {f"flow-{k}": {"steps": k} for k in (1, 2, 4, 10)}),
    "regression": (["head=regression"], {"regression": {}}),
    "mip": (["head=mip"], {"mip": {}}),
    "shortcut": (["head=shortcut"], {f"shortcut-{k}": {"steps": k} for k in (1, 4)}),
    "mean_flow": (["head=mean_flow"], {"mean_flow": {}}),
    "drift": (["head=drift"], {"drift": {}, "drift-half": {"noise": 0.5}, "drift-0": {"noise": 0.0}}),
    "consistency": (["head=consistency"], {"consistency": {}}),
    "diffusion": (["head=diffusion"], {"ddim-10": {}, "dpmpp-10": {"sampler": "multistep"}}),
    "edm": (["head=edm"], {"edm": {}}),
    "velocity": (["head=flow", "head.prediction=velocity"], {f"velocity-{k}": {"steps": k} for k in (1, 10)}),
    "diffusion-noise": (
        ["head=diffusion", "head.prediction=noise", "head.clip=1", "normalizer.action=min_max"],
        {"noise-ddim-10": {}, "noise-ddpm-100": {"sampler": "ddpm", "steps": 100}},
    ),
}
# Settings that answer whether one evaluation is as good as ten: they get the full number of episodes.
ONE_STEP = ("regression", "shortcut-1", "mean_flow", "drift-0")
# The nets, at as many parameters as the default mlp (within 10 %), on the first worlds and with a quarter of the batch:
# the transformer and the UNet cost five to ten times the mlp's time per window.
NETS: dict[str, list[str]] = {
    "mlp": ["net=mlp"],
    "unet1d": ["net=unet1d", "net.down_dims=[32,64,128]"],
    "transformer": ["net=transformer", "net.width=144"],
}
NET_ARMS = ("flow", "diffusion", "regression")
NET_BUDGET = ["train.batch_size=64", "train.steps=1000", "train.learning_rate=1e-3"]
BASELINE = "flow-10"  # every sampler setting is compared with it on the same seeds
MARGIN = 0.02  # largest loss in success rate that still counts as not worse
FEW = 100  # held-out episodes of the settings that are not in ONE_STEP


@dataclass(frozen=True)
class Cell:
    """One policy to train and evaluate."""

    table: str  # heads: all heads on the mlp | nets: few heads on all nets
    world: str
    net: str
    arm: str

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.table}-{self.world}-{self.net}-{self.arm}"

    @property
    def overrides(self) -> list[str]:
        """Its configuration."""
        return [*WORLDS[self.world], *NETS[self.net], *ARMS[self.arm][0], *(NET_BUDGET if self.table == "nets" else [])]

    def episodes(self, setting: str, many: int) -> int:
        """Held-out episodes of a sampler setting."""
        long = self.table == "heads" and self.world != "detour" and setting in (BASELINE, *ONE_STEP)
        return many if long else FEW


PLAN = {
    "heads": [Cell("heads", world, "mlp", arm) for world in WORLDS for arm in ARMS],
    "nets": [Cell("nets", world, net, arm) for world in TASKS[:4] for net in NETS for arm in NET_ARMS],
}


def run_cell(cell: Cell, many: int) -> dict[str, Any]:
    """Trains once and evaluates with every sampler setting."""
    config = cells.configure(cell.overrides, many)
    trainer, about = cells.learn(config)
    results = {}
    for name, fields in ARMS[cell.arm][1].items():
        policy = trainer.ema.module.with_head(**fields)
        records = evaluation.evaluate(policy, config.env, replace(config.eval, episodes=cell.episodes(name, many)))
        results[name] = {
            **cells.outcomes(records),
            "modes": modes(records),
            "evaluations_per_decision": policy.head.evaluations,
            "decision_ms": decision_ms(policy, trainer),
        }
    return {**asdict(cell), **about, "results": results}


def modes(records: list[EpisodeRecord]) -> dict[str, int]:
    """Successes by the way that was taken, where the world tells ways apart."""
    taken = [record.mode for record in records if record.success and record.mode]
    return {mode: taken.count(mode) for mode in sorted(set(taken))}


def decision_ms(policy: policies.Policy, trainer: train.Trainer, calls: int = 50) -> float:
    """Median time of a decision at batch 1, one thread."""
    observation = trainer.windows.gather(torch.zeros(1, dtype=torch.long)).observation
    noise = torch.randn(1, *policy.noise_shape)
    times = []
    with torch.no_grad():
        for _ in range(calls + 10):
            start = time.perf_counter()
            policy.sample(observation, noise)
            times.append(time.perf_counter() - start)
    return round(1e3 * float(np.median(times[10:])), 3)


def sweep(folder: Path, plan: list[Cell], many: int) -> None:
    """Runs every cell that is not finished and that no other process is at."""
    for cell in plan:
        with cells.claim(folder / f"{cell.name}.json") as save:
            if save is None:
                continue
            finished = run_cell(cell, many)
            save(finished)
            told = {name: f"{r['outcomes'].count('1')}/{r['n']}" for name, r in finished["results"].items()}
            print(f"{cell.name:36s} {told}", flush=True)


def summarize(folder: Path) -> dict[str, Any]:
    """The tables: success with interval, evaluations, latency; and every setting against the baseline."""
    finished = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    by_name: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for cell in finished:
        for name, result in cell["results"].items():
            result["successes"] = result["outcomes"].count("1")
            result["wilson"] = wilson(result["successes"], result["n"])
            by_name.setdefault((cell["table"], cell["net"], name), {})[cell["world"]] = result
    rows = [
        {"table": table, "net": net, "name": name, **row(worlds, by_name.get((table, net, BASELINE), {}))}
        for (table, net, name), worlds in by_name.items()
    ]
    return {"margin": MARGIN, "baseline": BASELINE, "rows": rows, "cells": finished}


def row(worlds: dict[str, dict[str, Any]], baseline: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One line of a table, over the Meta-World tasks and the seeds that this setting and the baseline share."""
    shared = sorted(world for world in worlds if world in baseline and world != "detour")
    told: dict[str, Any] = {"worlds": len(shared), "detour": worlds.get("detour")}
    if not shared:
        return told
    mine, theirs = [], []
    for world in shared:
        n = min(worlds[world]["n"], baseline[world]["n"])
        mine.append([bit == "1" for bit in worlds[world]["outcomes"][:n]])
        theirs.append([bit == "1" for bit in baseline[world]["outcomes"][:n]])
    return {
        **told,
        "mean_success": float(np.mean([np.mean(outcomes) for outcomes in mine])),
        "evaluations_per_decision": worlds[shared[0]]["evaluations_per_decision"],
        "decision_ms": float(np.median([worlds[world]["decision_ms"] for world in shared])),
        "against_baseline": vars(compare_paired(mine, theirs, MARGIN)),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="*", choices=PLAN, default=list(PLAN), help="tables to fill (default: all)")
    parser.add_argument("--worlds", nargs="*", choices=WORLDS, default=list(WORLDS), help="only these worlds")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS), help="only these heads")
    parser.add_argument("--episodes", type=int, default=400, help="held-out episodes of the one-step settings")
    cells.options(parser, "heads")
    arguments = parser.parse_args()
    if arguments.restore:
        cells.restore(arguments.restore, arguments.cells, Cell)
    if not arguments.summary:
        chosen = [cell for table in arguments.tables for cell in PLAN[table]]
        chosen = [cell for cell in chosen if cell.world in arguments.worlds and cell.arm in arguments.arms]
        sweep(arguments.cells, chosen, arguments.episodes)
    print(write("heads", summarize(arguments.cells), arguments.out, device="cpu", threads=1))


if __name__ == "__main__":
    main()
