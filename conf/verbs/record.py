"""What can be set of `flowhand record`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flowhand.contracts.data.episode import SEED_LIMIT
from flowhand.contracts.execution import ExecutionConfig
from flowhand.control.limits.config import SafetyConfig
from flowhand.control.limits.workspace import Box
from flowhand.control.runtime_config import RuntimeConfig
from flowhand.demos.recording.config import RecorderConfig
from flowhand.robots.acting.takeover import TakeOverConfig

from ..sampling import SamplingConfig

REAL_TIME, KEEP = ("auto", "yes", "no"), ("success", "all")


@dataclass
class RecordDataConfig(RecorderConfig):
    """Where the recording goes, and how it is written."""

    path: str = ""  # folder of the set; one that is there is extended, where these episodes fit


@dataclass
class RecordRoot:
    """What `flowhand record` reads."""

    data: RecordDataConfig = field(default_factory=RecordDataConfig)
    env: Any = None  # the world in which is recorded (a choice of env)
    robot: Any = None  # the robot with which is recorded (a choice of robot); null: the world, as robot=simulated
    driver: Any = None  # who drives (a choice of driver); null: the checkpoint, or the world's scripted expert
    checkpoint: str = ""  # policy that drives: a checkpoint, the run that wrote it, or an export; empty: none
    takeover: TakeOverConfig = field(default_factory=TakeOverConfig)
    shadow: str = ""  # policy that watches and sends nothing, and is compared with who drives; empty: none
    head: SamplingConfig = field(default_factory=SamplingConfig)  # how a policy's head samples, e.g. head.steps=10
    modules: list[str] = field(
        default_factory=list
    )  # packages of yours to import first, which add robots, worlds, encoders, nets, heads
    episodes: int = 10  # to record in this session
    seconds: float = 60.0  # longest an episode may take; it is then kept as it is
    reset_s: float = 0.0  # pause before an episode with a robot, to make the table ready; 0: begin at the key right
    rate_hz: float = 0.0  # control steps per second; 0: the robot's, the world's or the checkpoint's own
    seed: int = 0  # of the first episode's start state in a world; a set that is extended goes on after its last one
    keep: str = "success"  # of a world's episodes: success (drop those that it calls failed) | all
    task: str = ""  # instruction in words; empty: the world's own
    tasks: list[str] = field(default_factory=list)  # texts that the keys 1 to 9 give to the episode instead
    # auto (a robot or a person: yes) | yes (at the rate of the clock) | no (a world as quick as it computes)
    real_time: str = "auto"
    stop_at_success: bool = True  # end a world's episode at its first success
    asynchronous: bool = True  # in real time, decide beside the control, so that no control step waits for a decision
    noise_seed: int = 0  # another value draws other noise for the same seeds
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    workspace: Box = field(default_factory=Box)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    device: str = "cpu"  # auto (cuda if there is one) | cpu | cuda | cuda:N
    health: bool = True  # say at the end what is unusual in what was recorded, as flowhand inspect does
    page: str = ""  # HTML file of the comparison with the shadow; empty: <data.path>.shadow.html

    def __post_init__(self) -> None:
        if self.episodes < 1 or not self.seconds > 0 or not 0 <= self.rate_hz < float("inf"):
            raise ValueError(
                f"episodes={self.episodes} must be 1 or more, seconds={self.seconds} positive, and "
                f"rate_hz={self.rate_hz} 0 or positive"
            )
        if not 0 <= self.seed < SEED_LIMIT:
            raise ValueError(f"seed={self.seed} must lie in [0, {SEED_LIMIT}): later seeds are for evaluation")
        if not 0 <= self.reset_s <= 1e6:
            raise ValueError(f"reset_s={self.reset_s} must be seconds, 0 to 1000000")
        for name, choices in (("real_time", REAL_TIME), ("keep", KEEP)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choices: {', '.join(choices)}")
        if self.driver is not None and self.checkpoint and not self.takeover.by:
            self.takeover.by = "driver"
        if self.takeover.by and not self.checkpoint:
            raise ValueError("takeover needs a policy to take over from; give checkpoint=")
        if self.shadow and self.checkpoint:
            raise ValueError("shadow compares a policy with a person or an expert who drives; leave out checkpoint")


ROOT = RecordRoot
CHOICES = {"env": None, "robot": None, "driver": None}
ABOUT = "A person, a policy or an expert drives a robot or a world -> demonstrations on disk, as LeRobot 3.0."
EXAMPLES = [
    "flowhand record data.path=data/monday robot=lerobot robot.type=so101_follower driver=keyboard",
    "flowhand record data.path=data/reach env=metaworld env.task=reach-v3 episodes=50",
    "flowhand record data.path=data/corrected checkpoint=outputs/demo takeover.by=expert takeover.after_s=4",
]
MATTER = (
    "data.path",
    "episodes",
    "seconds",
    "checkpoint",
    "takeover.by",
    "shadow",
    "task",
    "keep",
    "data.codec",
    "safety.velocity",
)
