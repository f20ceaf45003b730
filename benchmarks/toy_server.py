"""A policy in a few lines of numpy, and a server of it that starts at once: for tests and benchmarks of the wire.

    python -m benchmarks.toy_server [NAME=VALUE ...]     (fields of ServerConfig, and sleep_ms)

Prints the port. The key, if there is to be one, stands in FLOWHAND_API_KEY.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import fields

import numpy as np

from flowhand.contracts.features import ChunkConfig, Feature, Spec
from flowhand.contracts.planner import NOTHING, PrefixArrays
from flowhand.deploy.server.config import ServerConfig
from flowhand.deploy.server.server import PolicyServer


class ToyPolicy:
    """Three joint positions and an 8 x 8 camera image in, chunks of two velocities out; `sleep_s` per call.

    The action of a row is the noise plus the weighted sum of that row's observations: easy to predict in a test.
    """

    continues = NOTHING

    def __init__(self, sleep_s: float = 0.0, history: int = 2):
        observation = {"joints": Feature((3,), "float32", "rad"), "camera": Feature((8, 8, 3), "uint8", "")}
        action = Feature((2,), "float32", "rad/s")
        self.spec = Spec(observation, action, control_dt_s=0.05)
        self.chunk = ChunkConfig(history=history, prediction_horizon=8, execution_horizon=2)
        self.noise_shape: tuple[int, ...] = (8, 2)
        self.sleep_s = sleep_s

    def plan(
        self, observation: Mapping[str, np.ndarray], noise: np.ndarray, prefix: PrefixArrays | None = None
    ) -> np.ndarray:
        """Chunks (B, 8, 2)."""
        time.sleep(self.sleep_s)
        weights = np.arange(1, self.chunk.history + 1, dtype=np.float32)
        joints = (observation["joints"].sum(2) * weights).sum(1)
        camera = (observation["camera"].astype(np.float32).mean((2, 3, 4)) * weights).sum(1)
        return noise + (joints + camera)[:, None, None]


def main() -> None:
    """Entry point."""
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    policy = ToyPolicy(float(given.pop("sleep_ms", "0")) / 1e3)
    kinds = {f.name: {"int": int, "float": float}.get(str(f.type), str) for f in fields(ServerConfig)}
    config = ServerConfig(**{"port": 0, **{name: kinds[name](value) for name, value in given.items()}})
    server = PolicyServer(policy, config, os.environ.get("FLOWHAND_API_KEY"))
    asyncio.run(server.run(lambda port: print(port, flush=True)))


if __name__ == "__main__":
    main()
