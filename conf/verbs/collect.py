"""What can be set of `flowhand collect`."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from envs.base import EnvConfig
from flowhand.demos.config import DataConfig


@dataclass
class CollectRoot:
    """What `flowhand collect` reads."""

    env: EnvConfig = MISSING
    modules: list[str] = field(
        default_factory=list
    )  # packages of yours to import first, which add worlds, encoders, nets, heads
    # checkpoint, run folder or export whose policy acts, while the expert says what it would do in every state; that is
    # what is stored, also of episodes that fail. Empty: the expert acts
    checkpoint: str = ""
    data: DataConfig = field(default_factory=DataConfig)


ROOT = CollectRoot
CHOICES = {"env": "metaworld"}
ABOUT = "Scripted expert -> demonstrations on disk."
EXAMPLES = [
    "flowhand collect env.task=pick-place-v3 data.episodes=50 data.path=demonstrations",
    "flowhand collect env.task=pick-place-v3 checkpoint=runs/my_run data.seed=1 data.path=relabelled",
]
MATTER = (
    "env.task",
    "checkpoint",
    "data.path",
    "data.episodes",
    "data.seed",
    "data.noise",
    "data.workers",
)
