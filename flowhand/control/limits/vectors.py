"""Numbers of a command, one for each dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def _spread(name: str, values: Sequence[float] | np.ndarray | None, size: int, missing: float) -> np.ndarray:
    """The values as (A,) float64, one for all or one each; `missing` where there are none."""
    array = vector([missing] if values is None else values).reshape(-1)
    if array.size not in (1, size) or np.isnan(array).any():
        text = " ".join(str(values).split())
        raise ValueError(f"{name} is {text}: expected one number for all dimensions, or one for each of {size}")
    return np.broadcast_to(array, (size,)).copy()


def vector(values: Any) -> np.ndarray:
    """The values as float64, copied, of whatever shape; empty where they are no real numbers."""
    try:
        array = np.asarray(values)
        with np.errstate(all="ignore"):  # what becomes infinite is refused as that
            return array.astype(np.float64) if array.dtype.kind in "biufO" else np.empty(0)
    except Exception:  # of any kind: to become an array is a method of theirs
        return np.empty(0)
