"""A recorded set as a simulated world observes it: demonstrations from elsewhere, judged in that world."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flowhand.contracts.features import Spec

from .columns import Column
from .reader import Reader

Observe = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]  # recorded (N, ...) to observed (N, ...)
Mirror = Callable[[Mapping[str, np.ndarray], np.ndarray], tuple[dict[str, np.ndarray], np.ndarray]]


class Observed(Reader):
    """The episodes of another set, with the observations that a world makes of the recorded states.

    Actions are the recorded ones; images of the recording are not read. With a mirror, each episode is followed by its
    mirror image.

    Args:
        data: the recorded set.
        spec: what the world observes and takes.
        observe: the world's observations in recorded ones.
        version: of the world, part of the fingerprint.
        mirror: recorded observations and actions as in a mirror that leaves the world's task as it is.

    Raises:
        ValueError: the set has another rate or other actions than the world, or the world cannot observe its states.
    """

    def __init__(self, data: Reader, spec: Spec, observe: Observe, version: str, mirror: Mirror | None = None):
        self._begin(data.path)
        states = [name for name in data.spec.observation if data.columns[name].kind == "state"]
        self._data, self._observe, self._version, self._mirror = data.select(states), observe, version, mirror
        self.format, self.revision = data.format, data.revision
        self.warnings, self.left_out = [*data.warnings], dict(data.left_out)
        taken = data.spec.action
        if taken.shape != spec.action.shape:
            raise ValueError(f"{data.path} has actions of shape {taken.shape}, the world takes {spec.action.shape}")
        if abs(data.rate_hz * spec.seconds() - 1) > 1e-3:
            raise ValueError(f"{data.path} has {data.rate_hz:g} steps a second, the world {1 / spec.seconds():g}")
        features = {**spec.observation, "action": replace(spec.action, dtype=taken.dtype)}
        kinds = {name: Column("observed", one.dtype, one, one.kind, one.names or ()) for name, one in features.items()}
        times = 2 if mirror else 1
        tasks = [task for task in data.tasks for _ in range(times)]
        self._finish(kinds, data.rate_hz, tasks, [length for length in data.lengths for _ in range(times)])
        self._arrays(times - 1, 0, 1, list(kinds))  # whether the world can do this is said here, not in the middle

    def _arrays(
        self, stored: int, start: int, stop: int, names: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        original, reflected = divmod(stored, 2) if self._mirror else (stored, 0)
        episode = self._data.read(original, start, stop)
        states, action = episode.observation, episode.action
        if self._mirror and reflected:
            states, action = self._mirror(states, action)
        seen = {**self._observe(states), "action": action}
        where = f"{self.path}: episode {stored}"
        return {name: self._checked(name, seen[name], stop - start, where) for name in names}, {}

    def _files(self) -> Iterator[Path]:
        return self._data._files()

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of the recorded set's own, of the features and of the world's version."""
        about = f"{self._data.fingerprint} {self._version} {self.spec.to_dict()} {self._mirror is not None}"
        return hashlib.sha256(about.encode()).hexdigest()
