"""What can be set of `flowhand replay`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from flowhand.control.limits.config import SafetyConfig
from flowhand.control.limits.workspace import Box
from flowhand.control.runtime_config import RuntimeConfig


@dataclass
class ReplayRoot:
    """What `flowhand replay` reads."""

    where: str = MISSING  # folder or file with demonstrations, or OWNER/NAME of a data set on the Hugging Face hub
    episode: int = 0  # that is played
    env: Any = None  # the world in which it is played (a choice of env)
    robot: Any = None  # the robot on which it is played (a choice of robot); null: the world
    modules: list[str] = field(default_factory=list)  # packages of yours to import first, which add robots and worlds
    # largest difference to the recorded states that is none, in their units; in a world 0.0001 unless given, on a robot
    # none is judged unless given
    tolerance: float = 0.0
    seed: int = -1  # of the world's start state; -1: the recorded one, or the recorded first state
    approach_s: float = 3.0  # a robot is first moved to where the episode begins, in so long, seconds; 0: it is not
    rate_hz: float = 0.0  # control steps per second, where the files do not say; 0: what they say
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    workspace: Box = field(default_factory=Box)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        for name in ("tolerance", "approach_s", "rate_hz"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or positive")


ROOT = ReplayRoot
CHOICES = {"env": None, "robot": None}
ABOUT = "A recorded episode -> its actions again, in a world or on a robot; exit status 1 if they lead elsewhere."
EXAMPLES = [
    "flowhand replay where=data/reach episode=3 env=metaworld env.task=reach-v3",
    "flowhand replay where=data/monday robot=lerobot robot.type=so101_follower safety.velocity=[30]",
]
MATTER = ("where", "episode", "tolerance", "approach_s", "seed", "safety.velocity")
