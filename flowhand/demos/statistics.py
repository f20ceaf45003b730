"""Statistics of recorded rows: streamed moments and exact quantiles in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
MOST_BYTES = 2**28  # of values that are held at once for the quantiles


@dataclass(frozen=True)
class FeatureStatistics:
    """Of one feature; each array is float64 of the feature's shape."""

    count: int  # rows
    mean: np.ndarray
    std: np.ndarray  # of the population
    min: np.ndarray
    max: np.ndarray
    q01: np.ndarray  # quantiles of the rows, linear between neighbours
    q10: np.ndarray
    q50: np.ndarray
    q90: np.ndarray
    q99: np.ndarray


Statistics = dict[str, FeatureStatistics]


class _Moments:
    """Count, mean and sum of squared deviations, merged one block after the other (Chan's update)."""

    def __init__(self, size: int):
        self.count, self.mean, self.squares = 0, np.zeros(size), np.zeros(size)
        self.min, self.max = np.full(size, np.inf), np.full(size, -np.inf)

    def add(self, rows: np.ndarray) -> None:
        n = len(rows)
        mean = rows.mean(0)
        total, gap = self.count + n, mean - self.mean
        self.squares += ((rows - mean) ** 2).sum(0) + gap**2 * (self.count * n / total)
        self.mean += gap * (n / total)
        self.min, self.max = np.minimum(self.min, rows.min(0)), np.maximum(self.max, rows.max(0))
        self.count = total


def gathered(
    passes: Callable[[], Iterable[Mapping[str, np.ndarray]]], shapes: Mapping[str, tuple[int, ...]], rows: int
) -> Statistics:
    """Statistics of the rows that each call of `passes` gives again.

    Args:
        passes: gives blocks {name: (n, *shape)}, the same at each call.
        shapes: of one row of each feature.
        rows: how many there are in all.
    """
    dimensions = [(name, i) for name, shape in shapes.items() for i in range(math.prod(shape))]
    at_once = max(1, MOST_BYTES // (8 * max(1, rows)))
    moments = {name: _Moments(math.prod(shape)) for name, shape in shapes.items()}
    quantiles: dict[tuple[str, int], np.ndarray] = {}
    for first in range(0, len(dimensions), at_once):
        group = dimensions[first : first + at_once]
        held, filled = np.empty((len(group), rows)), 0
        for block in passes():
            flat = {name: block[name].reshape(len(block[name]), -1).astype(np.float64) for name in shapes}
            n = len(next(iter(flat.values())))
            if not first:
                for name, values in flat.items():
                    moments[name].add(values)
            for place, (name, i) in enumerate(group):
                held[place, filled : filled + n] = flat[name][:, i]
            filled += n
        for place, dimension in enumerate(group):
            quantiles[dimension] = np.quantile(held[place, :filled], QUANTILES, overwrite_input=True)
    return {name: _finished(moments[name], name, shape, quantiles) for name, shape in shapes.items()}


def _finished(
    moments: _Moments, name: str, shape: tuple[int, ...], quantiles: Mapping[tuple[str, int], np.ndarray]
) -> FeatureStatistics:
    found = np.array([quantiles[name, i] for i in range(math.prod(shape))])
    std = np.sqrt(moments.squares / moments.count)
    arrays = (moments.mean, std, moments.min, moments.max, *found.T)
    return FeatureStatistics(moments.count, *(values.reshape(shape) for values in arrays))
