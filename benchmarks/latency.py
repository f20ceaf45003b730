"""How long one decision takes, against the floor that the machine sets.

    python -m benchmarks.latency [--heads flow-10 ...] [--nets mlp ...] [--batches 1 ...] [--calls C] [--seconds S]
    python -m benchmarks.latency --device cuda [the same]

A decision is normalizer, encoder, head with all its evaluations of the net, and de-normalizer, from and to numpy arrays
as a controller asks for it. Nets have their default sizes and random weights. On a CPU four programs compute it: torch
(eager), `Policy.compile` in fp32 and bf16, and the export to ONNX; where compiling would take minutes, eager alone.
The programs take turns call by call.

The floor (latency_floor.py) is of fp32, from what was measured in the same run: the rate of a matrix product, and the
bandwidth of reading as many bytes as the policy's weights have. Weights of a few megabytes stay in a cache, so this
floor is lower than one from the bandwidth of the memory, which stands beside it in the result.

For CUDA, its programs and its default heads, nets and batches, see latency_cuda.py and DEFAULTS.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import latency_cuda
from benchmarks.latency_floor import LARGE, Machine, work
from benchmarks.latency_turns import random_policy, take_turns
from benchmarks.result import write
from conf.verbs.export import ExportConfig
from flowhand.commands.export import export, held_out
from flowhand.contracts.planner import Planner
from flowhand.deploy.runner import load
from policies import Policy
from policies.device import select_device

HEADS = {
    "flow-1": ["head.steps=1"],
    "flow-4": ["head.steps=4"],
    "flow-10": ["head.steps=10"],
    "regression": ["head=regression"],
    "shortcut-1": ["head=shortcut", "head.steps=1"],
    "ddim-10": ["head=diffusion", "head.sampler=ddim", "head.steps=10"],
    "dpmpp-10": ["head=diffusion", "head.sampler=multistep", "head.steps=10"],
    "edm-19": ["head=edm", "head.steps=10"],
}
NETS = {
    "mlp": ["net=mlp"],
    "unet1d": ["net=unet1d"],
    "transformer": ["net=transformer"],
    "transformer-20m": ["net=transformer", "net.width=512", "net.blocks=4", "net.heads=8"],
}
DEFAULTS: dict[str, tuple[list[str], list[str], list[int]]] = {  # on a device: heads, nets, batch sizes
    "cpu": (list(HEADS), ["mlp", "unet1d", "transformer"], [1, 16, 256]),
    "cuda": (["flow-1", "flow-4", "flow-10"], ["mlp", "unet1d", "transformer-20m"], [1, 4096]),
}
FAST = {*(("mlp", head) for head in ("flow-1", "flow-4", "flow-10", "regression"))}
FAST |= {("unet1d", "flow-10"), ("transformer", "flow-10")}  # the policies that all four programs compute
COMPILED = (1, 16)  # the batch sizes that are compiled

Given = tuple[dict[str, np.ndarray], np.ndarray]  # observation and noise


def planners(policy: Policy, golden: dict[str, torch.Tensor]) -> dict[str, Planner]:
    """The four programs."""
    found: dict[str, Planner] = {"eager": policy}
    for precision in ("fp32", "bf16"):
        compiled = copy.deepcopy(policy)
        compiled.compile(precision)
        found[f"compiled-{precision}"] = compiled
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "onnx"
        export(path, policy, golden, {}, ExportConfig(rows=100, tolerance=1e-3))
        return found | {"onnx": load(path)}


def cells(
    policy: Policy, fast: bool, batches: list[int], machine: Machine, calls: int, seconds: float
) -> Iterator[dict[str, Any]]:
    """One policy at every batch size; only of a fast one all programs."""
    features = policy.spec.observation.items()
    golden = {f"observation.{name}": torch.randn(4, policy.chunk.history, *f.shape) for name, f in features}
    golden["noise"] = torch.randn(4, *policy.noise_shape)
    programs = planners(policy, golden) if fast else {"eager": policy}
    counted = work(policy)
    inputs = held_out(policy, golden, ExportConfig(rows=max(batches)))
    for rows in batches:
        given = {name.removeprefix("observation."): value[:rows] for name, value in inputs.items()}
        noise = given.pop("noise")
        chosen = {n: p for n, p in programs.items() if rows in COMPILED or not n.startswith("compiled")}
        floor_s, bound = machine.floor_s(counted, rows)
        yield {
            "batch": rows,
            "evaluations": policy.head.evaluations,
            "parameters": sum(p.numel() for p in policy.parameters()),
            "weights_read": counted.reads,
            "floor_ms": 1e3 * floor_s,
            "floor_is": bound,
            "programs": measured(chosen, (given, noise), floor_s, machine, calls, seconds),
        }


def measured(
    programs: dict[str, Any], given: Given, floor_s: float, machine: Machine, calls: int, seconds: float
) -> dict[str, Any]:
    """Speed of each program, its multiple of the floor, and its largest difference from eager torch in spreads."""
    turns = {name: partial(planner.plan, *given) for name, planner in programs.items()}
    speeds = take_turns(turns, machine.device, calls, seconds)
    expected = programs["eager"].plan(*given)
    spread = programs["eager"].action_normalizer.scale.numpy()
    for name, speed in speeds.items():
        speed["p50_over_floor"] = speed["p50_ms"] / (1e3 * floor_s)
        speed["max_error"] = float(np.abs((programs[name].plan(*given) - expected) / spread).max())
    return speeds


def told(cell: dict[str, Any]) -> str:
    """A cell in one line: median, 99th percentile and multiple of the floor of each program."""
    programs = [
        f"{name} {p['p50_ms']:.2f} ms (p99 {p['p99_ms']:.2f}, {p['p50_over_floor']:.1f} x, n={p['calls']})"
        for name, p in cell["programs"].items()
    ]
    start = f"batch {cell['batch']:3d}, floor {cell['floor_ms']:7.2f} ms"
    return f"{start} ({cell['floor_is']}): {', '.join(programs)}"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu | cuda | cuda:N")
    parser.add_argument("--heads", nargs="+", choices=HEADS)
    parser.add_argument("--nets", nargs="+", choices=NETS)
    parser.add_argument("--batches", nargs="+", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--calls", type=int, default=1000, help="of a program, at most")
    parser.add_argument("--seconds", type=float, default=2.0, help="for a program, at most")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    machine = Machine(select_device(arguments.device, arguments.threads))
    on_gpu = machine.device.type == "cuda"
    heads, nets, batches = DEFAULTS[machine.device.type]
    limits = (arguments.batches or batches, machine, arguments.calls, arguments.seconds)
    torch.backends.cudnn.allow_tf32 = False  # else convolutions in fp32 are not
    table = []
    for net, head in itertools.product(arguments.nets or nets, arguments.heads or heads):
        policy = random_policy([*NETS[net], *HEADS[head]])
        found = latency_cuda.cells(policy, *limits) if on_gpu else cells(policy, (net, head) in FAST, *limits)
        for cell in found:
            table.append({"net": net, "head": head, **cell})
            print(f"{net:15s} {head:10s} {(latency_cuda.told if on_gpu else told)(cell)}", flush=True)
    content = rates(machine) | {"cells": table}
    print(write("latency", content, arguments.out, device=machine.device, threads=arguments.threads))


def rates(machine: Machine) -> dict[str, Any]:
    """What the machine can do, in GFLOP/s and, of a CPU, GB/s."""
    if machine.device.type == "cuda":
        return {"matmul_gflop_rate": {name: rate / 1e9 for name, rate in machine.rates.items()}}
    machine.bandwidth(LARGE)
    gb_per_s = {str(size): speed / 1e9 for size, speed in machine.bandwidths.items()}
    return {"bandwidth_gb_per_s": gb_per_s, "matmul_gflop_rate": machine.rate() / 1e9}


if __name__ == "__main__":
    main()
