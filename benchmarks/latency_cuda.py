"""Decisions on a GPU: how fast one is, and how much of the GPU many at once use.

A decision is timed twice: from and to tensors on the device, and from and to numpy arrays, the copies included. With
many rows the share is that of the device's own matrix multiplication rate in the same precision (fp32 without TF32,
in convolutions too): the operations of the decision's matrix products, and of nothing else, by its time.

Afterwards every program decides once more and is compared with eager torch. By then all that Python no longer holds has
been freed and overwritten: a captured graph goes on reading where its inputs lay when it was captured.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.latency_floor import Machine, Work, work
from benchmarks.latency_turns import take_turns
from policies import Policy

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
EAGER = "eager-fp32"

Arrays = tuple[dict[str, np.ndarray], np.ndarray]  # observation and noise


def cells(policy: Policy, batches: list[int], machine: Machine, calls: int, seconds: float) -> Iterator[dict[str, Any]]:
    """One policy, which moves to the machine's device, at every batch size."""
    counted = work(policy)
    policy.to(machine.device)
    for rows in batches:
        yield cell(policy, counted, rows, machine, calls, seconds)


def cell(policy: Policy, counted: Work, rows: int, machine: Machine, calls: int, seconds: float) -> dict[str, Any]:
    """All programs at one batch size, on the policy's device."""
    observation = {n: torch.randn(rows, policy.chunk.history, *f.shape) for n, f in policy.spec.observation.items()}
    noise = torch.randn(rows, *policy.noise_shape)
    arrays = {name: value.numpy() for name, value in observation.items()}, noise.numpy()
    tensors = {name: value.to(machine.device) for name, value in observation.items()}, noise.to(machine.device)

    @torch.no_grad()
    def decide(policy: Policy) -> None:
        policy.sample(*tensors)

    policies = {EAGER: policy}
    programs: dict[str, Callable[[], object]] = {EAGER: lambda: decide(policy)}
    for precision in DTYPES:
        compiled = copy.deepcopy(policy)
        compiled.compile(precision)
        name = f"captured-{precision}"
        policies[name] = compiled
        programs[name] = lambda policy=compiled: decide(policy)
        programs[f"{name}-numpy"] = lambda policy=compiled: policy.plan(*arrays)
    speeds = take_turns(programs, machine.device, calls, seconds)
    for name, error in max_errors(policies, arrays).items():
        speeds[name]["max_error"] = error
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


def max_errors(policies: dict[str, Policy], arrays: Arrays) -> dict[str, float]:
    """The largest difference of each one's chunks from those of eager torch in spreads; NaN if one has NaN."""
    eager = policies[EAGER]
    gc.collect()
    # Of the sizes of all weights and their rounded copies, so that they come to lie where such were freed.
    overwriting = [torch.full_like(p, torch.nan, dtype=t) for p in eager.parameters() for t in DTYPES.values()]
    expected, spread = eager.plan(*arrays), eager.action_normalizer.scale.cpu().numpy()
    found = {name: float(np.abs((p.plan(*arrays) - expected) / spread).max()) for name, p in policies.items()}
    overwriting.clear()
    return found


def told(cell: dict[str, Any]) -> str:
    """A cell in one line: median, 99th percentile, calls, and what else is known of each program."""
    programs = []
    for name, p in cell["programs"].items():
        error = f", error {p['max_error']:.1e}" if "max_error" in p else ""
        share = f", {p['share_of_matmul_rate']:.0%} of the matmul rate" if "share_of_matmul_rate" in p else ""
        programs.append(f"{name} {p['p50_ms']:.3f} ms (p99 {p['p99_ms']:.3f}, n={p['calls']}{error}{share})")
    return f"batch {cell['batch']:4d}: {', '.join(programs)}"
