"""The typed roots of every configuration, and their registration with Hydra.

The dataclasses beside each component own names, types, defaults and validation; the yaml files here own choices and
recipes. An unknown key or a value of the wrong type fails when the configuration is composed, and the error names it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from demos.collect import CollectConfig
from envs import ENVS
from envs.base import EnvConfig
from policies.encoders import ENCODERS, EncoderConfig
from policies.heads import HEADS, HeadConfig
from policies.nets import NETS, NetConfig
from policies.normalizer import NormalizerConfig
from policies.policy import ChunkConfig, PolicyConfig


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
    compile: bool = False  # compile the training step with torch.compile (needs a C++ compiler)
    threads: int = 0  # CPU threads of torch; 0: as many as this process may use

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
class EvaluationConfig:
    """The evaluation."""

    episodes: int = 100  # held-out episodes; 0 skips the evaluation
    seed: int = 1_000_000  # start-state seed of the first episode; demonstrations use seeds below one million
    n_envs: int = 4  # simulations side by side; does not change any outcome
    workers: str = "process"  # process (one per CPU core) | inline; does not change any outcome
    inference_batch: int = 16  # rows of every inference call; another value may change an action's last bit
    noise_seed: int = 0  # another value draws other noise for the same start states
    execution_horizon: int = 0  # actions executed per decision; 0: the checkpoint's own
    stop_at_success: bool = True  # end an episode at its first success
    expert: bool = True  # also run the scripted expert on the same seeds
    videos: int = 3  # episodes of each outcome to film; 0: none

    def __post_init__(self) -> None:
        if self.episodes < 0 or self.videos < 0 or self.execution_horizon < 0:
            raise ValueError("eval.episodes, eval.videos and eval.execution_horizon must not be negative")
        if self.n_envs < 1 or self.inference_batch < 1:
            raise ValueError("eval.n_envs and eval.inference_batch must be at least 1")
        if self.seed < 1_000_000:
            raise ValueError(f"eval.seed={self.seed} lies among the demonstrations' seeds; use 1000000 or more")
        if self.workers not in ("process", "inline"):
            raise ValueError(f"eval.workers={self.workers!r} is unknown; choices: process, inline")


@dataclass
class WandbConfig:
    """Logging to Weights & Biases."""

    mode: str = "offline"  # offline (nothing leaves the machine) | online | disabled
    project: str = "flowhand"
    name: str = ""  # of the run; empty: chosen by wandb

    def __post_init__(self) -> None:
        if self.mode not in ("offline", "online", "disabled"):
            raise ValueError(f"wandb.mode={self.mode!r} is unknown; choices: offline, online, disabled")


@dataclass
class TrainRoot:
    """What train.py reads."""

    env: EnvConfig = MISSING
    demos: CollectConfig = field(default_factory=CollectConfig)
    encoder: EncoderConfig = MISSING
    net: NetConfig = MISSING
    head: HeadConfig = MISSING
    chunk: ChunkConfig = field(default_factory=ChunkConfig)
    normalizer: NormalizerConfig = field(default_factory=NormalizerConfig)
    train: TrainingConfig = field(default_factory=TrainingConfig)
    eval: EvaluationConfig = field(default_factory=EvaluationConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    seed: int = 0  # of the weights, the batches and the training noise
    out: str = ""  # folder for everything the run writes; empty: outputs/<task>-<head>-<seed>
    resume: str = ""  # a run's folder or its checkpoint: go on with that run exactly where it stopped

    @property
    def policy(self) -> PolicyConfig:
        """The parts that make a policy, as one configuration."""
        return PolicyConfig(self.chunk, self.normalizer, self.encoder, self.net, self.head)


@dataclass
class EvalRoot:
    """What eval.py reads."""

    checkpoint: str = MISSING  # checkpoint folder
    env: EnvConfig | None = None  # another environment than the checkpoint's own
    eval: EvaluationConfig = field(default_factory=EvaluationConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    device: str = "auto"  # auto (cuda if there is one) | cpu | cuda | cuda:N
    threads: int = 0  # CPU threads of torch; 0: as many as this process may use
    out: str = ""  # folder for records, metrics and report; empty: beside the checkpoint


@dataclass
class CollectRoot:
    """What `python -m demos.collect` reads."""

    env: EnvConfig = MISSING
    demos: CollectConfig = field(default_factory=CollectConfig)


def register() -> None:
    """Makes the roots and every component's configuration known to Hydra."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainRoot)
    store.store(name="eval_schema", node=EvalRoot)
    store.store(name="collect_schema", node=CollectRoot)
    store.store(group="env", name="base_none", node=EnvConfig(kind="none"))
    for group, table in (("env", ENVS), ("encoder", ENCODERS), ("net", NETS), ("head", HEADS)):
        for kind, (config, _) in table.items():
            store.store(group=group, name=f"base_{kind}", node=config)
