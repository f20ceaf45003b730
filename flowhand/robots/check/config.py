"""How a robot is measured, and what counts as a fault."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class CheckConfig:
    """The motions of the check, and its limits."""

    still_s: float = 2.0  # for so long nothing is commanded at first, in seconds
    motion: float = 0.1  # how far each dimension is moved and back, share of its range; 0: nothing is commanded
    ramp_s: float = 0.8  # time for the way there, and for the way back, in seconds
    rest_s: float = 0.5  # between two ways, in seconds
    max_delay_s: float = 0.2  # longest time from a command until the robot has done it
    max_age_s: float = 0.1  # largest age of an observation, as in safety.max_observation_age_s
    least_rate: float = 0.75  # share of the control rate that the loop, the states and every camera must reach
    camera_hz: float = 0.0  # rate of the cameras, where it is lower than that of control; 0: that of control

    def __post_init__(self) -> None:
        for name in ("still_s", "ramp_s", "rest_s", "max_delay_s", "max_age_s"):
            if not 0 < getattr(self, name) <= 60:
                raise ValueError(f"check.{name}={getattr(self, name)} must lie in (0, 60] seconds")
        if not 0 <= self.motion <= 0.5:
            raise ValueError(f"check.motion={self.motion} must lie in 0..0.5, a share of the range")
        if not 0 < self.least_rate <= 1 or self.camera_hz < 0:
            raise ValueError(f"check.least_rate={self.least_rate} must lie in (0, 1], check.camera_hz be 0 or more")
