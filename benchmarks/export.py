"""Exported policies: how exact they are, and how long a decision takes beside eager torch, on one thread.

    python -m benchmarks.export [--rows N] [--calls C] [--heads flow edm ...] [--nets mlp ...] [--out FILE]

Every head is trained with every net, at default sizes, for a hundred steps on demonstrations of reach-v3: enough that
weights and actions are those of a policy and not of chance. Errors are shares of the action's spread, the largest over
N observations of the expert on held-out seeds at batch sizes 1, 3, 16 and 100: of the graph against eager torch, and,
for scale, of both against the same weights in float64. int8 has its root mean square beside the largest. The programs
take turns in stretches of 20 calls: a disturbance of the machine meets all of them, and none pays for the caches that
another one has filled.

Finished cells stay in outputs/benchmarks/export and are not run again; several processes share the work. ddpm has 10
steps; ddpm100, with the 100 of Diffusion Policy, is run with the MLP alone, because its graph is ten times as large.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import envs
import policies
from benchmarks import cells
from benchmarks.result import write
from conf.verbs.export import ExportConfig
from flowhand.commands.collect import attempt
from flowhand.commands.export import ROWS, export
from flowhand.contracts.export.artifact import Manifest, fingerprint
from flowhand.demos.config import DataConfig
from flowhand.deploy.runner import Runner, load
from policies.device import select_device
from policies.export import tracing
from policies.heads import HEADS

NETS = {
    "mlp": ["net=mlp"],
    "unet1d": ["net=unet1d"],
    "transformer": ["net=transformer"],
    "cross": ["net=transformer", "net.cross_attention=true"],
}
DDPM = ["head=diffusion", "head.sampler=ddpm"]
CASES = {name: [f"head={name}"] for name in HEADS} | {"ddpm": DDPM, "ddpm100": [*DDPM, "head.steps=100"]}
RECIPE = ["env.task=reach-v3", "data.episodes=20", "train.steps=100", "train.batch_size=64", "train.warmup_steps=20"]
FOLDER = Path("outputs/benchmarks/export")
STRETCH = 20  # calls of one program before the next one's turn
Inputs = tuple[dict[str, np.ndarray], np.ndarray]


@lru_cache(maxsize=1)
def held_out(rows: int, history: int, horizon: int) -> dict[str, torch.Tensor]:
    """Observation histories (rows, O, *shape) along the expert's path from held-out starts."""
    episodes, seed = [], 1_000_000
    with closing(envs.make(envs.MetaWorldConfig(task="reach-v3"))) as env:
        spec = env.features
        while sum(map(len, episodes)) < rows:
            episode = attempt(env, DataConfig(noise=0.0, after_success=horizon), seed)
            episodes += [episode] if episode else []
            seed += 1
    windows = policies.Windows(episodes, spec, history, horizon)
    return windows.gather(torch.arange(rows)).observation


def inputs_of(policy: policies.Policy, rows: int) -> dict[str, torch.Tensor]:
    """Held-out observations and noise by the names that an export gives them."""
    seen = held_out(rows, policy.chunk.history, policy.chunk.prediction_horizon)
    noise = torch.randn((rows, *policy.noise_shape), generator=torch.Generator().manual_seed(0))
    return {**{f"observation.{name}": value for name, value in seen.items()}, "noise": noise}


def batches(inputs: dict[str, torch.Tensor]) -> list[Inputs]:
    """The inputs cut into batches of 1, 3, 16, 100, 1, 3 ... rows."""
    rows, cut, start = len(inputs["noise"]), [], 0
    while start < rows:
        part = slice(start, start + ROWS[len(cut) % len(ROWS)])
        observation = {n.removeprefix("observation."): v[part].numpy() for n, v in inputs.items() if n != "noise"}
        cut.append((observation, inputs["noise"][part].numpy()))
        start = part.stop
    return cut


def in_double(policy: policies.Policy, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    """The actions of the same weights in float64."""
    double = copy.deepcopy(policy).double()
    observation = {name: inputs[f"observation.{name}"].double() for name in policy.spec.observation}
    with torch.no_grad():
        parts = zip(*(value.split(100) for value in (*observation.values(), inputs["noise"].double())), strict=True)
        return np.concatenate(
            [double.sample(dict(zip(observation, seen, strict=True)), noise).numpy() for *seen, noise in parts]
        )


def cell(net: str, head: str, rows: int, calls: int) -> dict[str, Any] | None:
    """Parity and latency of one head with one net; None while another process trains it."""
    name = f"{net}-{head}"
    policy = cells.trained(FOLDER, name, cells.configure([*RECIPE, *NETS[net], *CASES[head]], 0))
    if policy is None:
        return None
    policy.requires_grad_(False)
    inputs, started = inputs_of(policy, rows), time.perf_counter()
    options = ExportConfig(rows=rows, tolerance=1.0)  # measure the error, do not judge it
    manifest = export(FOLDER / f"{name}-onnx", policy, inputs, {}, options)
    seconds = time.perf_counter() - started
    exact = load(FOLDER / f"{name}-onnx")
    rounded = int8(manifest, FOLDER / f"{name}-onnx")
    cut, double = batches(inputs), in_double(policy, inputs)
    eager, graph, rough = (np.concatenate([p.plan(*part) for part in cut]) for p in (policy, exact, rounded))
    spread = policy.action_normalizer.scale.numpy()
    planners = {"torch": policy, "fp32": exact, "int8": rounded}
    return {
        "net": net,
        "head": head,
        "evaluations": policy.head.evaluations,
        "rows": rows,
        "export_seconds": round(seconds, 1),
        "max_error": {"fp32": manifest.parity.max_error, "int8": float((np.abs(rough - eager) / spread).max())},
        "int8_rms_error": float(np.sqrt(np.square((rough - eager) / spread).mean())),
        "against_float64": {
            who: float((np.abs(action - double) / spread).max()) for who, action in (("torch", eager), ("fp32", graph))
        },
        "latency_ms": {str(b): speeds(planners, inputs, b, n) for b, n in ((1, calls), (16, max(calls // 4, 1)))},
    }


def int8(manifest: Manifest, path: Path) -> Runner:
    """The export rounded to int8."""
    model = tracing.rounded((path / "policy.onnx").read_bytes())
    files = {**manifest.files, "policy.onnx": fingerprint(model)}
    return Runner(replace(manifest, precision="int8", files=files), model)


def speeds(planners: dict[str, Any], inputs: dict[str, torch.Tensor], batch: int, calls: int) -> dict[str, Any]:
    """Median and 99th percentile of a decision in milliseconds."""
    given = {name: value[:batch].numpy() for name, value in inputs.items()}
    noise = given.pop("noise")
    observation = {name.removeprefix("observation."): value for name, value in given.items()}
    times: dict[str, list[float]] = {name: [] for name in planners}
    while min(map(len, times.values())) < calls:
        for name, planner in planners.items():
            for call in range(STRETCH + 5):  # the first ones bring the weights back into the caches
                start = time.perf_counter()
                planner.plan(observation, noise)
                if call >= 5:
                    times[name].append(1e3 * (time.perf_counter() - start))
    return {name: {f"p{q}": float(np.percentile(t, q)) for q in (50, 99)} for name, t in times.items()}


def told(c: dict[str, Any]) -> str:
    """A cell in one line."""
    medians = ", ".join(f"{n} {t['p50']:.2f} ms" for n, t in c["latency_ms"]["1"].items())
    double = ", ".join(f"{n} {e:.1e}" for n, e in c["against_float64"].items())
    errors = ", ".join(f"{n} {e:.1e}" for n, e in c["max_error"].items())
    return f"{c['net']:12s} {c['head']:12s} error {errors} (float64: {double}); {medians}; {c['export_seconds']} s"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--heads", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    select_device("cpu", 1)
    plan = [(n, h) for n in arguments.nets for h in arguments.heads if h != "ddpm100" or n == "mlp"]
    for net, head in plan:
        with cells.claim(FOLDER / f"{net}-{head}-{arguments.rows}-{arguments.calls}.json") as save:
            if save is not None and (finished := cell(net, head, arguments.rows, arguments.calls)):
                save(finished)
                print(told(finished), flush=True)
    files = [FOLDER / f"{net}-{head}-{arguments.rows}-{arguments.calls}.json" for net, head in plan]
    if missing := [file.stem for file in files if not file.exists()]:
        print(f"at another process, or killed: {', '.join(missing)}; run again for the result")
        return
    found = [json.loads(file.read_text()) for file in files]
    worst = max(c["max_error"]["fp32"] for c in found)
    slowest = min(c["latency_ms"]["1"]["torch"]["p50"] / c["latency_ms"]["1"]["fp32"]["p50"] for c in found)
    about = {"calls": arguments.calls, "recipe": RECIPE, "worst_fp32_error": worst}
    print(write("export", {**about, "least_speedup": slowest, "cells": found}, arguments.out, device="cpu", threads=1))


if __name__ == "__main__":
    main()
