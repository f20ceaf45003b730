"""How long one decision takes at batch 1, against the floor that the machine sets.

    python -m benchmarks.latency [--threads N] [--calls C]

A decision is normalizer, encoder, K solver steps and de-normalizer. The floor of K steps is the larger of two times,
both measured in the same run: reading each weight from memory as often as it is used (encoder once, net once per
step), and the floating point operations at the matrix multiplication rate.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch

import policies
from benchmarks.result import write
from benchmarks.training import FEATURES
from conf.cli import compose
from policies.device import select_device


def bandwidth() -> float:
    """Bytes per second of reading 512 MiB from memory, the best of ten passes."""
    data = torch.ones(2**27)
    best = min(_timed(lambda: data.sum()) for _ in range(10))
    return data.numel() * 4 / best


def matmul_rate() -> float:
    """Floating point operations per second of a 1024 x 1024 x 1024 product, the best of ten."""
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / min(_timed(lambda: a @ a) for _ in range(10))


def _timed(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(overrides: list[str], calls: int) -> dict[str, Any]:
    """Percentiles of the decision time, and the floor."""
    config = compose(overrides)
    policy = policies.Policy(config.policy, policies.Spec.from_dict(FEATURES))
    random = torch.Generator().manual_seed(0)
    data = {name: torch.randn(100, f.size, generator=random) for name, f in policy.spec.observation.items()}
    policy.fit_normalizers(data, torch.randn(100, 4, generator=random))
    for parameter in policy.parameters():  # the net starts at zero, which no machine may profit from
        torch.nn.init.normal_(parameter, std=0.02)
    observation = {name: torch.randn(1, config.chunk.history, values.shape[1]) for name, values in data.items()}
    noise = torch.randn(1, *policy.noise_shape)
    policy.eval().requires_grad_(False)
    with torch.no_grad():
        for _ in range(50):
            policy.sample(observation, noise)
        times = np.array([_timed(lambda: policy.sample(observation, noise)) for _ in range(calls)])
    evaluations = policy.head.evaluations
    net = sum(p.numel() for p in policy.net.parameters())
    encoder = sum(p.numel() for p in policy.encoder.parameters())
    used = encoder + evaluations * net  # weights read, and multiply-adds at batch 1
    memory_s, arithmetic_s = 4 * used / bandwidth(), 2 * used / matmul_rate()
    floor = max(memory_s, arithmetic_s)
    p50, p95, p99 = (float(np.percentile(times, q)) for q in (50, 95, 99))
    return {
        "overrides": overrides,
        "evaluations": evaluations,
        "parameters": net + encoder,
        "calls": calls,
        "p50_ms": 1e3 * p50,
        "p95_ms": 1e3 * p95,
        "p99_ms": 1e3 * p99,
        "floor_ms": 1e3 * floor,
        "floor_is": "memory" if memory_s > arithmetic_s else "arithmetic",
        "p50_over_floor": p50 / floor,
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--calls", type=int, default=1000)
    arguments = parser.parse_args()
    select_device("cpu", arguments.threads)
    cells = []
    for net in ("mlp", "transformer"):
        for head in (*(f"head.steps={k}" for k in (1, 4, 10)), "head=regression"):
            c = measure([f"net={net}", head], arguments.calls)
            cells.append(c)
            ratio = f"{c['p50_over_floor']:.2f} times the floor of {c['floor_ms']:.2f} ms ({c['floor_is']})"
            print(f"{net:12s} {head:16s} p50 {c['p50_ms']:.2f} ms, p99 {c['p99_ms']:.2f} ms, {ratio}", flush=True)
    content = {"threads": arguments.threads, "bandwidth_gb_per_s": bandwidth() / 1e9, "cells": cells}
    print(write("latency", {**content, "matmul_gflop_rate": matmul_rate() / 1e9}))


if __name__ == "__main__":
    main()
