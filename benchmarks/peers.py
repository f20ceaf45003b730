"""Side by side with LeRobot's DiffusionPolicy: training speed, decision time, success after equal training time.

    python -m benchmarks.peers                  run what is missing, then write the result file
    python -m benchmarks.peers --summary        only write the result file from the finished cells

The first run makes LeRobot's own virtual environment in outputs/peers/venv. Both sides have the same demonstrations,
windows of 2 observations and 16 actions, the same torch with one thread, the same controller and held-out seeds. What
is timed is timed in turns, and while one side computes the other waits at its pipe; run one process only, on a quiet
core. What is set for LeRobot, and how that favours it, stands in peers_lerobot.py. `--device cuda` compares on a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import envs
from benchmarks import cells
from benchmarks.peers_sides import (
    DIFFUSION,
    UNET,
    Side,
    configure,
    now,
    planner,
    rehearse,
    replace_steps,
    side,
)
from benchmarks.peers_speed import bars, run_decisions, run_training
from benchmarks.result import write
from conf.verbs.train import TrainRoot
from flowhand.commands import train
from flowhand.control.controller import Controller
from flowhand.evaluation.rollout import rollout
from flowhand.evaluation.statistics import wilson
from policies.device import select_device

# Name: our configuration, and how many actions are executed per decision: the arm's own default first.
ARMS: dict[str, tuple[list[str], tuple[int, ...]]] = {
    "lerobot": (UNET, (8, 2)),
    "flow-mlp": (["head=flow"], (2,)),
    "flow-unet": ([*UNET, "head=flow", "head.steps=10"], (2,)),
    "diffusion-unet": ([*UNET, *DIFFUSION], (8, 2)),
}
REHEARSAL_S = 3.0  # of training, to learn how many steps fit into the time


def fitting(rate: float, seconds: float) -> int:
    """Optimizer steps that fit into the time; a little less, so that the schedule ends before the clock does."""
    return max(1, int(0.98 * rate * seconds))


def learn(config: TrainRoot, s: Side, seconds: float) -> tuple[train.Trainer, dict[str, Any]]:
    """Ours after so many seconds of training, and what came of them."""
    rate = rehearse(train.trainer_of(replace_steps(config, 10**6), s.spec, s.store, s.device), REHEARSAL_S)
    trainer = train.trainer_of(replace_steps(config, fitting(rate, seconds)), s.spec, s.store, s.device)
    started = now(trainer)
    while trainer.step < trainer.config.steps and time.perf_counter() - started < seconds:
        trainer.advance()
    spent = now(trainer) - started
    trainer.require_finite()
    parameters = sum(p.numel() for p in trainer.policy.parameters())
    return trainer, {"steps": trainer.step, "train_seconds": spent, "parameters": parameters}


def learn_peer(s: Side, seconds: float) -> dict[str, Any]:
    """The peer after so many seconds of training: what came of them."""
    rehearsed = s.peer.ask("rehearse", seconds=REHEARSAL_S)
    done = s.peer.ask("train", steps=fitting(rehearsed["steps"] / rehearsed["seconds"], seconds), seconds=seconds)
    return {"steps": done["steps"], "train_seconds": done["seconds"], "parameters": s.parameters}


def run_arm(arm: str, s: Side, a: argparse.Namespace, budget: float) -> dict[str, Any]:
    """One arm trained for so many seconds and evaluated on the held-out seeds."""
    overrides, horizons = ARMS[arm]
    config = configure(overrides, a, len(s.store))
    if arm == "lerobot":
        policy, about = planner(s), learn_peer(s, budget)
    else:
        trainer, about = learn(config, s, budget)
        policy = trainer.ema.module
    results = {}
    for horizon in horizons:
        started = time.perf_counter()
        controller = Controller(policy, horizon, config.eval.inference_batch)
        seeds = range(config.eval.seed, config.eval.seed + a.episodes)
        records = rollout(partial(envs.make, config.env), controller, seeds, n_envs=config.eval.n_envs)
        results[horizon] = {**cells.outcomes(records), "evaluate_seconds": time.perf_counter() - started}
    about |= {"demonstrations": len(s.store), "demonstrations_hash": s.store.hash(), "seed": a.seed}
    where = {"kind": "success", "device": s.device.type, "task": a.task, "arm": arm, "budget_s": budget}
    return {**where, **about, "batch_size": config.train.batch_size, "results": results}


def run(a: argparse.Namespace, demonstrations: int) -> None:
    """Runs every cell that is not finished."""
    plan: dict[str, Callable[[Side], dict[str, Any]]] = {
        f"training-{a.device}": lambda s: run_training(s, a),
        f"decisions-{a.device}": lambda s: run_decisions(s, a),
    }
    for budget in a.budgets:
        for arm in a.arms:
            name = f"{a.task}-{demonstrations}-{arm}-{budget:g}s-{a.seed}-{a.device}"
            plan[name] = partial(run_arm, arm, a=a, budget=budget)
    missing = {name: work for name, work in plan.items() if not (a.cells / f"{name}.json").exists()}
    if not missing:
        return
    with side(a, demonstrations) as s:
        print(f"{demonstrations} demonstrations of {a.task}; the peer: {s.peer.hello}", flush=True)
        for name, work in missing.items():
            with cells.claim(a.cells / f"{name}.json") as save:
                if save is None:
                    continue
                cell = {**work(s), "peer": s.peer.hello}
                save(cell)
                print(name, *told(cell), sep="\n    ", flush=True)


def told(cell: dict[str, Any]) -> Iterable[str]:
    """The cell in a few words."""
    if cell["kind"] == "success":
        for horizon, result in cell["results"].items():
            yield f"executes {horizon}: {result['outcomes'].count('1')}/{result['n']} ({cell['steps']} steps)"
    else:
        for r in cell["rows"]:
            yield f"{r['name']:32s} {r['median']:9.2f} {cell['unit']}, {r['times_as_fast']:.2f} times LeRobot's speed"


def summarize(folder: Path, device: str) -> dict[str, Any]:
    """The device's finished cells, with intervals, and whether the bars are met as far as they were measured."""
    finished = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    finished = [cell for cell in finished if cell["device"] == device]
    for cell in finished:
        for result in cell.get("results", {}).values():
            result["successes"] = result["outcomes"].count("1")
            result["wilson"] = wilson(result["successes"], result["n"])
    return {"bars": bars(finished), "cells": finished}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="pick-place-v3", help="Meta-World task")
    parser.add_argument("--demonstrations", type=int, nargs="*", default=[50, 100], help="how many, one table each")
    parser.add_argument("--budgets", type=float, nargs="*", default=[60, 90, 400], help="seconds of training")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS), help="whom to train (default: all)")
    parser.add_argument("--episodes", type=int, default=100, help="held-out episodes of each trained policy")
    parser.add_argument("--rounds", type=int, default=7, help="of the timings")
    parser.add_argument("--seconds", type=float, default=3.0, help="of training in each round")
    parser.add_argument("--calls", type=int, default=20, help="decisions in each round")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    parser.add_argument("--device", default="cpu", help="cpu | cuda | cuda:N, for both sides")
    parser.add_argument("--python", type=Path, default=None, help="Python of another environment that has LeRobot")
    parser.add_argument("--cells", type=Path, default=Path("outputs/peers/cells"), help="folder of the finished cells")
    parser.add_argument("--summary", action="store_true", help="run nothing, only write the result file")
    parser.add_argument("--out", type=Path, default=None, help="result file (default: in benchmarks/results)")
    arguments = parser.parse_args()
    if not arguments.summary:
        for demonstrations in arguments.demonstrations:
            run(arguments, demonstrations)
    device = select_device(arguments.device, 1)  # one thread, on both sides
    print(write("peers", summarize(arguments.cells, device.type), arguments.out, device=device, threads=1))


if __name__ == "__main__":
    main()
