"""The brain, all that needs torch. `load(path)` gives a policy; `flowhand.control.controller.Controller` runs it."""

from flowhand.contracts.provenance import Provenance

from .batch import Batch
from .checkpoint import checkpoint_in, load, load_train_state, read_config, save, snapshot
from .policy import Policy, PolicyConfig
from .training.ema import EMA
from .training.stream import Stream
from .training.windows import Windows

__all__ = [
    "EMA",
    "Batch",
    "Policy",
    "PolicyConfig",
    "Provenance",
    "Stream",
    "Windows",
    "checkpoint_in",
    "load",
    "load_train_state",
    "read_config",
    "save",
    "snapshot",
]
