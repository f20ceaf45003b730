"""A workspace for `Safety`: keeps an observed point in a box. Numpy only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Box:
    """A box for an observed point that actions displace, such as the hand of an arm that is steered by displacements.

    No action, a safe one included, may carry the point past the box, and where the point already lies outside, none may
    carry it further out. Where the point is not known (NaN) no action is allowed. Where an action is a position by
    itself, `SafetyConfig.low` and `high` do the same.
    """

    feature: str = ""  # array of the observation that holds the point
    dimensions: list[int] = field(default_factory=list)  # the point's coordinates in the flat array; empty: no box
    actions: list[int] = field(default_factory=list)  # for each coordinate the action that moves it
    gain: list[float] = field(default_factory=list)  # for each the displacement by an action of 1, not zero
    low: list[float] = field(default_factory=list)  # of the box, in the feature's unit
    high: list[float] = field(default_factory=list)  # of the box, in the feature's unit

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("dimensions", "actions", "gain", "low", "high")}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"a box needs lists of one length, got {lengths}")
        ordered = all(low < high for low, high in zip(self.low, self.high, strict=True))
        if not ordered or not all(0 < abs(gain) < math.inf for gain in self.gain):
            raise ValueError(f"a box needs gains that are not zero and low < high, got {self}")

    def __call__(self, observation: Mapping[str, np.ndarray], action: np.ndarray) -> np.ndarray | None:
        """The action (A,), with the displacements that would leave the box cut short; None: the point is not known."""
        action = action.copy()
        for i, (place, index) in enumerate(zip(self.dimensions, self.actions, strict=True)):
            point = float(observation[self.feature].reshape(-1)[place])
            if not math.isfinite(point):
                return None
            ends = (min(self.low[i] - point, 0.0) / self.gain[i], max(self.high[i] - point, 0.0) / self.gain[i])
            action[index] = min(max(action[index], min(ends)), max(ends))
        return action
