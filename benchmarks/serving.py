"""Many robots on one server: how long each waits for its chunk, and what the wire adds to inference.

    python -m benchmarks.serving [--robots N] [--hz F] [--seconds S] [--batch ROWS] [--requests R] [--out FILE]

The server is `flowhand serve` with the default policy, in a process of its own on the same cores. Each robot
asks for a chunk at every control step of its own clock, whatever became of the last request, so a slow server is not
asked less often. The overhead is measured with a single robot: time of the request as the robot sees it, minus the
time of the inference call as the server measures it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from websockets.asyncio.client import connect

import policies
from benchmarks.result import write
from benchmarks.training import FEATURES
from conf.cli import compose
from flowhand.contracts.features import Spec
from flowhand.contracts.provenance import usable_cores
from flowhand.deploy.client import Client, pack, unpack


def checkpoint(folder: Path) -> Path:
    """A checkpoint of the default policy with random weights."""
    config, spec = compose([]), Spec.from_dict(FEATURES)
    policy = policies.Policy(config.policy, spec)
    data = {name: torch.randn(100, feature.size) for name, feature in spec.observation.items()}
    policy.fit_normalizers(data, torch.randn(100, spec.action.size))
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    source = policies.Provenance({"kind": "toy"}, "toy", "reach", "", [], {}, "", 0)
    golden = {name: torch.randn(1, config.chunk.history, *feature.shape) for name, feature in spec.observation.items()}
    policies.save(folder / "checkpoint", policy, source, golden, {})
    return folder / "checkpoint"


def observation(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random values of the right shapes."""
    features = FEATURES["observation"].items()
    return {name: rng.standard_normal(feature["shape"]).astype(np.float32) for name, feature in features}


def percentiles(milliseconds: list[float]) -> dict[str, float]:
    """Median, 99th percentile and largest."""
    return {f"p{q}_ms": round(float(np.percentile(milliseconds, q)), 3) for q in (50, 99, 100)}


async def robot(uri: str, hz: float, seconds: float, seed: int) -> tuple[list[float], int]:
    """One robot's waiting times in ms, and how many requests were answered with an error."""
    rng = np.random.default_rng(seed)
    milliseconds, errors = [], 0
    async with connect(uri, compression=None, proxy=None, ping_interval=None) as connection:
        await connection.recv()
        phase = random.Random(seed).random() / hz
        start = time.perf_counter() + phase
        for step in range(round(seconds * hz)):
            due = start + step / hz
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await connection.send(pack(observation(rng)))
            answer = await connection.recv()
            milliseconds.append(1e3 * (time.perf_counter() - due))  # waiting for the last answer counts too
            errors += isinstance(answer, str) or unpack(answer)["actions"].shape[0] < 1
    return milliseconds, errors


async def fleet(uri: str, robots: int, hz: float, seconds: float) -> dict[str, Any]:
    """All robots at once."""
    ended = await asyncio.gather(*(robot(uri, hz, seconds, seed) for seed in range(robots)))
    waits = [wait for milliseconds, _ in ended for wait in milliseconds]
    late = sum(wait > 1e3 / hz for wait in waits)
    errors = sum(count for _, count in ended)
    return {"requests": len(waits), **percentiles(waits), "later_than_the_period": late, "errors": errors}


def overhead(uri: str, requests: int) -> dict[str, Any]:
    """What a single robot waits beyond inference."""
    rng = np.random.default_rng(0)
    waits, infers = [], []
    with closing(Client(uri, timeout_s=10)) as client:
        for number in range(requests + 50):
            seen = observation(rng)
            start = time.perf_counter()
            answer = client.infer(seen)
            if number >= 50:
                waits.append(1e3 * (time.perf_counter() - start))
                infers.append(answer["policy_timing"]["infer_ms"])
    over = [wait - infer for wait, infer in zip(waits, infers, strict=True)]
    return {"requests": requests, "infer": percentiles(infers), "overhead": percentiles(over)}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--robots", type=int, default=64)
    parser.add_argument("--hz", type=float, default=10.0, help="requests of each robot per second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--batch", type=int, default=16, help="rows of an inference call")
    parser.add_argument("--requests", type=int, default=2000, help="of the single robot")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint(Path(folder))
        for name, rows in (("fleet", arguments.batch), ("single", 1)):
            words = [f"checkpoint={path}", "device=cpu", "threads=1", "port=0", f"inference_batch={rows}"]
            words += ["max_connections=1000", "max_connections_each=1000", "max_request_hz=100000"]
            command = [sys.executable, "-m", "flowhand", "serve", *words]
            environment = {variable: value for variable, value in os.environ.items() if variable != "FLOWHAND_API_KEY"}
            server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
            assert server.stdout is not None
            uri = server.stdout.readline().split()[4]
            if name == "fleet":
                results[name] = asyncio.run(fleet(uri, arguments.robots, arguments.hz, arguments.seconds))
            else:
                results[name] = overhead(uri, arguments.requests)
            print(name, results[name], flush=True)
            server.terminate()
            results[name]["exit_status"] = server.wait(30)
    settings = {"robots": arguments.robots, "hz": arguments.hz, "seconds": arguments.seconds, "batch": arguments.batch}
    content = {**settings, "cores": usable_cores(), "results": results}
    print(write("serving", content, arguments.out, device="cpu", threads=1))


if __name__ == "__main__":
    main()
