"""States and actions of a recorded set as a policy without a camera learns from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flowhand.contracts.data.episode import Episode
from flowhand.contracts.features import Feature, Spec

from .reader import Reader


@dataclass(frozen=True)
class Origin:
    """What a checkpoint says of where its demonstrations come from."""

    task: str  # the text of all episodes, "" where they differ
    env_version: str


class StateEpisodes:
    """The first episodes of a recorded set, with vectors of float32: this is the one place where they are cast.

    Args:
        data: the set.
        count: how many episodes to take; all, if there are fewer.

    Raises:
        ValueError: it has no states.
    """

    def __init__(self, data: Reader, count: int):
        names = [name for name in data.spec.observation if data.columns[name].kind == "state"]
        unused = [name for name in data.spec.observation if name not in names]
        if not names:
            raise ValueError(f"{data.path} has no states, and no policy reads {', '.join(unused)} yet")
        self.lines: list[str] = []  # on what is not used
        if unused:
            self.lines.append(f"no policy reads images yet: {', '.join(unused)} left unused")
        if count != len(data):
            more = f"; data.episodes={len(data)} takes all" if count < len(data) else ""
            self.lines.append(f"{data.path} has {len(data)} episodes, {min(count, len(data))} are used{more}")
        self.path = data.path
        self.data = data.select(names, list(range(min(count, len(data)))))
        features = {name: _vector(self.data.spec.observation[name]) for name in names}
        self.spec = Spec(features, _vector(self.data.spec.action), self.data.spec.control_dt_s)

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Episode]:
        for episode in self.data:
            observation = {name: _flat(values) for name, values in episode.observation.items()}
            yield replace(episode, observation=observation, action=_flat(episode.action))

    @property
    def lengths(self) -> Sequence[int]:
        """Control steps of each episode."""
        return self.data.lengths

    @property
    def meta(self) -> Origin:
        """Where the episodes come from."""
        tasks = set(self.data.tasks)
        return Origin(next(iter(tasks)) if len(tasks) == 1 else "", self.data.revision or self.data.format)

    @property
    def seeds(self) -> list[int]:
        """Seeds of the episodes: recorded sets have none."""
        return []

    def hash(self) -> str:
        """The fingerprint of the files: which data trained a policy."""
        return self.data.fingerprint


def _vector(feature: Feature) -> Feature:
    names = feature.names if len(feature.shape) == 1 else None
    return replace(feature, shape=(math.prod(feature.shape),), dtype="float32", names=names)


def _flat(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values.reshape(len(values), -1), np.float32)
