"""How fast the training step is, as a share of what the machine's own matrix multiplication reaches at the same shapes.

    python -m benchmarks.training [--threads N] [--rounds R]

Each round times a stretch of training steps and, right after it, the very matrix products that one step runs (their
shapes are recorded from a real step, forward and backward), so that a busy machine slows both. The fraction is the
time of the products over the time of the step, the median over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import policies
import train
from benchmarks.result import write
from conf.cli import compose
from demos.episode import Episode
from policies.device import select_device

FEATURES: dict[str, Any] = {
    "observation": {
        "state": {"shape": [18], "dtype": "float32", "unit": "m", "low": None, "high": None},
        "goal": {"shape": [3], "dtype": "float32", "unit": "m", "low": None, "high": None},
    },
    "action": {"shape": [4], "dtype": "float32", "unit": "", "low": None, "high": None},
    "control_dt_s": 0.0125,
}


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


def products(shapes: list[tuple[int, int, int]], dtype: torch.dtype) -> Callable[[], None]:
    """A function that runs these matrix products once."""
    operands = [(torch.randn(m, k, dtype=dtype), torch.randn(k, n, dtype=dtype)) for m, k, n in shapes]

    def run() -> None:
        for a, b in operands:
            torch.mm(a, b)

    return run


def seconds_per_call(work: Callable[[], object], at_least: float) -> float:
    """Mean time of a call over a stretch of at least so many seconds."""
    work()
    calls, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < at_least or calls == 0:
        work()
        calls += 1
    return spent / calls


def measure(overrides: list[str], threads: int, rounds: int) -> dict[str, Any]:
    """Samples per second and fraction of the matrix-multiplication rate of one configuration."""
    config = compose([*overrides, f"train.threads={threads}", "train.device=cpu"])
    device = select_device("cpu", threads)
    spec = policies.Spec.from_dict(FEATURES)
    trainer = train.Trainer(config, spec, episodes(), device)
    with RecordProducts() as recorded:
        trainer.advance()
    multiply = products(recorded.shapes, torch.bfloat16 if config.train.precision == "bf16" else torch.float32)
    flops = sum(2 * m * k * n for m, k, n in recorded.shapes)
    step_s, product_s = [], []
    for _ in range(rounds):
        step_s.append(seconds_per_call(trainer.advance, 1.0))
        product_s.append(seconds_per_call(multiply, 0.5))
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
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    cells = []
    for threads in arguments.threads:
        fp32 = "train.precision=fp32"
        for overrides in ([fp32], ["train.precision=bf16"], [fp32, "head=regression"], [fp32, "net=transformer"]):
            cell = measure(overrides, threads, arguments.rounds)
            cells.append(cell)
            print(
                f"{' '.join(overrides):35s} {threads} threads {cell['samples_per_s']:8,.0f} samples/s, "
                f"{cell['fraction_of_matmul_rate']:.0%} of the matmul rate ({cell['matmul_gflop_rate']:.0f} GFLOP/s)",
                flush=True,
            )
    print(write("training", {"cells": cells}, device="cpu", threads=" and ".join(map(str, arguments.threads))))


if __name__ == "__main__":
    main()
