"""What can be set of `flowhand control`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from flowhand.contracts.execution import ExecutionConfig
from flowhand.control.limits.config import SafetyConfig
from flowhand.control.limits.workspace import Box
from flowhand.control.runtime_config import RuntimeConfig

from ..sampling import SamplingConfig


@dataclass
class ControlRoot:
    """What `flowhand control` reads."""

    checkpoint: str = MISSING  # folder of a checkpoint, of the run that wrote it, or of an export (format=onnx)
    monitor: bool = False  # let the checkpoint's calibrated monitor watch; runtime.on_alarm says what an alarm does
    head: SamplingConfig = field(default_factory=SamplingConfig)  # how a checkpoint's head samples, e.g. head.steps=10
    robot: Any = None  # what is controlled (a choice of robot); null: a world in its place, as robot=simulated
    env: Any = None  # the simulated robot's world (a choice of env); another one than the checkpoint's own
    modules: list[str] = field(
        default_factory=list
    )  # packages of yours to import first, which add robots, worlds, encoders, nets, heads
    seconds: float = 60.0  # to control for, in all episodes together
    rate_hz: float = 0.0  # control steps per second; 0: the checkpoint's own; another one is a load test
    seed: int = 2_000_000  # of the first episode's start state and noise; every further episode takes the next
    task: str = ""  # what a policy is told that knows several tasks; empty: the text of the robot's world
    source: str = ""  # whose statistics to take, of a policy that learned from several sets; empty: the task's own
    stop_at_success: bool = True  # end an episode at its first success
    asynchronous: bool = True  # decide beside the control, so that no control step waits for a decision
    noise_seed: int = 0  # another value draws other noise for the same seeds
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    workspace: Box = field(default_factory=Box)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    device: str = "cpu"  # auto (cuda if there is one) | cpu | cuda | cuda:N
    journal: str = ""  # file to write; empty: outputs/deploy/<date and time>.journal
    view: bool = False  # show it live in a browser tab, on this machine only; its address is printed on stderr
    view_port: int = 0  # port of the live view; 0: a free one

    def __post_init__(self) -> None:
        if not self.seconds > 0 or not 0 <= self.rate_hz < float("inf"):
            raise ValueError(f"seconds={self.seconds} must be positive, and rate_hz={self.rate_hz} 0 or positive")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} must lie in [0, 2^32)")


ROOT = ControlRoot
CHOICES = {"robot": None, "env": None}
ABOUT = "Checkpoint or export -> a robot, or a simulated one, controlled in real time, with safety and a journal."
EXAMPLES = [
    "flowhand control checkpoint=outputs/demo seconds=60 safety.velocity=[5]",
    "flowhand control checkpoint=outputs/arm robot=lerobot robot.type=so101_follower robot.port=/dev/ttyACM0",
]
MATTER = (
    "checkpoint",
    "monitor",
    "seconds",
    "seed",
    "execution.mode",
    "execution.execution_horizon",
    "safety.velocity",
    "safety.acceleration",
    "runtime.on_alarm",
    "journal",
)
