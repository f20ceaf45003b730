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
    data: DataConfig = field(default_factory=DataConfig)


ROOT = CollectRoot
CHOICES = {"env": "metaworld"}
ABOUT = "Scripted expert -> demonstrations on disk."
EXAMPLES = ["flowhand collect env.task=pick-place-v3 data.episodes=50 data.path=demonstrations"]
MATTER = ("env.task", "data.path", "data.episodes", "data.seed", "data.noise", "data.workers")
