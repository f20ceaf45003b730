"""Statistics of recorded rows: streamed moments and true quantiles, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from flowhand.contracts.data.statistics import QUANTILES, FeatureStatistics, Statistics

MOST_BYTES = 2**28  # of values that are held at once for the quantiles


class _Moments:
    """Count, mean and sum of squared deviations, merged one block after the other (Chan's update)."""

    def __init__(self, size: int):
        self.count, self.mean, self.squares = 0, np.zeros(size), np.zeros(size)
        self.low, self.high = np.full(size, np.inf), np.full(size, -np.inf)

    def add(self, rows: np.ndarray) -> None:
        n = len(rows)
        mean = rows.mean(0)
        total, gap = self.count + n, mean - self.mean
        self.squares += ((rows - mean) ** 2).sum(0) + gap**2 * (self.count * n / total)
        self.mean += gap * (n / total)
        self.low, self.high = np.minimum(self.low, rows.min(0)), np.maximum(self.high, rows.max(0))
        self.count = total

    def with_quantiles(self, quantiles: np.ndarray) -> FeatureStatistics:
        std = np.sqrt(self.squares / self.count)
        return FeatureStatistics(self.count, self.mean, std, self.low, self.high, quantiles)


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
    quantiles = {name: np.empty((len(QUANTILES), math.prod(shape))) for name, shape in shapes.items()}
    places = [round(q * (rows - 1)) for q in QUANTILES]
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
        for place, (name, i) in enumerate(group):
            held[place].partition(places)
            quantiles[name][:, i] = held[place, places]
    return {name: each.with_quantiles(quantiles[name]) for name, each in moments.items()}
