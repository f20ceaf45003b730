"""Whole plans as labels: cut or filled to a length, and which of their actions count."""

from __future__ import annotations

import numpy as np

from ..features import Feature


def stop_of(action: Feature) -> int | None:
    """The choice of dimension 0 that uses no other dimension: to stop, and look again. None: there is none."""
    return action.uses.index(()) if action.uses and () in action.uses else None


def require_stop(action: Feature) -> int:
    """`stop_of`.

    Raises:
        ValueError: no action stops, so that no plan can end.
    """
    stop = stop_of(action)
    if stop is None:
        raise ValueError("a plan ends with an action that uses no dimension but the first, and the action has none")
    return stop


def cut(plan: np.ndarray, horizon: int, action: Feature) -> np.ndarray:
    """Plans (N, T, A) with their first actions only, or filled with stops: (N, horizon, A)."""
    rows, length, size = plan.shape
    filled = np.zeros((rows, max(horizon, length), size), plan.dtype)
    filled[:, length:, 0] = require_stop(action)
    filled[:, :length] = plan
    return filled[:, :horizon]


def counted(plan: np.ndarray, action: Feature) -> np.ndarray:
    """Which actions of plans (N, T, A) mean something, (N, T) bool: up to the first stop, and that one too."""
    stops = plan[..., 0] == require_stop(action)
    return np.cumsum(stops, axis=-1) - stops == 0
