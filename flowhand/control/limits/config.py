"""The limits of commands, as they are set."""

from __future__ import annotations

import math
from dataclasses import dataclass

SAFE_ACTIONS = ("hold", "zero", "vector")


@dataclass
class SafetyConfig:
    """The limits of commands, in action units. A list has one number for all dimensions, or one for each.

    Raises:
        ValueError: a limit that is not positive, an unknown safe action.
    """

    low: list[float] | None = None  # smallest command, beside the checkpoint's own; null: only that
    high: list[float] | None = None  # largest command, beside the checkpoint's own; null: only that
    velocity: list[float] | None = None  # largest change per second; null (or .inf in the list): not limited
    acceleration: list[float] | None = None  # largest change of the velocity per second; null: not limited
    jerk: list[float] | None = None  # largest change of the acceleration per second; null: not limited
    chunk_jump: list[float] | None = None  # largest jump from one chunk to the next; null: not limited
    max_observation_age_s: float | None = 0.1  # refuse what was decided on an older observation; null: any age
    max_chunk_age_s: float | None = None  # refuse actions of a chunk decided longer ago; null: any age
    safe_action: str = "hold"  # after a refusal: hold (brake, stay; see rest) | zero | vector (safe_vector)
    rest: list[float | None] | None = None  # for hold, where a command is a rate: with which the robot stands still
    safe_vector: list[float] | None = None  # the command for safe_action=vector

    def __post_init__(self) -> None:
        for name in ("velocity", "acceleration", "jerk", "chunk_jump"):
            if any(not value > 0 for value in getattr(self, name) or ()):
                raise ValueError(f"safety.{name}={getattr(self, name)} must be positive numbers (.inf: not limited)")
        for name in ("max_observation_age_s", "max_chunk_age_s"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"safety.{name}={getattr(self, name)} must be positive seconds, or null for any age")
        if self.safe_action not in SAFE_ACTIONS:
            raise ValueError(f"safety.safe_action={self.safe_action!r} is unknown; choices: {', '.join(SAFE_ACTIONS)}")
        if (self.safe_action == "vector") != (self.safe_vector is not None):
            raise ValueError("safety.safe_vector belongs to safety.safe_action=vector; give both or neither")
        if not all(value is None or math.isfinite(value) for value in self.rest or ()):
            raise ValueError(f"safety.rest={self.rest} must be finite numbers (null: keep what there is)")
        if self.rest is not None and self.safe_action != "hold":
            raise ValueError(f"safety.rest belongs to safety.safe_action=hold, and that is {self.safe_action}")
