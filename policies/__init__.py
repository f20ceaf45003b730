"""The brain: torch only. `load(path)` gives a policy, `Controller` runs it.

Names are looked up when they are used, so that a robot with an exported policy imports the controller without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .asynchronous import AsyncController
    from .batch import Batch
    from .checkpoint import Provenance, load, load_train_state, read_config, save, snapshot
    from .chunks import Windows
    from .controller import Controller
    from .ema import EMA
    from .execution import ExecutionConfig
    from .policy import Policy, PolicyConfig
    from .spec import ChunkConfig, Feature, Spec

_HOMES = {
    "asynchronous": ("AsyncController",),
    "batch": ("Batch",),
    "checkpoint": ("Provenance", "load", "load_train_state", "read_config", "save", "snapshot"),
    "chunks": ("Windows",),
    "controller": ("Controller",),
    "ema": ("EMA",),
    "execution": ("ExecutionConfig",),
    "policy": ("Policy", "PolicyConfig"),
    "spec": ("ChunkConfig", "Feature", "Spec"),
}

__all__ = [
    "EMA",
    "AsyncController",
    "Batch",
    "ChunkConfig",
    "Controller",
    "ExecutionConfig",
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
    "snapshot",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{home}", __name__), name)
    raise AttributeError(f"module 'policies' has no attribute {name!r}")
