"""Which demonstrations a training or a collection is about."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flowhand.contracts.data.episode import SEED_LIMIT
from flowhand.contracts.strict import whole

SEEDS_PER_COLLECTION = 10_000  # collections with different `seed` share no episode seed


@dataclass
class DataConfig:
    """Which demonstrations to record, and where they are kept."""

    path: str = ""  # store to use, or to write if there is none; empty: a folder in cache_dir named after the recipe
    cache_dir: str = "data/demos"  # relative to the working directory
    episodes: int = 50  # successful episodes to have
    seed: int = 0  # episode seeds count up from seed * 10_000; in [0, 100)
    noise: float = 0.1  # standard deviation of the noise added to the executed action, action units; the label is clean
    after_success: int = 0  # control steps recorded after the first success
    max_attempts_factor: int = 4  # give up when fewer than one in this many attempts succeed
    mirror: bool = False  # learn each recorded demonstration also as in a mirror, where the world's task is symmetric
    workers: int = 1  # processes; the episodes do not depend on it

    def __post_init__(self) -> None:
        limits = {
            "episodes": (1, math.inf),
            "seed": (0, SEED_LIMIT // SEEDS_PER_COLLECTION - 1),
            "noise": (0, math.inf),
            "after_success": (0, math.inf),
            "max_attempts_factor": (1, math.inf),
            "workers": (1, math.inf),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name) if name == "noise" else whole(f"data.{name}", getattr(self, name))
            setattr(self, name, value)
            if not low <= value <= high or not math.isfinite(value):
                raise ValueError(f"data.{name} is {value}: expected a number in [{low}, {high}]")
