"""Training speed and decision time of both sides, measured in turns."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import policies
from benchmarks.peers_sides import BATCH, DIFFUSION, UNET, WARM, Side, configure, rehearse, replace_steps
from conf.verbs.export import ExportConfig
from conf.verbs.train import TrainRoot
from flowhand.commands import train
from flowhand.commands.export import export
from flowhand.contracts.planner import Planner
from flowhand.deploy.runner import Runner, load

FP32 = "train.precision=fp32"
TRAINED = {  # whose training speed is compared
    "flow-mlp": ["head=flow"],
    "flow-unet": [*UNET, "head=flow"],
    "flow-unet-fp32": [*UNET, "head=flow", FP32],
    "diffusion-unet-fp32": [*UNET, *DIFFUSION, FP32],
}
DECIDING = {  # whose decisions are timed, each as it is and compiled
    "flow-mlp-10": ["head=flow", "head.steps=10"],
    "flow-mlp-4": ["head=flow", "head.steps=4"],
    "flow-unet-10": [*UNET, "head=flow", "head.steps=10"],
    "diffusion-unet-10": [*UNET, *DIFFUSION],
}
PRECISIONS = {"fp32": "", "bf16": "-bf16"}  # of a compiled policy, and the ending of its name
EXPORTED = ("flow-mlp-10", "diffusion-unet-10")  # whose decisions ONNX Runtime is timed with too, on a CPU
PRECISIONS_EXPORTED = ("fp32", "int8")
SAMPLERS = {"lerobot-ddim-10": ("DDIM", 10), "lerobot-ddpm-100": ("DDPM", 100)}
# Kind of cell, on which device, whose speed, and how many times LeRobot's it should be.
BARS = (
    ("decisions", "cpu", "flow-mlp-10-compiled", 20.0),
    ("decisions", "cpu", "flow-mlp-10-compiled-bf16", 20.0),
    ("decisions", "cpu", "flow-mlp-10-onnx-fp32", 20.0),
    ("decisions", "cpu", "flow-mlp-10-onnx-int8", 20.0),
    ("decisions", "cpu", "diffusion-unet-10-compiled", 2.0),
    ("training", "cuda", "diffusion-unet-fp32-compiled", 10.0),
    ("training", "cuda", "flow-unet-compiled", 10.0),
)

Contender = Callable[[], list[float]]  # one round's measurements


def in_turns(contenders: dict[str, Contender], rounds: int) -> dict[str, list[list[float]]]:
    """The measurements of every contender and round; all take turns, so that a busy machine slows all of them."""
    measured: dict[str, list[list[float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            measured[name].append(contender())
    return measured


def run_training(s: Side, a: argparse.Namespace) -> dict[str, Any]:
    """Training samples per second, in turns."""

    def ours(overrides: list[str]) -> Contender:
        config = configure(overrides, a, len(s.store))
        trainer = train.trainer_of(replace_steps(config, 10**6), s.spec, s.store, s.device)
        return lambda: [config.train.batch_size * rehearse(trainer, a.seconds)]

    def peers() -> list[float]:
        done = s.peer.ask("rehearse", seconds=a.seconds)
        return [BATCH * done["steps"] / done["seconds"]]

    compiled = {f"{name}-compiled": [*overrides, "train.compile=true"] for name, overrides in TRAINED.items()}
    chosen = TRAINED | (compiled if a.device != "cpu" else {})  # on a CPU compiling gains little and takes minutes
    measured = in_turns({"lerobot": peers, **{name: ours(overrides) for name, overrides in chosen.items()}}, a.rounds)
    rows = [row(name, rounds, measured["lerobot"], rate=True) for name, rounds in measured.items()]
    return {"kind": "training", "unit": "samples/s", "device": s.device.type, "rows": rows}


def run_decisions(s: Side, a: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of a decision for one robot, in turns."""

    def peers(sampler: str, steps: int, part: str) -> Contender:
        return lambda: s.peer.ask("time", sampler=sampler, steps=steps, calls=a.calls, part=part)["milliseconds"]

    contenders = {name: peers(*sampler, "core") for name, sampler in SAMPLERS.items()}
    contenders["lerobot-ddim-10-with-processors"] = peers(*SAMPLERS["lerobot-ddim-10"], "whole")
    for name, overrides in DECIDING.items():
        config = configure(overrides, a, len(s.store))
        contenders[name] = deciding(untrained(config, s), a.calls)
        for precision, ending in PRECISIONS.items():
            policy = untrained(config, s)
            policy.compile(precision)
            contenders[f"{name}-compiled{ending}"] = deciding(policy, a.calls)
        for precision in PRECISIONS_EXPORTED if name in EXPORTED and s.device.type == "cpu" else ():
            contenders[f"{name}-onnx-{precision}"] = deciding(exported(untrained(config, s), precision), a.calls)
    measured = in_turns(contenders, a.rounds)
    rows = [row(name, rounds, measured["lerobot-ddim-10"], rate=False) for name, rounds in measured.items()]
    return {"kind": "decisions", "unit": "ms", "device": s.device.type, "rows": rows}


def untrained(config: TrainRoot, s: Side) -> policies.Policy:
    """A policy with random weights: the time of a decision does not depend on them."""
    policy = train.trainer_of(config, s.spec, s.store, s.device).policy
    for parameter in policy.parameters():  # a net starts at zero, which no machine may profit from
        torch.nn.init.normal_(parameter, std=0.02)
    return policy.eval().requires_grad_(False)


def exported(policy: policies.Policy, precision: str) -> Runner:
    """The same, exported: the time does not depend on how exact it is either, so any error is allowed."""
    observation, noise = inputs(policy, 4)
    golden = {f"observation.{name}": torch.from_numpy(value) for name, value in observation.items()}
    golden["noise"] = torch.from_numpy(noise)
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder) / "export", policy, golden, {}, ExportConfig(precision=precision, rows=4, tolerance=1.0))
        return load(Path(folder) / "export")


def inputs(policy: Planner, rows: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Observations of zeros and random noise for so many robots."""
    features = policy.spec.observation.items()
    observation = {n: np.zeros((rows, policy.chunk.history, *f.shape), np.float32) for n, f in features}
    return observation, np.random.default_rng(0).standard_normal((rows, *policy.noise_shape), np.float32)


def deciding(policy: Planner, calls: int) -> Contender:
    """Times single decisions from numpy to numpy, as a controller asks for them."""
    observation, noise = inputs(policy, 1)

    def times() -> list[float]:
        taken = []
        for _ in range(calls + WARM):
            start = time.perf_counter()
            policy.plan(observation, noise)
            taken.append(1e3 * (time.perf_counter() - start))
        return taken[WARM:]

    return times


def row(name: str, rounds: list[list[float]], baseline: list[list[float]], rate: bool) -> dict[str, Any]:
    """Median and percentile over everything; how many times as fast as the baseline: round by round, then the median.

    Args:
        name: whose measurements.
        rounds: of each round.
        baseline: the other's.
        rate: more is faster; else less is.
    """
    everything = np.concatenate(rounds)
    ratios = [float(np.median(mine) / np.median(its)) for mine, its in zip(rounds, baseline, strict=True)]
    times = ratios if rate else [1 / ratio for ratio in ratios]
    about = {"median": float(np.median(everything)), "p99": float(np.percentile(everything, 99)), "n": len(everything)}
    return {"name": name, **about, "times_as_fast": float(np.median(times)), "range": [min(times), max(times)]}


def bars(finished: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bars that were measured, and whether they are met."""
    speeds = {(c["kind"], c["device"], r["name"]): r["times_as_fast"] for c in finished for r in c.get("rows", ())}
    return [
        {"kind": k, "device": d, "name": n, "bar": bar, "measured": speeds[k, d, n], "met": speeds[k, d, n] >= bar}
        for k, d, n, bar in BARS
        if (k, d, n) in speeds
    ]
