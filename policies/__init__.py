"""The brain: torch only. `load(path)` gives a policy, `Controller` runs it."""

from __future__ import annotations

from .batch import Batch, Feature, Spec
from .checkpoint import Provenance, load, load_train_state, read_config, save
from .chunks import Windows
from .controller import Controller
from .ema import EMA
from .policy import ChunkConfig, Policy, PolicyConfig

__all__ = [
    "EMA",
    "Batch",
    "ChunkConfig",
    "Controller",
    "Feature",
    "Policy",
    "PolicyConfig",
    "Provenance",
    "Spec",
    "Windows",
    "load",
    "load_train_state",
    "read_config",
    "save",
]
