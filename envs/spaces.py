"""Spaces of Gymnasium and features, each made from the other.

An action space of any parts becomes one vector: continuous numbers and the indices of choices, side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple

from flowhand.contracts.features import Feature

Leaf = Box | Discrete | MultiDiscrete | MultiBinary


class ActionVector:
    """The actions of a space as float32 vectors (A,): its parts in Gymnasium's order, each flattened.

    Boxes of floating-point numbers, Discrete, MultiDiscrete, MultiBinary, and Dicts and Tuples of these. A choice is
    its index, from 0 on, wherever the space itself starts to count.

    Raises:
        ValueError: a part of another kind, or with a single choice.
    """

    def __init__(self, space: Space):
        self.space = space
        leaves = list(_leaves(space))
        self.choices = [n for leaf in leaves for n in _choices(leaf)]
        if 1 in self.choices:
            raise ValueError(f"the action space {space} has a part with a single choice; leave it out of the space")
        low = np.concatenate([leaf.low.ravel() if isinstance(leaf, Box) else np.zeros(_size(leaf)) for leaf in leaves])
        high = [leaf.high.ravel() if isinstance(leaf, Box) else np.array(_choices(leaf)) - 1 for leaf in leaves]
        self.low, self.high = low.astype(float), np.concatenate(high).astype(float)

    @property
    def feature(self) -> Feature:
        """Its description; `choices` only where there are any."""
        choices = tuple(self.choices) if any(self.choices) else None
        bounds = known_bounds(self.low), known_bounds(self.high)
        return Feature((len(self.choices),), "float32", "unknown", *bounds, choices)

    def native(self, vector: np.ndarray) -> Any:
        """The vector (A,) as an element of the space.

        Raises:
            ValueError: a value that is no index of a choice.
        """
        for dimension, (n, value) in enumerate(zip(self.choices, vector.tolist(), strict=True)):
            if n and value not in range(n):
                raise ValueError(f"action dimension {dimension} is {value}, expected one of its choices 0 to {n - 1}")
        return _native(self.space, vector)


class FeatureSpace(Box):
    """The arrays of a feature, whose choices are whole numbers."""

    def __init__(self, feature: Feature):
        low, high = feature.bounds()
        super().__init__(low, high, feature.shape, low.dtype.type)
        self._chosen = feature.discrete.reshape(feature.shape)
        self._counts = np.array([n for n in feature.choices or () if n], np.int64)

    def sample(self, mask: None = None, probability: None = None) -> np.ndarray:
        """A random element."""
        value = super().sample(mask, probability)
        value[self._chosen] = self.np_random.integers(self._counts)
        return value

    def contains(self, x: Any) -> bool:
        """Whether it is an element."""
        return super().contains(x) and bool((np.mod(np.asarray(x)[self._chosen], 1) == 0).all())


def known_bounds(bound: np.ndarray) -> tuple[float, ...] | None:
    """The bounds as a feature has them, None where one of them is infinite."""
    return tuple(bound.ravel().astype(float).tolist()) if np.isfinite(bound).all() else None


def _leaves(space: Space) -> Iterator[Leaf]:
    if isinstance(space, Dict | Tuple):
        for part in space.spaces.values() if isinstance(space, Dict) else space.spaces:
            yield from _leaves(part)
    elif not isinstance(space, Leaf) or (isinstance(space, Box) and not np.issubdtype(space.dtype, np.floating)):
        raise ValueError(
            f"the action space has the part {space}; expected a Box of floating-point numbers, Discrete, "
            "MultiDiscrete, MultiBinary, or a Dict or Tuple of these"
        )
    else:
        yield space


def _choices(leaf: Leaf) -> list[int]:
    """Number of choices of each of the leaf's values; 0: continuous."""
    if isinstance(leaf, Discrete):
        return [int(leaf.n)]
    if isinstance(leaf, MultiDiscrete):
        return [int(n) for n in leaf.nvec.ravel()]
    return [2 if isinstance(leaf, MultiBinary) else 0] * math.prod(leaf.shape)


def _size(space: Space) -> int:
    return sum(len(_choices(leaf)) for leaf in _leaves(space))


def _native(space: Space, vector: np.ndarray) -> Any:
    if isinstance(space, Dict | Tuple):
        parts = space.spaces if isinstance(space, Dict) else dict(enumerate(space.spaces))
        ends = np.cumsum([_size(part) for part in parts.values()])
        values = np.split(vector, ends[:-1])
        native = {key: _native(part, value) for (key, part), value in zip(parts.items(), values, strict=True)}
        return native if isinstance(space, Dict) else tuple(native.values())
    if isinstance(space, Discrete):
        return space.start + space.dtype.type(vector[0])
    shaped = vector.astype(space.dtype).reshape(space.shape)
    return shaped + space.start if isinstance(space, MultiDiscrete) else shaped
