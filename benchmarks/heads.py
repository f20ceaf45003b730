"""Which head to take: every head on one net, the same demonstrations, the same training budget, the same seeds.

    python -m benchmarks.heads                  run what is missing, then write the result file
    python -m benchmarks.heads --summary        only write the result file from the finished cells

A cell is one world with one trained head; it is evaluated with every sampler setting of that head. Finished cells are
kept below --cells, so a killed run goes on where it was; start the command once per core that you want to give it.
The worlds are Meta-World tasks of mixed difficulty and detour, where there are two right ways.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import eval as evaluation
import policies
import train
from benchmarks import cells
from benchmarks.result import write
from envs.records import EpisodeRecord, wilson
from envs.statistics import compare_paired

WORLDS = {
    **{
        task: [f"env.task={task}-v3"]
        for task in (
            "assembly",
            "basketball",
            "disassemble",
            "hammer",
            "peg-insert-side",
            "pick-place-wall",
            "push-back",
            "soccer",
            "stick-pull",
        )
    },
    "detour": ["env=detour", "demos.noise=0.05"],
}
# Name: what is trained, and the head's fields of every sampler setting it is evaluated with.
ARMS: dict[str, tuple[list[str], dict[str, dict[str, Any]]]] = {
    "flow": (["head=flow"], {f"flow-{k}": {"steps": k} for k in (1, 2, 4, 10)}),
    "velocity": (["head=flow", "head.prediction=velocity"], {f"velocity-{k}": {"steps": k} for k in (1, 4, 10)}),
    "regression": (["head=regression"], {"regression": {}}),
    "mip": (["head=mip"], {"mip": {}}),
    "diffusion": (["head=diffusion"], {"ddim-10": {}, "dpmpp-10": {"sampler": "dpmpp_2m"}}),
    "diffusion-noise": (
        ["head=diffusion", "head.prediction=noise", "head.clip=1", "normalizer.action=min_max"],
        {"noise-ddim-10": {}, "noise-ddpm-100": {"sampler": "ddpm", "steps": 100}},
    ),
    "edm": (["head=edm"], {"edm": {}}),
    "mean_flow": (["head=mean_flow"], {"mean_flow": {}}),
    "shortcut": (["head=shortcut"], {f"shortcut-{k}": {"steps": k} for k in (1, 4)}),
    "consistency": (["head=consistency"], {"consistency": {}}),
}
ON_OTHER_NETS = ("flow", "diffusion", "regression")
# About as many parameters as the default mlp (within 10 %).
NETS: dict[str, list[str]] = {
    "mlp": [],
    "unet1d": ["net=unet1d"],
    "transformer": ["net=transformer"],
}
BASELINE = "flow-10"  # every sampler setting is compared with it on the same seeds
MARGIN = 0.02  # largest loss in success rate that still counts as not worse


def run_cell(world: str, net: str, arm: str, episodes: int) -> dict[str, Any]:
    """Trains once and evaluates with every sampler setting."""
    overrides, samplers = ARMS[arm]
    config = cells.configure([*WORLDS[world], *NETS[net], *overrides], episodes)
    trainer, about = cells.learn(config)
    results = {}
    for name, fields in samplers.items():
        policy = with_sampler(trainer.ema.module, fields)
        records = evaluation.evaluate(policy, config.env, config.eval)
        results[name] = {
            **cells.outcomes(records),
            "modes": modes(records),
            "evaluations_per_decision": policy.head.evaluations,
            "decision_ms": decision_ms(policy, trainer),
        }
    return {"world": world, "net": net, "arm": arm, **about, "results": results}


def with_sampler(policy: policies.Policy, fields: dict[str, Any]) -> policies.Policy:
    """The same weights with other fields of the head."""
    other = policies.Policy(replace(policy.config, head=replace(policy.config.head, **fields)), policy.spec)
    other.load_state_dict(policy.state_dict())
    return other.eval().requires_grad_(False)


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


def sweep(folder: Path, worlds: list[str], episodes: int) -> None:
    """Runs every cell that is not finished and that no other process is at."""
    for world in worlds:
        for net in NETS:
            for arm in ARMS if net == "mlp" else ON_OTHER_NETS:
                with cells.claim(folder / f"{world}-{net}-{arm}.json") as save:
                    if save is None:
                        continue
                    cell = run_cell(world, net, arm, episodes)
                    save(cell)
                    told = {name: f"{r['outcomes'].count('1')}/{r['n']}" for name, r in cell["results"].items()}
                    print(f"{world:18s} {net:12s} {told}", flush=True)


def summarize(folder: Path) -> dict[str, Any]:
    """The table: success with interval, evaluations, latency; and every setting against the baseline."""
    finished = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    by_name: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for cell in finished:
        for name, result in cell["results"].items():
            result["successes"] = result["outcomes"].count("1")
            result["wilson"] = wilson(result["successes"], result["n"])
            by_name.setdefault((cell["net"], name), {})[cell["world"]] = result
    rows = [row(net, name, worlds, by_name.get((net, BASELINE), {})) for (net, name), worlds in by_name.items()]
    return {"margin": MARGIN, "baseline": BASELINE, "table": rows, "cells": finished}


def row(net: str, name: str, worlds: dict[str, dict[str, Any]], baseline: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One line of the table, over the Meta-World tasks that both this setting and the baseline have."""
    shared = sorted(world for world in worlds if world in baseline and world != "detour")
    told: dict[str, Any] = {"net": net, "name": name, "worlds": len(shared), "detour": worlds.get("detour")}
    if not shared:
        return told
    mine, theirs = ([[bit == "1" for bit in of[w]["outcomes"]] for w in shared] for of in (worlds, baseline))
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
    parser.add_argument(
        "--worlds", nargs="*", choices=WORLDS, default=list(WORLDS), help="worlds to run (default: all)"
    )
    parser.add_argument("--episodes", type=int, default=400, help="held-out episodes per cell and sampler setting")
    parser.add_argument("--cells", type=Path, default=Path("outputs/heads"), help="folder of the finished cells")
    parser.add_argument("--summary", action="store_true", help="run nothing, only write the result file")
    parser.add_argument("--out", type=Path, default=None, help="result file (default: in benchmarks/results)")
    arguments = parser.parse_args()
    if not arguments.summary:
        sweep(arguments.cells, arguments.worlds, arguments.episodes)
    print(write("heads", summarize(arguments.cells), arguments.out))


if __name__ == "__main__":
    main()
