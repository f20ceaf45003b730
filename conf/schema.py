"""The typed roots of every configuration, and their registration with Hydra.

The dataclasses beside each component own names, types, defaults and validation; the yaml files here own choices and
recipes. An unknown key or a value of the wrong type fails when the configuration is composed, and the error names it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, make_dataclass
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from envs import ENVS
from envs.base import EnvConfig
from envs.perturb import PerturbConfig
from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.features import ChunkConfig
from flowhand.control.runtime import RuntimeConfig
from flowhand.control.safety import SafetyConfig
from flowhand.control.workspace import Box
from flowhand.deploy.server.config import ServerConfig
from policies.encoders import ENCODERS
from policies.encoders.base import EncoderConfig
from policies.heads import HEADS
from policies.heads.base import HeadConfig
from policies.monitor.calibrated import MonitorConfig
from policies.nets import NETS
from policies.nets.base import NetConfig
from policies.normalizer import NormalizerConfig
from policies.policy import PolicyConfig

from .artifact import ExportConfig
from .demonstrations import CollectConfig


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
class EvaluationConfig(ExecutionConfig):
    """The evaluation; mode, execution horizon and simulated delay are fields of `ExecutionConfig`."""

    episodes: int = 100  # held-out episodes; 0 skips the evaluation
    seed: int = 1_000_000  # start-state seed of the first episode; demonstrations use seeds below one million
    n_envs: int = 4  # simulations side by side; does not change any outcome
    workers: str = "process"  # process (one per CPU core) | inline; does not change any outcome
    inference_batch: int = 16  # rows of every inference call; another value may change an action's last bit
    noise_seed: int = 0  # another value draws other noise for the same start states
    stop_at_success: bool = True  # end an episode at its first success
    expert: bool = True  # also run the scripted expert on the same seeds
    videos: int = 3  # episodes of each outcome to film; 0: none
    perturb: PerturbConfig = field(default_factory=PerturbConfig)  # what disturbs the world

    def __post_init__(self) -> None:
        super().__post_init__()
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
    project: str = "flowhand"
    name: str = ""  # of the run; empty: chosen by wandb

    def __post_init__(self) -> None:
        if self.mode not in ("offline", "online", "disabled"):
            raise ValueError(f"wandb.mode={self.mode!r} is unknown; choices: offline, online, disabled")


@dataclass
class TrainRoot:
    """What train.py reads."""

    env: EnvConfig = MISSING
    modules: list[str] = field(default_factory=list)  # packages to import first, which register worlds; no file may
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

    def __post_init__(self) -> None:
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed} must lie in [-2^63, 2^63)")

    @property
    def policy(self) -> PolicyConfig:
        """The parts that make a policy, as one configuration."""
        return PolicyConfig(self.chunk, self.normalizer, self.encoder, self.net, self.head)


def sampling_fields() -> list[tuple[str, Any, None]]:
    """The sampling fields of all heads with their types, None by default: a head that is added brings its own."""
    found: dict[str, Any] = {}
    for config, _ in HEADS.values():
        types = get_type_hints(config)
        for name in config.sampling:
            same = found.setdefault(name, types[name] | None) == types[name] | None
            found[name] = found[name] if same else Any
    return [(name, kind, None) for name, kind in found.items()]


@dataclass
class SamplingConfig(make_dataclass("SamplingFields", sampling_fields())):
    """How the checkpoint's head samples; None: as the checkpoint says. Which fields a head has: docs/heads.md."""

    @property
    def changes(self) -> dict[str, Any]:
        """The fields that are given."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass
class EvalRoot:
    """What eval.py reads."""

    checkpoint: str = MISSING  # folder of a checkpoint, of the run that wrote it, or of an export
    trust: bool = False  # run an export that holds a program of torch or native code: only one that you made
    env: EnvConfig | None = None  # another environment than the checkpoint's own
    modules: list[str] = field(default_factory=list)  # packages to import first, which register worlds; no file may
    head: SamplingConfig = field(default_factory=SamplingConfig)  # how a checkpoint's head samples, e.g. head.steps=10
    eval: EvaluationConfig = field(default_factory=EvaluationConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    device: str = "auto"  # auto (cuda if there is one) | cpu | cuda | cuda:N
    threads: int = 0  # CPU threads of torch; 0: as many as this process may use
    compile: str = "no"  # no | fp32 | bf16: compile the checkpoint first (Policy.compile)
    out: str = ""  # folder for records, metrics and report; empty: beside the checkpoint


@dataclass
class CollectRoot:
    """What `flowhand collect` reads."""

    env: EnvConfig = MISSING
    modules: list[str] = field(default_factory=list)  # packages to import first, which register worlds; no file may
    demos: CollectConfig = field(default_factory=CollectConfig)


@dataclass
class ServeRoot(ServerConfig):
    """What `flowhand serve` reads: beside these fields, those of the server."""

    checkpoint: str = MISSING  # folder of a checkpoint, of the run that wrote it, or of an export
    head: SamplingConfig = field(default_factory=SamplingConfig)  # how a checkpoint's head samples, e.g. head.steps=10
    device: str = "auto"  # auto (cuda if there is one) | cpu | cuda | cuda:N
    threads: int = 1  # CPU threads of inference; 0: as many as this process may use
    compile: str = "no"  # no | fp32 | bf16: compile a checkpoint before serving it (Policy.compile)


@dataclass
class ControlRoot:
    """What `flowhand control` reads."""

    checkpoint: str = MISSING  # folder of a checkpoint, or of the run that wrote it
    artifact: str = ""  # folder of an exported policy (format=onnx) that decides in place of the checkpoint
    monitor: bool = False  # let the checkpoint's calibrated monitor watch; runtime.on_alarm says what an alarm does
    head: SamplingConfig = field(default_factory=SamplingConfig)  # how a checkpoint's head samples, e.g. head.steps=10
    env: EnvConfig | None = None  # the robot's world; another one than the checkpoint's own
    modules: list[str] = field(default_factory=list)  # packages to import first, which register worlds; no file may
    seconds: float = 60.0  # to control for, in all episodes together
    rate_hz: float = 0.0  # control steps per second; 0: the checkpoint's own; another one is a load test
    seed: int = 2_000_000  # of the first episode's start state and noise; every further episode takes the next
    stop_at_success: bool = True  # end an episode at its first success
    asynchronous: bool = True  # decide beside the control, so that no control step waits for a decision
    noise_seed: int = 0  # another value draws other noise for the same seeds
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    workspace: Box = field(default_factory=Box)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    device: str = "cpu"  # auto (cuda if there is one) | cpu | cuda | cuda:N
    journal: str = ""  # file to write; empty: outputs/deploy/<date and time>.journal

    def __post_init__(self) -> None:
        if not self.seconds > 0 or not 0 <= self.rate_hz < float("inf"):
            raise ValueError(f"seconds={self.seconds} must be positive, and rate_hz={self.rate_hz} 0 or positive")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} must lie in [0, 2^32)")


@dataclass
class VerifyRoot:
    """What `flowhand verify` reads."""

    journal: str = MISSING  # file that `flowhand control` wrote
    checkpoint: str = ""  # where the checkpoint is now; empty: where it was then
    artifact: str = ""  # where the exported policy is now, if one decided; empty: where it was then


@dataclass
class CalibrateRoot(MonitorConfig):
    """What `flowhand calibrate` reads: beside these fields, those of the monitor."""

    checkpoint: str = MISSING  # folder of a checkpoint, or of the run that wrote it
    env: EnvConfig | None = None  # another world than the checkpoint's own
    modules: list[str] = field(default_factory=list)  # packages to import first, which register worlds; no file may
    demos: CollectConfig | None = None  # how its demonstrations were collected; None: as its training state says
    episodes: int = 200  # to roll out undisturbed; the successful ones calibrate
    seed: int = 3_000_000  # of the first; below lie demonstrations, evaluation (1,000,000) and control (2,000,000)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)  # as the robot will have it, delay included
    noise_seed: int = 0  # another value draws other noise for the same start states
    n_envs: int = 4  # simulations side by side; does not change any score
    workers: str = "process"  # process (one per CPU core) | inline; does not change any score
    stop_at_success: bool = True  # end an episode at its first success, as the robot will

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.episodes < 1 or self.n_envs < 1:
            raise ValueError("episodes and n_envs must be at least 1")
        if not 3_000_000 <= self.seed < 2**32 - self.episodes:
            raise ValueError(f"seed={self.seed} must be 3000000 or more, where nothing else draws, and below 2^32")
        if self.workers not in ("process", "inline"):
            raise ValueError(f"workers={self.workers!r} is unknown; choices: process, inline")


@dataclass
class ExportRoot(ExportConfig):
    """What `flowhand export` reads: beside these fields, those of the export."""

    checkpoint: str = MISSING  # folder of a checkpoint, or of the run that wrote it
    monitor: bool = False  # export the checkpoint's monitor too, its scores as a second output of the graph
    head: SamplingConfig = field(default_factory=SamplingConfig)  # how a checkpoint's head samples, e.g. head.steps=10
    out: str = ""  # folder to write; empty: <format>-<precision> and changes of the head, beside the checkpoint


def register() -> None:
    """Makes the roots and every component's configuration known to Hydra."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainRoot)
    store.store(name="eval_schema", node=EvalRoot)
    store.store(name="collect_schema", node=CollectRoot)
    store.store(name="serve_schema", node=ServeRoot)
    store.store(name="control_schema", node=ControlRoot)
    store.store(name="verify_schema", node=VerifyRoot)
    store.store(name="export_schema", node=ExportRoot)
    store.store(name="calibrate_schema", node=CalibrateRoot)
    store.store(group="env", name="base_none", node=EnvConfig(kind="none"))
    for group, table in (("env", ENVS), ("encoder", ENCODERS), ("net", NETS), ("head", HEADS)):
        for kind, (config, _) in table.items():
            store.store(group=group, name=f"base_{kind}", node=config)
