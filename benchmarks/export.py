"""Exported policies: how exact they are, and how long a decision takes beside eager torch, on one thread.

    python -m benchmarks.export [--rows N] [--calls C] [--heads flow edm ...] [--nets mlp ...] [--out FILE]

Nets have their default sizes and random weights; normalizers are fitted to random data. Errors are shares of the
action's spread on N observations: of the graph against eager torch, and, for scale, of eager torch against itself in
float64. The programs take turns call by call, so that a disturbance of the machine meets all of them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import policies
from benchmarks.result import write
from benchmarks.training import FEATURES
from conf.cli import compose
from deploy.artifact import Manifest
from deploy.export import ExportConfig, export, held_out
from deploy.runner import load
from policies.device import select_device
from policies.heads import HEADS

NETS = {
    "mlp": ["net=mlp"],
    "unet1d": ["net=unet1d"],
    "transformer": ["net=transformer"],
    "cross": ["net=transformer", "net.cross_attention=true"],
}
CASES = {name: [f"head={name}"] for name in HEADS} | {"ddpm": ["head=diffusion", "head.sampler=ddpm"]}
BATCHES = (1, 16)


def policy_of(overrides: list[str]) -> policies.Policy:
    """A policy with random weights, small enough that actions stay near their spread, and fitted normalizers."""
    torch.manual_seed(0)
    policy = policies.Policy(compose(overrides).policy, policies.Spec.from_dict(FEATURES))
    data = {name: torch.randn(1000, f.size) for name, f in policy.spec.observation.items()}
    policy.fit_normalizers(data, torch.randn(1000, policy.spec.action.size))
    with torch.no_grad():
        for p in policy.parameters():
            p.copy_(0.5 * torch.randn(p.shape) / p.shape[-1] ** 0.5)
    return policy.eval().requires_grad_(False)


def cell(net: str, head: str, rows: int, calls: int, folder: Path) -> dict[str, Any]:
    """Parity and latency of one head with one net."""
    policy = policy_of([*NETS[net], *CASES[head]])
    names = policy.spec.observation
    golden = {f"observation.{n}": torch.randn(4, policy.chunk.history, *f.shape) for n, f in names.items()}
    golden["noise"] = torch.randn(4, *policy.noise_shape)
    planners: dict[str, Any] = {"torch": policy}
    parity: dict[str, Any] = {}
    for precision in ("fp32", "int8"):
        options = ExportConfig(precision=precision, rows=rows, tolerance=1.0)  # measure the error, do not judge it
        manifest: Manifest = export(folder / precision, policy, golden, {}, options)
        parity[precision] = manifest.parity.max_error
        planners[precision] = load(folder / precision)
    inputs = held_out(policy, golden, ExportConfig(rows=rows))
    latency = {str(batch): speeds(planners, inputs, batch, calls) for batch in BATCHES}
    sample = {name: torch.from_numpy(value) for name, value in inputs.items()}
    observation, noise = {n: sample[f"observation.{n}"] for n in names}, sample["noise"]
    with torch.no_grad():
        single = policy.sample(observation, noise).double()
        double = policy.double().sample({n: v.double() for n, v in observation.items()}, noise.double())
        own = ((single - double) / policy.action_normalizer.scale).abs().max().item()
    evaluations = policy.head.evaluations
    return {"net": net, "head": head, "evaluations": evaluations, "rows": rows, "max_error": parity,
            "torch_against_float64": own, "latency_ms": latency}  # fmt: skip


def speeds(planners: dict[str, Any], inputs: dict[str, np.ndarray], batch: int, calls: int) -> dict[str, Any]:
    """Median and 99th percentile of a decision in milliseconds."""
    observation = {n.removeprefix("observation."): v[:batch] for n, v in inputs.items() if n != "noise"}
    times: dict[str, list[float]] = {name: [] for name in planners}
    for call in range(calls + 20):
        for name, planner in planners.items():
            start = time.perf_counter()
            planner.plan(observation, inputs["noise"][:batch])
            if call >= 20:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: {f"p{q}": float(np.percentile(t, q)) for q in (50, 99)} for name, t in times.items()}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--heads", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    select_device("cpu", 1)
    cells = []
    for net in arguments.nets:
        for head in arguments.heads:
            c = cell(net, head, arguments.rows, arguments.calls, Path("outputs/benchmarks/export") / f"{net}-{head}")
            cells.append(c)
            medians = ", ".join(f"{n} {t['p50']:.2f} ms" for n, t in c["latency_ms"]["1"].items())
            errors = ", ".join(f"{n} {e:.1e}" for n, e in c["max_error"].items())
            print(f"{net:12s} {head:12s} error {errors}; {medians}", flush=True)
    print(write("export", {"threads": 1, "calls": arguments.calls, "cells": cells}, arguments.out))


if __name__ == "__main__":
    main()
