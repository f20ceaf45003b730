"""The noise of a decision: a function of the noise seed, the episode's seed and the decision's number alone."""

from __future__ import annotations

from typing import SupportsIndex

import numpy as np

from .strict import whole


def generator(noise_seed: SupportsIndex, seed: SupportsIndex, decision: int, stream: int = 0) -> np.random.Generator:
    """Random numbers of a decision (counter-based: Philox).

    Args:
        noise_seed: in [0, 2^32); another value gives another draw of everything.
        seed: of the episode, in [0, 2^32).
        decision: its number in the episode, from 0 on.
        stream: 0 is the noise from which a chunk is generated; others are independent of it.

    Raises:
        ValueError: a seed that is no integer or out of range.
    """
    seeds = {"noise_seed": whole("noise_seed", noise_seed), "seed": whole("seed", seed)}
    for name, value in seeds.items():
        if not 0 <= value < 2**32:
            raise ValueError(f"{name}={value} must lie in [0, 2^32)")
    key = np.array([(seeds["noise_seed"] << 32) + seeds["seed"], decision], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, stream]))


def noise(noise_seed: SupportsIndex, seed: SupportsIndex, decision: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal noise (*shape,) float32 of a decision."""
    return generator(noise_seed, seed, decision).standard_normal(shape, np.float32)
