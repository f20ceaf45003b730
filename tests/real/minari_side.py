"""Run by a Python with minari: its own collector records an environment.

python minari_side.py write FOLDER WRITTEN.npz
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np


class Toy(gymnasium.Env[Any, Any]):
    """A world of a vector, a picture and a random walk."""

    observation_space = gymnasium.spaces.Dict(
        {
            "pose": gymnasium.spaces.Box(-10, 10, (3,), np.float64),
            "eye": gymnasium.spaces.Box(0, 255, (16, 24, 3), np.uint8),
        }
    )
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode."""
        super().reset(seed=seed)
        self.steps = 0
        return self._seen(), {"success": False}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One control step."""
        self.steps += 1
        done = self.steps >= 11
        return self._seen(), float(self.steps), done, False, {"success": done}

    def _seen(self) -> dict[str, np.ndarray]:
        colour = self.np_random.integers(0, 256, 3, np.uint8)
        return {"pose": self.np_random.normal(size=3), "eye": np.broadcast_to(colour, (16, 24, 3)).copy()}


def write(folder: Path, kept: Path) -> None:
    """Three episodes, and what minari gives of them when it opens its own file."""
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    env = minari.DataCollector(Toy(), record_infos=True, data_format="hdf5")
    for seed in (3, 5, 8):
        env.reset(seed=seed)
        done, random = False, np.random.default_rng(seed)
        while not done:
            *_, done, _, _ = env.step(random.uniform(-1, 1, 2).astype(np.float32))
    env.create_dataset(dataset_id="toy/walk-v0", algorithm_name="random", code_permalink="-", author="-",
                       author_email="-")  # fmt: skip
    held: dict[str, np.ndarray] = {}
    for number, episode in enumerate(minari.load_dataset("toy/walk-v0").iterate_episodes()):
        held |= {f"{number}/{name}": np.asarray(values) for name, values in episode.observations.items()}
        held |= {f"{number}/action": episode.actions, f"{number}/reward": episode.rewards}
    np.savez(kept, **held)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    write(Path(sys.argv[2]), Path(sys.argv[3]))
