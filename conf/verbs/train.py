"""What can be set of `flowhand train`."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from envs.base import EnvConfig
from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.features import ChunkConfig
from flowhand.demos.config import TrainingDataConfig
from policies.encoders.base import EncoderConfig
from policies.encoders.vision.config import VisionConfig
from policies.encoders.words.config import WordsConfig
from policies.heads.base import HeadConfig
from policies.nets.base import NetConfig
from policies.normalizer import NormalizerConfig
from policies.policy import PolicyConfig
from policies.representation.config import ActionConfig, earlier
from policies.training.config import TrainingConfig

from .eval import EvaluationConfig, WandbConfig


@dataclass
class TrainRoot:
    """What `flowhand train` reads."""

    env: EnvConfig = MISSING
    modules: list[str] = field(
        default_factory=list
    )  # packages of yours to import first, which add worlds, encoders, nets, heads
    data: TrainingDataConfig = field(default_factory=TrainingDataConfig)
    encoder: EncoderConfig = MISSING
    vision: VisionConfig = field(default=MISSING, metadata={"before": {"kind": "none"}})
    words: WordsConfig = field(default=MISSING, metadata={"before": {"kind": "none"}})
    net: NetConfig = MISSING
    head: HeadConfig = MISSING
    chunk: ChunkConfig = field(default_factory=ChunkConfig)
    action: ActionConfig = field(default_factory=ActionConfig, metadata={"before": earlier()})
    normalizer: NormalizerConfig = field(default_factory=NormalizerConfig)
    train: TrainingConfig = field(default_factory=TrainingConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)  # of the evaluation
    eval: EvaluationConfig = field(default_factory=EvaluationConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    seed: int = 0  # of the weights, the batches and the training noise
    out: str = ""  # folder for everything the run writes; empty: outputs/<task>-<head>-<seed>
    init: str = field(default="", metadata={"before": ""})  # a checkpoint, or its run's folder: start with its weights
    # keep (the checkpoint's, for the features that it has) | recompute (those of the new data)
    init_statistics: str = field(default="keep", metadata={"before": "keep"})
    # a run's folder or its checkpoint: go on with that run exactly where it stopped; auto: with the one in `out`, if
    # there is one
    resume: str = ""

    def __post_init__(self) -> None:
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed} must lie in [-2^63, 2^63)")
        if self.init_statistics not in ("keep", "recompute"):
            raise ValueError(f"init_statistics={self.init_statistics!r} is unknown; choices: keep, recompute")

    @property
    def policy(self) -> PolicyConfig:
        """The parts that make a policy, as one configuration."""
        return PolicyConfig(
            self.chunk,
            self.normalizer,
            self.encoder,
            self.net,
            self.head,
            vision=self.vision,
            words=self.words,
            action=self.action,
        )


ROOT = TrainRoot
CHOICES = {
    "env": "metaworld",
    "encoder": "state",
    "vision": "none",
    "words": "none",
    "net": "mlp",
    "head": "flow",
    "experiment": None,
}
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
    "init",
)
