"""What can be set of `flowhand train`."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from envs.base import EnvConfig
from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.features import ChunkConfig
from flowhand.demos.config import DataConfig
from policies.encoders.base import EncoderConfig
from policies.heads.base import HeadConfig
from policies.nets.base import NetConfig
from policies.normalizer import NormalizerConfig
from policies.policy import PolicyConfig

from .eval import EvaluationConfig, WandbConfig


@dataclass
class TrainingConfig:
    """The optimization."""

    steps: int = 2000  # optimizer steps
    batch_size: int = 256  # windows per step
    learning_rate: float = 2e-3  # peak, after the warm-up
    warmup_steps: int = 100  # steps of linear warm-up; a cosine to zero follows
    weight_decay: float = 1e-4  # of AdamW
    clip_norm: float = 1.0  # largest norm of the gradient
    ema_decay: float = 0.995  # of the averaged weights, which are the ones evaluated and deployed
    save_every: int = 1000  # steps between checkpoints; the last step is always saved
    log_every: int = 50  # steps between log entries
    eval_every: int = 0  # steps between evaluations during training; 0: only at the end
    device: str = "auto"  # auto (cuda if there is one) | cpu | cuda | cuda:N
    precision: str = "auto"  # fp32 | bf16 (autocast) | auto: bf16 where the device has matrix units for it
    compile: bool = False  # compile the loss and its gradient, not the optimizer's step (on a CPU needs a C++ compiler)
    threads: int = 0  # CPU threads of torch; 0: measured while training, at most as many as this process may use

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)} must be at least 1")
        for name in ("warmup_steps", "weight_decay", "eval_every", "threads"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name}={getattr(self, name)} must not be negative")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"train.{name}={getattr(self, name)} must be positive")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"train.precision={self.precision!r} is unknown; choices: auto, fp32, bf16")


@dataclass
class TrainRoot:
    """What `flowhand train` reads."""

    env: EnvConfig = MISSING
    modules: list[str] = field(
        default_factory=list
    )  # packages of yours to import first, which add worlds, encoders, nets, heads
    data: DataConfig = field(default_factory=DataConfig)
    encoder: EncoderConfig = MISSING
    net: NetConfig = MISSING
    head: HeadConfig = MISSING
    chunk: ChunkConfig = field(default_factory=ChunkConfig)
    normalizer: NormalizerConfig = field(default_factory=NormalizerConfig)
    train: TrainingConfig = field(default_factory=TrainingConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)  # of the evaluation
    eval: EvaluationConfig = field(default_factory=EvaluationConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    seed: int = 0  # of the weights, the batches and the training noise
    out: str = ""  # folder for everything the run writes; empty: outputs/<task>-<head>-<seed>
    resume: str = ""  # a run's folder or its checkpoint: go on with that run exactly where it stopped

    def __post_init__(self) -> None:
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed} must lie in [-2^63, 2^63)")

    @property
    def policy(self) -> PolicyConfig:
        """The parts that make a policy, as one configuration."""
        return PolicyConfig(self.chunk, self.normalizer, self.encoder, self.net, self.head)


ROOT = TrainRoot
CHOICES = {"env": "metaworld", "encoder": "state", "net": "mlp", "head": "flow", "experiment": None}
ABOUT = "Demonstrations -> checkpoint -> success rate."
EXAMPLES = [
    "flowhand train env.task=hammer-v3 head=flow net=mlp train.steps=4000 seed=0",
    "flowhand train --multirun seed=0,1,2",
    "flowhand train resume=outputs/demo",
]
MATTER = (
    "env.task",
    "data.path",
    "data.episodes",
    "train.steps",
    "train.batch_size",
    "train.learning_rate",
    "train.device",
    "eval.episodes",
    "seed",
    "out",
    "resume",
)
