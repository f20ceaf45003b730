"""What can be set of `flowhand eval`."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from envs.base import EnvConfig
from envs.perturb import PerturbConfig
from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.strict import whole_numbers

from ..sampling import SamplingConfig


@dataclass
class EvaluationConfig:
    """The evaluation."""

    episodes: int = 100  # held-out episodes; 0 skips the evaluation
    seed: int = 1_000_000  # start-state seed of the first episode; demonstrations use seeds below one million
    n_envs: int = 4  # simulations side by side; does not change any outcome
    workers: str = "process"  # process (one per CPU core) | inline; does not change any outcome
    inference_batch: int = 16  # rows of every inference call; another value may change an action's last bit
    noise_seed: int = 0  # another value draws other noise for the same start states
    stop_at_success: bool = True  # end an episode at its first success
    expert: bool = True  # also run the scripted expert on the same seeds
    # JSON file of other texts for the tasks, {"reach-v3": ["move the hand to the target"]}, of which every episode
    # takes one by its seed; empty: the tasks' own
    wordings: str = ""
    source: str = ""  # whose statistics to take, of a policy that learned from several sets; empty: the task's own
    videos: int = 3  # episodes of each outcome to film; 0: none
    perturb: PerturbConfig = field(default_factory=PerturbConfig)  # what disturbs the world

    def __post_init__(self) -> None:
        whole_numbers(self)
        if self.episodes < 0 or self.videos < 0:
            raise ValueError("eval.episodes and eval.videos must not be negative")
        if self.n_envs < 1 or self.inference_batch < 1:
            raise ValueError("eval.n_envs and eval.inference_batch must be at least 1")
        if self.seed < 1_000_000:
            raise ValueError(f"eval.seed={self.seed} lies among the demonstrations' seeds; use 1000000 or more")
        if not 0 <= self.noise_seed < 2**32:
            raise ValueError(f"eval.noise_seed={self.noise_seed} must lie in [0, 2^32)")
        if self.workers not in ("process", "inline"):
            raise ValueError(f"eval.workers={self.workers!r} is unknown; choices: process, inline")


@dataclass
class WandbConfig:
    """Logging to Weights & Biases."""

    mode: str = "offline"  # offline (nothing leaves the machine) | online | disabled
    project: str = "flowhand"  # of the run
    name: str = ""  # of the run; empty: chosen by wandb

    def __post_init__(self) -> None:
        if self.mode not in ("offline", "online", "disabled"):
            raise ValueError(f"wandb.mode={self.mode!r} is unknown; choices: offline, online, disabled")


@dataclass
class RecordedConfig:
    """The recorded set whose held-out episodes judge a checkpoint again."""

    path: str = ""  # of the set that it was trained on: judge the errors of its chunks there, in place of a world


@dataclass
class EvalRoot:
    """What `flowhand eval` reads."""

    checkpoint: str = MISSING  # folder of a checkpoint, of the run that wrote it, of an export, or of a lerobot policy
    lerobot: str = ""  # Python with lerobot 0.6.1, in which its policies decide; empty: FLOWHAND_LEROBOT says it
    trust: bool = False  # run an export that holds a program of torch or native code: only one that you made
    env: EnvConfig | None = None  # another environment than the checkpoint's own
    modules: list[str] = field(
        default_factory=list
    )  # packages of yours to import first, which add worlds, encoders, nets, heads
    data: RecordedConfig = field(default_factory=RecordedConfig)
    head: SamplingConfig = field(default_factory=SamplingConfig)  # how a checkpoint's head samples, e.g. head.steps=10
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    eval: EvaluationConfig = field(default_factory=EvaluationConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    device: str = "auto"  # auto (cuda if there is one) | cpu | cuda | cuda:N
    threads: int = 0  # CPU threads of torch; 0: as many as this process may use
    compile: str = "no"  # no | fp32 | bf16: compile the checkpoint first (Policy.compile)
    out: str = ""  # folder for records, metrics and report; empty: beside the checkpoint
    view: bool = False  # show it live in a browser tab, on this machine only; its address is printed on stderr
    view_port: int = 0  # port of the live view; 0: a free one


ROOT = EvalRoot
CHOICES = {"env": None}
ABOUT = "Checkpoint or export -> success rate with interval, per-episode records, videos, report page."
EXAMPLES = [
    "flowhand eval checkpoint=outputs/demo eval.episodes=200 eval.n_envs=8",
    "flowhand eval checkpoint=outputs/demo/onnx-int8 eval.episodes=200",
    "flowhand eval checkpoint=outputs/demo execution.mode=rtc_identity execution.execution_horizon=8 execution.delay=4",
    "flowhand eval checkpoint=outputs/mine data.path=data/my_set",
    "flowhand eval checkpoint=outputs/demo eval.perturb.observation_noise=0.01 eval.perturb.push=20",
]
MATTER = (
    "checkpoint",
    "eval.episodes",
    "eval.seed",
    "eval.n_envs",
    "head.steps",
    "execution.mode",
    "execution.delay",
    "eval.videos",
    "device",
    "out",
)
