"""Decisions on a GPU: how fast one is, and how much of the GPU many at once use.

A single decision is timed twice: from and to tensors on the device, and from and to numpy arrays, the copies included.
At batch 4096 the share is that of the device's own matrix multiplication rate in the same precision (fp32 without
TF32): the operations of the decision's matrix products, and of nothing else, by its time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.latency_floor import Machine, Work, work
from benchmarks.latency_turns import random_policy, take_turns
from policies import Policy

NETS = {
    "mlp": ["net=mlp"],
    "transformer-20m": ["net=transformer", "net.width=512", "net.blocks=4", "net.heads=8"],
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MANY = 4096


def table(machine: Machine, calls: int, seconds: float) -> dict[str, Any]:
    """Measures and prints everything; the content of the result."""
    cells = []
    for net, overrides in NETS.items():
        policy = random_policy([*overrides, "head.steps=10"])
        counted = work(policy)
        policy.to(machine.device)
        for rows in (1, MANY):
            found = cell(policy, counted, rows, machine, calls, seconds)
            cells.append({"net": net, **found})
            for name, p in found["programs"].items():
                share = f", {p['share_of_matmul_rate']:.0%} of the matmul rate" if "share_of_matmul_rate" in p else ""
                print(f"{net} batch {rows} {name}: p50 {p['p50_ms']:.3f}, p99 {p['p99_ms']:.3f} ms{share}", flush=True)
    return {"matmul_gflop_rate": {name: rate / 1e9 for name, rate in machine.rates.items()}, "cells": cells}


def cell(policy: Policy, counted: Work, rows: int, machine: Machine, calls: int, seconds: float) -> dict[str, Any]:
    """All programs at one batch size, on the policy's device."""
    observation = {n: torch.randn(rows, policy.chunk.history, *f.shape) for n, f in policy.spec.observation.items()}
    noise = torch.randn(rows, *policy.noise_shape)
    arrays = {name: value.numpy() for name, value in observation.items()}, noise.numpy()
    tensors = {name: value.to(machine.device) for name, value in observation.items()}, noise.to(machine.device)

    @torch.no_grad()
    def decide(policy: Policy) -> None:
        policy.sample(*tensors)

    programs: dict[str, Callable[[], object]] = {"eager-fp32": lambda: decide(policy)}
    for precision in DTYPES:
        compiled = copy.deepcopy(policy)
        compiled.compile(precision)
        programs[f"captured-{precision}"] = lambda policy=compiled: decide(policy)
        programs[f"captured-{precision}-numpy"] = lambda policy=compiled: policy.plan(*arrays)
    speeds = take_turns(programs, machine.device, calls, seconds)
    if rows > 1:
        for name, speed in speeds.items():
            rate = rows * counted.operations / (speed["p50_ms"] / 1e3)
            speed["share_of_matmul_rate"] = rate / machine.rate(DTYPES[name.split("-")[1]])
    return {
        "batch": rows,
        "evaluations": policy.head.evaluations,
        "parameters": sum(p.numel() for p in policy.parameters()),
        "gflop": rows * counted.operations / 1e9,
        "programs": speeds,
    }
