"""Episodes to windows, on the training device: a batch is one index gather."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from flowhand.contracts.features import Spec
from flowhand.contracts.history import fitted, fitting, with_previous
from flowhand.contracts.planner import check_spec

from ..batch import DTYPES, Batch
from ..policy import Policy
from .balance import balance_of


@runtime_checkable
class EpisodeLike(Protocol):
    """The part of an episode that training reads: N control steps of observations and actions."""

    observation: dict[str, np.ndarray]  # each (N, *shape)
    action: np.ndarray  # (N, A)
    task: str  # instruction in words


@runtime_checkable
class Measured(Protocol):
    """Episodes whose lengths are known before they are read, as those of a `Dataset`."""

    @property
    def lengths(self) -> Sequence[int]:
        """The control steps of each."""
        ...


class Windows:
    """Every control step of every episode as a window that starts there; see the diagram in batch.py.

    Episodes are taken one at a time, and cast to the dtypes of the specification; where their lengths are known, as a
    store's are, none is held beside the windows.

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
        check_spec(spec)
        spec = spec.recorded  # the rest follows from the task and the data set of an episode
        lengths = list(episodes.lengths) if isinstance(episodes, Measured) else None
        if lengths is None:
            episodes = list(episodes)
            lengths = [len(episode.action) for episode in episodes]
        if not lengths:
            raise ValueError("there are no episodes to train on; expected at least one")
        features = {**spec.observation, "action": spec.action}
        steps = {
            name: torch.empty((sum(lengths), *feature.shape), dtype=DTYPES[feature.dtype], device=device)
            for name, feature in features.items()
        }
        start, texts = 0, []
        for i, episode in enumerate(episodes):  # not with zip, which holds the first one to its end
            length = lengths[i]
            try:
                arrays = fitting(
                    with_previous(episode.observation, episode.action, spec.observation), spec.observation, length
                )
                arrays["action"] = fitted("the action", episode.action, spec.action, length)
            except ValueError as error:
                raise ValueError(f"episode {i}: {error}") from error
            for name, values in arrays.items():
                steps[name][start : start + length] = torch.from_numpy(values)
            texts.append(episode.task)
            start += length
        if start != sum(lengths):
            raise ValueError(f"there were {start} control steps in the episodes, expected {sum(lengths)}")
        self.action = steps.pop("action")
        self.observation = steps
        counts = torch.tensor(lengths)
        self.tasks = sorted(set(texts))
        tasks = torch.tensor([self.tasks.index(text) for text in texts])
        self.task = torch.repeat_interleave(tasks, counts).to(device)  # of each step
        ends = counts.cumsum(0)
        self.first = torch.repeat_interleave(ends - counts, counts).to(device)  # first step of each step's episode
        self.last = torch.repeat_interleave(ends - 1, counts).to(device)
        self.balance, self.source = balance_of(episodes, lengths, device)
        self.device = self.action.device
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
            source=None if self.source is None else self.source[index],
        )

    def draw(self, batch_size: int, generator: torch.Generator, part: slice = slice(None)) -> Batch:
        """A batch of windows, or a part of its rows, drawn with replacement.

        Uniformly, or of each data set of a mixture its share.
        """
        if self.balance is not None:
            return self.gather(self.balance.draw(batch_size, generator)[part])
        index = torch.randint(len(self), (batch_size,), generator=generator, device=self.action.device)
        return self.gather(index[part])

    def order(self, generator: torch.Generator, seed: int) -> torch.Generator:
        """The training's own generator: a batch is drawn when it is needed."""
        return generator

    def fit_normalizers(self, policy: Policy) -> None:
        """Gives the policy the statistics of all steps, or of those of each data set."""
        parts = self.balance.parts if self.balance else [slice(None)]
        policy.fit_normalizers(self.observation, self.action, self.last, parts)
