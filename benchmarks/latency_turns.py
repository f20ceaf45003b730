"""A policy to time, and the timing of several programs that compute its decisions in turns, call by call.

So a disturbance of the machine meets all of them, and each finds the caches as the others left them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

import policies
from benchmarks.latency_floor import timed
from benchmarks.training import FEATURES
from conf.cli import compose
from flowhand.contracts.features import Spec


def random_policy(overrides: list[str]) -> policies.Policy:
    """A policy with random weights, small enough that actions stay near their spread, and fitted normalizers."""
    torch.manual_seed(0)
    policy = policies.Policy(compose(overrides).policy, Spec.from_dict(FEATURES))
    data = {name: torch.randn(1000, f.size) for name, f in policy.spec.observation.items()}
    policy.fit_normalizers(data, torch.randn(1000, policy.spec.action.size))
    with torch.no_grad():
        for p in policy.parameters():
            p.copy_(0.5 * torch.randn(p.shape) / p.shape[-1] ** 0.5)
    return policy.eval().requires_grad_(False)


def take_turns(
    programs: Mapping[str, Callable[[], object]], device: torch.device, calls: int, seconds: float
) -> dict[str, Any]:
    """Percentiles of each program's time in milliseconds.

    Args:
        programs: each one decision.
        device: whose work is waited for.
        calls: of each program; fewer where the time is up before, but at least 5.
        seconds: for each program, its warm-up left out.

    Returns:
        For each program p50_ms, p95_ms, p99_ms, calls, and first_s: the first call, which may have compiled.
    """
    first = {name: timed(program, device) for name, program in programs.items()}
    for program in programs.values():
        for _ in range(3):
            program()
    times: dict[str, list[float]] = {name: [] for name in programs}
    end, done = time.perf_counter() + seconds * len(programs), 0
    while done < min(calls, 5) or (done < calls and time.perf_counter() < end):
        for name, program in programs.items():
            times[name].append(timed(program, device))
        done += 1
    return {name: {**percentiles(t), "calls": done, "first_s": first[name]} for name, t in times.items()}


def percentiles(times: list[float]) -> dict[str, float]:
    """Median, 95th and 99th percentile in milliseconds, of seconds."""
    return {f"p{q}_ms": 1e3 * float(np.percentile(times, q)) for q in (50, 95, 99)}
