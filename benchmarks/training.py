"""How fast the training step is, as a share of what the machine's own matrix multiplication reaches at the same shapes.

    python -m benchmarks.training [--threads N ...] [--rounds R] [--batch ROWS]
    python -m benchmarks.training --device cuda --compile --batch 4096
    python -m benchmarks.training --busy [--minutes M]      beside other programs, see benchmarks/neighbours.py

Each round times a stretch of training steps and, right after it, the very matrix products that one step runs (their
shapes are recorded from a real step, forward and backward), so that a busy machine slows both. The fraction is the
time of the products over the time of the step, the median over the rounds.

On a GPU small products take as long as their launches, which the step may share with other work, so the fraction
flatters it; beside it stands the fraction of the rate of one large square product of the same precision.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import neighbours
from benchmarks.latency_floor import Machine, wait
from benchmarks.result import write
from conf.cli import compose
from conf.verbs.train import TrainRoot
from flowhand.commands import train
from flowhand.contracts.data.episode import Episode
from flowhand.contracts.features import Spec
from policies.device import select_device

FEATURES: dict[str, Any] = {
    "observation": {
        "state": {"shape": [18], "dtype": "float32", "unit": "m", "low": None, "high": None},
        "goal": {"shape": [3], "dtype": "float32", "unit": "m", "low": None, "high": None},
    },
    "action": {"shape": [4], "dtype": "float32", "unit": "", "low": None, "high": None},
    "control_dt_s": 0.0125,
}
WARM = 3  # steps before the timing, in which a compiled one is compiled


def episodes(count: int = 50, length: int = 80) -> list[Episode]:
    """Random episodes of the size of Meta-World's; the speed of a step does not depend on the values."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal((length, *shape), np.float32)

    observation = [{"state": normal(18), "goal": normal(3)} for _ in range(count)]
    rest = np.zeros(length, np.float32), np.zeros(length, bool), ""
    return [Episode(o, normal(4), *rest, seed, FEATURES["control_dt_s"]) for seed, o in enumerate(observation)]


class RecordProducts(TorchDispatchMode):
    """Notes the operand shapes of every matrix product that runs inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, int, int]] = []  # rows, inner, columns

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every operator."""
        operands = {torch.ops.aten.mm.default: args[:2], torch.ops.aten.addmm.default: args[1:3]}.get(func)
        if operands:
            a, b = operands
            self.shapes.append((a.shape[0], a.shape[1], b.shape[1]))
        return func(*args, **(kwargs or {}))


def products(shapes: list[tuple[int, int, int]], dtype: torch.dtype, device: torch.device) -> Callable[[], None]:
    """A function that runs these matrix products once."""
    where: dict[str, Any] = {"dtype": dtype, "device": device}
    operands = [(torch.randn(m, k, **where), torch.randn(k, n, **where)) for m, k, n in shapes]

    def run() -> None:
        for a, b in operands:
            torch.mm(a, b)

    return run


def seconds_per_call(work: Callable[[], object], at_least: float, device: torch.device) -> float:
    """Mean time of a call over a stretch of at least so many seconds, until the device has done all of them."""
    work()
    wait(device)
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < at_least or calls == 0:
        work()
        calls += 1
    wait(device)
    return (time.perf_counter() - start) / calls


def shapes_of_a_step(config: TrainRoot, spec: Spec, device: torch.device) -> list[tuple[int, int, int]]:
    """The matrix products of a step that is not compiled; of one that is, nothing could be recorded."""
    trainer = train.trainer_of(replace(config, train=replace(config.train, compile=False)), spec, episodes(), device)
    with RecordProducts() as recorded:
        trainer.advance()
    return recorded.shapes


def measure(overrides: list[str], machine: Machine, threads: int, rounds: int) -> dict[str, Any]:
    """Samples per second and fraction of the matrix-multiplication rate of one configuration."""
    config, spec, device = compose(overrides), Spec.from_dict(FEATURES), machine.device
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    shapes = shapes_of_a_step(config, spec, device)
    trainer, multiply = train.trainer_of(config, spec, episodes(), device), products(shapes, dtype, device)
    for _ in range(WARM):
        trainer.advance()
    flops = sum(2 * m * k * n for m, k, n in shapes)
    step_s, product_s = [], []
    for _ in range(rounds):
        step_s.append(seconds_per_call(trainer.advance, 1.0, device))
        product_s.append(seconds_per_call(multiply, 0.5, device))
    return {
        "overrides": overrides,
        "threads": threads,
        "parameters": sum(p.numel() for p in trainer.policy.parameters()),
        "batch_size": config.train.batch_size,
        "rounds": rounds,
        "samples_per_s": config.train.batch_size / statistics.median(step_s),
        "step_ms": 1e3 * statistics.median(step_s),
        "matmul_gflops_per_step": flops / 1e9,
        "matmul_gflop_rate": flops / statistics.median(product_s) / 1e9,
        "fraction_of_matmul_rate": statistics.median(p / s for p, s in zip(product_s, step_s, strict=True)),
        "fraction_range": [
            min(p / s for p, s in zip(product_s, step_s, strict=True)),
            max(p / s for p, s in zip(product_s, step_s, strict=True)),
        ],
        "fraction_of_large_matmul_rate": flops / statistics.median(step_s) / machine.rate(dtype),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu | cuda | cuda:N")
    parser.add_argument("--compile", action="store_true", help="train.compile=true")
    parser.add_argument("--batch", type=int, help="windows of a step (default: the recipe's)")
    parser.add_argument("--threads", type=int, nargs="+", help="of the CPU (default: 1 and 2; with a GPU 1)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--busy", action="store_true", help="what the chosen threads reach beside busy programs")
    parser.add_argument("--minutes", type=int, default=3, help="that count, of each stretch of --busy")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.busy:
        found = neighbours.measure(FEATURES, episodes(), arguments.minutes)
        print(write("neighbours", found, arguments.out, device="cpu", threads="chosen, 1 and all"))
        return
    counts = arguments.threads or ([1, 2] if arguments.device == "cpu" else [1])
    shared = ["train.compile=true"] if arguments.compile else []
    shared += [f"train.batch_size={arguments.batch}"] if arguments.batch else []
    fp32, bf16, found = "train.precision=fp32", "train.precision=bf16", []
    usual = fp32 if arguments.device == "cpu" else bf16
    for threads in counts:
        machine = Machine(select_device(arguments.device, threads))
        for own in ([fp32], [bf16], [usual, "head=regression"], [usual, "net=transformer"]):
            cell = measure([*own, *shared], machine, threads, arguments.rounds)
            found.append(cell)
            print(
                f"{' '.join(cell['overrides']):35s} {threads} threads {cell['samples_per_s']:9,.0f} samples/s, "
                f"{cell['fraction_of_matmul_rate']:.0%} of the matmul rate ({cell['matmul_gflop_rate']:.0f} GFLOP/s), "
                f"{cell['fraction_of_large_matmul_rate']:.0%} of that of a large square product",
                flush=True,
            )
    told = " and ".join(map(str, counts))
    print(write("training", {"cells": found}, arguments.out, device=arguments.device, threads=told))


if __name__ == "__main__":
    main()
