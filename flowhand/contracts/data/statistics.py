"""What the values of a data set are like, from all of its episodes, of which one is held at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from ..features import Spec
from .episode import Episode

QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Of the values of a feature: of each of its dimensions, or, of an image in bytes or 16 bits, of each channel."""

    count: int  # values behind each entry
    mean: np.ndarray  # float64 (n,), as all that follow
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray
    quantiles: np.ndarray  # (len(QUANTILES), n): each a value that occurs

    def without(self, dimensions: np.ndarray) -> FeatureStatistics:
        """The same, as if these dimensions (n,) bool were always zero."""
        names = ("mean", "std", "low", "high", "quantiles")
        return replace(self, **{name: np.where(dimensions, 0.0, getattr(self, name)) for name in names})


Statistics = dict[str, FeatureStatistics]  # by the name of the observation, and "action"


class _Rows:
    """Keeps the rows of a vector until all are there."""

    def __init__(self, width: int):
        self._width, self._parts = width, []

    def add(self, values: np.ndarray) -> None:
        self._parts.append(values.reshape(-1, self._width))

    def result(self) -> FeatureStatistics:
        rows = np.sort(np.concatenate(self._parts).astype(np.float64), axis=0)
        places = [round(q * (len(rows) - 1)) for q in QUANTILES]
        return FeatureStatistics(len(rows), rows.mean(0), rows.std(0), rows[0], rows[-1], rows[places])


class _Counts:
    """Counts how often each value occurs in each channel of an image."""

    def __init__(self, width: int, dtype: str):
        self._values = np.iinfo(dtype).max + 1
        self._counts = np.zeros((width, self._values), np.int64)

    def add(self, values: np.ndarray) -> None:
        for channel, counts in enumerate(self._counts):
            counts += np.bincount(values.reshape(-1, len(self._counts))[:, channel], minlength=self._values)

    def result(self) -> FeatureStatistics:
        values, ends = np.arange(self._values, dtype=np.float64), self._counts.cumsum(1)
        count = int(ends[0, -1])
        mean = self._counts @ values / count
        std = np.sqrt(self._counts @ values**2 / count - mean**2)
        places = [round(q * (count - 1)) for q in (0.0, *QUANTILES, 1.0)]
        ordered = np.array([np.searchsorted(end, places, side="right") for end in ends], np.float64).T
        return FeatureStatistics(count, mean, std, ordered[0], ordered[-1], ordered[1:-1])


def measure(episodes: Iterable[Episode], spec: Spec) -> Statistics:
    """The statistics of all numbers in the episodes; text has none.

    Raises:
        ValueError: there is no episode.
    """
    measured: dict[str, _Rows | _Counts] = {}
    for name, feature in {**spec.observation, "action": spec.action}.items():
        if feature.kind in ("image", "depth") and feature.dtype in ("uint8", "uint16"):
            measured[name] = _Counts(feature.shape[2] if len(feature.shape) == 3 else 1, feature.dtype)
        elif feature.dtype != "str":
            measured[name] = _Rows(feature.size)
    empty = True
    for episode in episodes:
        empty = False
        for name, each in measured.items():
            each.add(episode.action if name == "action" else episode.observation[name])
    if empty:
        raise ValueError("there are no episodes to measure; expected at least one")
    return {name: each.result() for name, each in measured.items()}
