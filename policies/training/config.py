"""What can be set of the optimization."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class TrainingConfig:
    """The optimization."""

    steps: int = 2000  # optimizer steps
    batch_size: int = 256  # windows per step
    # times that the head learns from each window of a batch, with other noise; the observation is encoded once, so it
    # is worth most where encoding is dear, as with images
    draws: int = field(default=1, metadata={"before": 1})
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
    timeout_s: float = 120.0  # seconds that one of several processes waits for another before it ends the run
    threads: int = 0  # CPU threads of torch; 0: measured while training, at most as many as this process may use

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)} must be at least 1")
        if not 1 <= self.draws <= 1000:
            raise ValueError(f"train.draws={self.draws} must lie in 1..1000")
        for name in ("warmup_steps", "weight_decay", "eval_every", "threads"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name}={getattr(self, name)} must not be negative")
        for name in ("learning_rate", "clip_norm", "timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"train.{name}={getattr(self, name)} must be positive")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"train.precision={self.precision!r} is unknown; choices: auto, fp32, bf16")
