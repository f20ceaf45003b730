"""Statistics of a set that grows, from those of its episodes, put together as LeRobot does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

Stats = Mapping[str, Any]  # of one feature: min, max, mean, std, count and q01 to q99, as nested lists or arrays


def joined(parts: Iterable[Stats]) -> dict[str, Any]:
    """The statistics of several parts of the rows of a feature as those of all.

    Means and spreads are those of all rows. Quantiles are the means of the parts', weighted by their rows: LeRobot
    keeps no more (lerobot 0.6.1, datasets/compute_stats.py).
    """
    arrays = [{name: np.asarray(value, np.float64) for name, value in part.items()} for part in parts]
    if len(arrays) == 1:
        return _lists(arrays[0])
    counts = np.stack([part["count"] for part in arrays])
    means = np.stack([part["mean"] for part in arrays])
    weights = (counts / counts.sum(0)).reshape(len(arrays), *[1] * (means.ndim - 1))
    mean = (weights * means).sum(0)
    spreads = np.stack([part["std"] for part in arrays]) ** 2 + (means - mean) ** 2
    found: dict[str, Any] = {
        "min": np.min([part["min"] for part in arrays], axis=0),
        "max": np.max([part["max"] for part in arrays], axis=0),
        "mean": mean,
        "std": np.sqrt((weights * spreads).sum(0)),
        "count": counts.sum(0),
    }
    quantiles = [name for name in arrays[0] if name.startswith("q") and all(name in part for part in arrays)]
    found |= {name: (weights * np.stack([part[name] for part in arrays])).sum(0) for name in quantiles}
    return _lists(found)


def of_episode(row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The statistics in an episode's row of the table of episodes, by column."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in row.items():
        if key.startswith("stats/") and value is not None:
            column, _, name = key.removeprefix("stats/").rpartition("/")
            found.setdefault(column, {})[name] = value
    return found


def _lists(found: Mapping[str, Any]) -> dict[str, Any]:
    return {k: (v.astype(np.int64) if k == "count" else v).tolist() for k, v in found.items()}
