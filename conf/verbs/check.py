"""What can be set of `flowhand check`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flowhand.control.limits.config import SafetyConfig
from flowhand.robots.check.config import CheckConfig


@dataclass
class CheckRoot:
    """What `flowhand check` reads."""

    robot: Any = None  # what is measured (a choice of robot); null: a world in its place, as robot=simulated
    env: Any = None  # the simulated robot's world (a choice of env)
    checkpoint: str = ""  # policy that will control it, with which names, units and ranges are compared; empty: none
    data: str = ""  # demonstrations whose pictures and control period are the reference; empty: none
    modules: list[str] = field(default_factory=list)  # packages of yours to import first, which add robots
    rate_hz: float = 0.0  # control steps per second; 0: the checkpoint's, the data's or the robot's own
    check: CheckConfig = field(default_factory=CheckConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    page: str = ""  # HTML file to write; empty: outputs/check/<date and time>.html


ROOT = CheckRoot
CHOICES = {"robot": None, "env": None}
ABOUT = (
    "A robot -> what is wrong with it before a policy runs: rates, delays, signs, units, limits; exit status 1 if so."
)
EXAMPLES = [
    "flowhand check robot=lerobot robot.type=so101_follower robot.port=/dev/ttyACM0 checkpoint=outputs/arm",
    "flowhand check env=so101",
]
MATTER = (
    "checkpoint",
    "data",
    "rate_hz",
    "check.motion",
    "check.max_delay_s",
    "check.camera_hz",
    "safety.velocity",
    "page",
)
