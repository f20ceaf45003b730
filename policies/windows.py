"""Episodes to windows, on the training device: a batch is one index gather."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from flowhand.contracts.features import Spec

from .batch import Batch


@runtime_checkable
class EpisodeLike(Protocol):
    """The part of an episode that training reads: N control steps of observations and actions."""

    observation: dict[str, np.ndarray]  # each (N, *shape)
    action: np.ndarray  # (N, A)
    task: str  # instruction in words


class Windows:
    """Every control step of every episode as a window that starts there; see the diagram in batch.py.

    Args:
        episodes: the demonstrations.
        spec: what they must contain.
        history: observations per window, O.
        prediction_horizon: actions per window, T.
        device: where the tensors live.

    Attributes:
        tasks: the texts that `Batch.task` counts through, in the order of the alphabet.

    Raises:
        ValueError: no episode, or one that does not fit the specification.
    """

    def __init__(
        self,
        episodes: Iterable[EpisodeLike],
        spec: Spec,
        history: int,
        prediction_horizon: int,
        device: torch.device | str = "cpu",
    ):
        episodes = list(episodes)
        if not episodes:
            raise ValueError("there are no episodes to train on; expected at least one")
        for i, episode in enumerate(episodes):
            _check(episode, spec, i)
        self.observation = {
            name: torch.from_numpy(np.concatenate([e.observation[name] for e in episodes])).to(device)
            for name in spec.observation
        }
        self.action = torch.from_numpy(np.concatenate([e.action for e in episodes])).to(device)
        self.tasks = sorted({e.task for e in episodes})
        tasks = torch.tensor([self.tasks.index(e.task) for e in episodes])
        lengths = torch.tensor([len(e.action) for e in episodes])
        self.task = torch.repeat_interleave(tasks, lengths).to(device)  # of each step
        ends = lengths.cumsum(0)
        self.first = torch.repeat_interleave(ends - lengths, lengths).to(device)  # first step of each step's episode
        self.last = torch.repeat_interleave(ends - 1, lengths).to(device)
        self.back = torch.arange(1 - history, 1, device=device)
        self.ahead = torch.arange(prediction_horizon, device=device)

    def __len__(self) -> int:
        """Number of windows: one for each control step."""
        return len(self.action)

    def gather(self, index: Tensor) -> Batch:
        """The windows that start at the given steps (B,)."""
        past = torch.maximum(index[:, None] + self.back, self.first[index, None])
        future = index[:, None] + self.ahead
        last = self.last[index, None]
        return Batch(
            observation={name: values[past] for name, values in self.observation.items()},
            action=self.action[torch.minimum(future, last)],
            mask=future <= last,
            task=self.task[index],
        )

    def draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        """A batch of windows drawn uniformly, with replacement."""
        index = torch.randint(len(self), (batch_size,), generator=generator, device=self.action.device)
        return self.gather(index)


def _check(episode: EpisodeLike, spec: Spec, i: int) -> None:
    """Raises `ValueError` naming the episode and the array that does not fit."""
    arrays: Mapping[str, np.ndarray] = {**episode.observation, "action": episode.action}
    features = {**spec.observation, "action": spec.action}
    if set(episode.observation) != set(spec.observation):
        raise ValueError(f"episode {i} observes {sorted(episode.observation)}, expected {sorted(spec.observation)}")
    for name, feature in features.items():
        value = arrays[name]
        expected = (len(episode.action), *feature.shape)
        if value.shape != expected or value.dtype != np.dtype(feature.dtype):
            raise ValueError(
                f"episode {i}: {name!r} is {value.dtype} of shape {value.shape}, expected {feature.dtype} {expected}"
            )
