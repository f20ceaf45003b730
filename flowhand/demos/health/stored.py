"""Statistics that a data set stores, or a policy was trained with, against those of the rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..lerobot.dataset import LeRobotDataset
from ..reader import read_json
from .finding import Finding

ALLOWED = 0.01  # standard deviations that a stored mean may be off, and the share that a stored spread may be


def stored_in(data: LeRobotDataset) -> dict[str, Any]:
    """The content of `meta/stats.json`; empty if there is none.

    Raises:
        ValueError: it is no JSON object.
    """
    file = data.meta.root / "meta" / "stats.json"
    return read_json(file) if file.is_file() else {}


def of_lerobot(data: LeRobotDataset, measured: Mapping[str, Mapping[str, np.ndarray]]) -> Iterator[Finding]:
    """Where `meta/stats.json` says something else than the rows.

    Args:
        data: the data set.
        measured: mean, std, min and max (n,) of each feature's rows, by the feature's name.
    """
    try:
        stored = stored_in(data)
    except ValueError as error:
        yield Finding("error", "statistics", str(error), "Compute them again: flowhand convert writes them.")
        return
    for name, values in measured.items():
        found = stored.get(data.columns[name].source)
        if isinstance(found, Mapping) and (text := difference(found, values)):
            advice = "Made from other episodes? flowhand takes those of the rows; other programs take the stored ones."
            yield Finding(
                "warning", "statistics", f"meta/stats.json is not of these rows: {text}", advice, dimension=name
            )


def difference(stored: Mapping[str, Any], measured: Mapping[str, np.ndarray]) -> str:
    """How stored statistics differ most from measured ones, in words; empty where they agree.

    Args:
        stored: values as JSON has them; of mean, std, min and max those that are there.
        measured: arrays (n,) of the four.
    """
    std = measured["std"]
    scale = np.where(std > 0, std, np.maximum(np.abs(measured["mean"]), 1) * 1e-3)
    worst, said = ALLOWED, ""
    for which in ("mean", "std", "min", "max"):
        if which not in stored:
            continue
        try:
            value = np.asarray(stored[which], np.float64).reshape(-1)
        except (TypeError, ValueError):
            return f"its {which} holds no numbers"
        if value.shape != std.shape:
            return f"its {which} has {value.size} values, the rows have {std.size}"
        off = np.abs(value - measured[which]) / scale
        if not np.isfinite(value).all():
            return f"its {which} holds {value[~np.isfinite(value)][0]}"
        if off.max() > worst:
            worst, at = float(off.max()), int(off.argmax())
            said = (
                f"{which} {value[at]:.4g} at dimension {at}, the rows have {measured[which][at]:.4g} "
                f"({worst:.2g} standard deviations off)"
            )
    return said
