"""What can be set of `flowhand calibrate`."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from envs.base import EnvConfig
from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.strict import whole_numbers
from flowhand.demos.config import DataConfig
from policies.monitor.calibrated import MonitorConfig


@dataclass
class CalibrateRoot:
    """What `flowhand calibrate` reads."""

    checkpoint: str = MISSING  # folder of a checkpoint, or of the run that wrote it
    calibration: MonitorConfig = field(default_factory=MonitorConfig)
    env: EnvConfig | None = None  # another world than the checkpoint's own
    modules: list[str] = field(
        default_factory=list
    )  # packages of yours to import first, which add worlds, encoders, nets, heads
    data: DataConfig | None = None  # how its demonstrations were collected; None: as its training state says
    episodes: int = 200  # to roll out undisturbed; the successful ones calibrate
    seed: int = 3_000_000  # of the first; below lie demonstrations, evaluation (1,000,000) and control (2,000,000)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)  # as the robot will have it, delay included
    noise_seed: int = 0  # another value draws other noise for the same start states
    n_envs: int = 4  # simulations side by side; does not change any score
    workers: str = "process"  # process (one per CPU core) | inline; does not change any score
    stop_at_success: bool = True  # end an episode at its first success, as the robot will

    def __post_init__(self) -> None:
        whole_numbers(self)
        if self.episodes < 1 or self.n_envs < 1:
            raise ValueError("episodes and n_envs must be at least 1")
        if not 3_000_000 <= self.seed < 2**32 - self.episodes:
            raise ValueError(f"seed={self.seed} must be 3000000 or more, where nothing else draws, and below 2^32")
        if self.workers not in ("process", "inline"):
            raise ValueError(f"workers={self.workers!r} is unknown; choices: process, inline")


ROOT = CalibrateRoot
CHOICES = {"env": None}
ABOUT = "Checkpoint -> a monitor with a promised rate of false alarms, stored in the checkpoint."
EXAMPLES = ["flowhand calibrate checkpoint=outputs/demo calibration.alpha=0.05 episodes=200"]
MATTER = (
    "checkpoint",
    "calibration.alpha",
    "calibration.confidence",
    "calibration.scores",
    "episodes",
    "execution.mode",
    "execution.delay",
    "n_envs",
)
