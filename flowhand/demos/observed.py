"""A recorded set as a simulated world observes it: demonstrations from elsewhere, judged in that world."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from flowhand.contracts.features import Spec

from .columns import Column
from .reader import Reader

Observe = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]  # recorded (N, ...) to observed (N, ...)


class Observed(Reader):
    """The episodes of another set, with the observations that a world makes of the recorded states.

    Actions are the recorded ones; images of the recording are not read.

    Args:
        data: the recorded set.
        spec: what the world observes and takes.
        observe: the world's observations in recorded ones.
        version: of the world, part of the fingerprint.

    Raises:
        ValueError: the set has another rate or other actions than the world, or the world cannot observe its states.
    """

    def __init__(self, data: Reader, spec: Spec, observe: Observe, version: str):
        self._begin(data.path)
        states = [name for name in data.spec.observation if data.columns[name].kind == "state"]
        self._data, self._observe, self._version = data.select(states), observe, version
        self.format, self.revision = data.format, data.revision
        self.warnings, self.left_out = [*data.warnings], dict(data.left_out)
        taken = data.spec.action
        if taken.shape != spec.action.shape:
            raise ValueError(f"{data.path} has actions of shape {taken.shape}, the world takes {spec.action.shape}")
        if abs(data.rate_hz * spec.seconds() - 1) > 1e-3:
            raise ValueError(f"{data.path} has {data.rate_hz:g} steps a second, the world {1 / spec.seconds():g}")
        features = {**spec.observation, "action": replace(spec.action, dtype=taken.dtype)}
        kinds = {name: Column("observed", one.dtype, one, one.kind, one.names or ()) for name, one in features.items()}
        self._finish(kinds, data.rate_hz, data.tasks, data.lengths)
        self._arrays(0, 0, 1, list(kinds))  # whether the world can observe it is said here, not in the middle

    def _arrays(
        self, stored: int, start: int, stop: int, names: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        episode = self._data.read(stored, start, stop)
        seen = {**self._observe(episode.observation), "action": episode.action}
        where = f"{self.path}: episode {stored}"
        return {name: self._checked(name, seen[name], stop - start, where) for name in names}, {}

    def _files(self) -> Iterator[Path]:
        return self._data._files()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of the recorded set's own, of the features and of the world's version."""
        about = f"{self._data.fingerprint} {self._version} {self.spec.to_dict()}"
        return hashlib.sha256(about.encode()).hexdigest()
