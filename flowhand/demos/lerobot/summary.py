"""Statistics as LeRobot keeps them: of each feature, for each episode and for all."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowhand.contracts.data.statistics import QUANTILES, FeatureStatistics

NAMES = ("min", "max", "mean", "std", "q01", "q10", "q50", "q90", "q99")


def of_rows(values: np.ndarray) -> dict[str, np.ndarray]:
    """Of the rows (N, ...) of one episode."""
    rows = values.astype(np.float64)
    found = [rows.min(0), rows.max(0), rows.mean(0), rows.std(0), *np.quantile(rows, QUANTILES, axis=0)]
    return {**dict(zip(NAMES, found, strict=True)), "count": np.array([len(values)])}


def of_statistics(found: FeatureStatistics, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Of all rows of this shape, as `gathered` gives them."""
    values = (found.low, found.high, found.mean, found.std, *found.quantiles)
    shaped = {name: value.reshape(shape) for name, value in zip(NAMES, values, strict=True)}
    return {**shaped, "count": np.array([found.count])}


class GreyLevels:
    """Counts the levels of images (N, H, W, C), so that all statistics are exact.

    Args:
        channels: C.
        levels: how many there are: 256 of a colour, 65536 of depth.
        unit: the level that is written as 1; LeRobot has colours from 0 to 1.
    """

    def __init__(self, channels: int, levels: int = 256, unit: float = 255.0):
        self.counts, self.frames, self.unit = np.zeros((channels, levels), np.int64), 0, unit

    def add(self, images: np.ndarray) -> None:
        """Counts these images too."""
        for channel, counts in enumerate(self.counts):
            values = images.reshape(-1, len(self.counts))[:, channel]
            counts += np.bincount(values, minlength=self.counts.shape[1])
        self.frames += len(images)

    def merge(self, other: GreyLevels) -> None:
        """Counts what the other has counted."""
        self.counts += other.counts
        self.frames += other.frames

    def summary(self) -> dict[str, np.ndarray]:
        """Each statistic as (C, 1, 1), and the number of frames."""
        levels, total = np.arange(self.counts.shape[1]) / self.unit, self.counts.sum(1)
        mean = self.counts @ levels / total
        std = np.sqrt(np.maximum(self.counts @ levels**2 / total - mean**2, 0))
        ends = self.counts.cumsum(1)
        low = [levels[np.argmax(end > 0)] for end in ends]
        high = [levels[np.argmax(end == n)] for end, n in zip(ends, total, strict=True)]
        quantiles = [[levels[np.argmax(end >= q * n)] for end, n in zip(ends, total, strict=True)] for q in QUANTILES]
        found = [np.array(low), np.array(high), mean, std, *map(np.array, quantiles)]
        shaped = {name: value.reshape(-1, 1, 1) for name, value in zip(NAMES, found, strict=True)}
        return {**shaped, "count": np.array([self.frames])}


def as_lists(summary: dict[str, np.ndarray]) -> dict[str, Any]:
    """The same in nested lists, as JSON has it."""
    return {name: value.tolist() for name, value in summary.items()}
