"""Windows of episodes that do not fit on the device: what is large is read from the disk, batch by batch."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from flowhand.contracts.data.rows import Rows, RowSet

from ..batch import DTYPES, Batch
from ..policy import Policy
from .balance import balance_of
from .statistics import take_statistics

ORDER = 0x6F72646572  # makes the seed of the batches another than that of the training's other randomness
ROWS_AT_ONCE = 2**16  # that are held beside the tensors while these are filled


@runtime_checkable
class WindowSource(Protocol):
    """Windows to train on, wherever they lie: `Windows`, all on the device, and `Stream`."""

    tasks: list[str]
    device: torch.device  # of the batches

    def __len__(self) -> int:
        """Number of windows: one for each control step."""
        ...

    def gather(self, index: Tensor) -> Batch:
        """The windows that start at the given steps (B,)."""
        ...

    def draw(self, batch_size: int, generator: torch.Generator, part: slice = slice(None)) -> Batch:
        """A batch of windows drawn uniformly, with replacement, or a part of its rows.

        The generator alone decides which, and goes on as for the whole batch.
        """
        ...

    def order(self, generator: torch.Generator, seed: int) -> torch.Generator:
        """What to draw the batches of a training with, whose other randomness comes from `generator`."""
        ...

    def fit_normalizers(self, policy: Policy) -> None:
        """Gives the policy the statistics of all steps."""
        ...


@dataclass
class _Gathered:
    """A batch as far as it comes from the disk, in the main memory; pinned where a GPU trains."""

    past: Tensor  # (B, O) control steps
    future: Tensor  # (B, T)
    mask: Tensor
    task: Tensor
    source: Tensor | None
    read: dict[str, Tensor]


@dataclass
class _Ahead:
    """A batch that is being read for a generator that will be in this state."""

    size: int
    part: slice  # of its rows that is read
    before: Tensor  # states of the generator
    after: Tensor
    gathered: Future[_Gathered]


class Stream:
    """Every control step of every episode as a window that starts there, as in `Windows`, and in the same order.

    The smallest features, as many as fit, are on the device. The others are read for each batch. A thread reads
    `prefetch` batches ahead: it works with a copy of the generator, whose own state is always the one after the batches
    that were given out. So the batches are the same without the thread, and a training that is stopped goes on with the
    batch that it would have had.

    Args:
        rows: the episodes' values by control step.
        history: observations per window, O.
        prediction_horizon: actions per window, T.
        device: of the batches.
        resident_bytes: that features may take on the device.
        prefetch: batches that are read ahead; 0: without a thread.

    Attributes:
        tasks: the texts that `Batch.task` counts through, in the order of the alphabet.

    Raises:
        ValueError: there is no episode.
    """

    def __init__(
        self,
        rows: RowSet,
        history: int,
        prediction_horizon: int,
        device: torch.device | str = "cpu",
        resident_bytes: int = 0,
        prefetch: int = 2,
    ):
        lengths = np.asarray(rows.lengths, np.int64)
        if not len(lengths):
            raise ValueError("there are no episodes to train on; expected at least one")
        self.rows, self.device, self.prefetch = rows, torch.device(device), prefetch
        self._ends = lengths.cumsum()
        self._starts = self._ends - lengths
        self.tasks = sorted(set(rows.tasks))
        place = {text: i for i, text in enumerate(self.tasks)}
        self._task = np.array([place[text] for text in rows.tasks])  # of each episode
        self.balance, source = balance_of(rows, rows.lengths)
        self._source = None if source is None else source.numpy()  # of each control step
        self._back, self._ahead_steps = np.arange(1 - history, 1), np.arange(prediction_horizon)
        self.resident: dict[str, Tensor] = {}
        self._fill(resident_bytes)
        self._read = {name: each for name, each in rows.rows.items() if name not in self.resident}
        self._reading = threading.Lock()
        self._queue: deque[_Ahead] = deque()
        self._shadow = torch.Generator()
        self._thread = ThreadPoolExecutor(1, "windows") if prefetch else None

    def _fill(self, room: int) -> None:
        """Puts features on the device, from the smallest on."""
        for name, each in sorted(self.rows.rows.items(), key=lambda item: _bytes(item[1], len(self))):
            room -= _bytes(each, len(self))
            if room < 0:
                return
            values = torch.empty((len(self), *each.feature.shape), dtype=DTYPES[each.feature.dtype], device=self.device)
            for steps, block in self._blocks(each):
                values[steps[0] : steps[0] + len(steps)] = torch.from_numpy(block)
            self.resident[name] = values

    def _blocks(self, rows: Rows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All rows, part by part, with their steps."""
        for begin in range(0, len(self), ROWS_AT_ONCE):
            steps = np.arange(begin, min(begin + ROWS_AT_ONCE, len(self)))
            block = np.empty((len(steps), *rows.feature.shape), rows.feature.dtype)
            rows.take(steps, block)
            yield steps, block

    def __len__(self) -> int:
        """Number of windows: one for each control step."""
        return int(self._ends[-1])

    def gather(self, index: Tensor) -> Batch:
        """The windows that start at the given steps (B,)."""
        return self._complete(self._gather(index.cpu()))

    def draw(self, batch_size: int, generator: torch.Generator, part: slice = slice(None)) -> Batch:
        """A batch of windows drawn as in `Windows`, or a part of its rows; by a generator of the CPU."""
        if self._thread is None:
            return self._complete(self._gather(self._drawn(batch_size, generator)[part]))
        before = generator.get_state()
        first = self._queue[0] if self._queue else None
        if first is None or (first.size, first.part) != (batch_size, part) or not torch.equal(first.before, before):
            self._restart(before)
        while len(self._queue) <= self.prefetch:
            self._read_ahead(batch_size, part, self._thread)
        ready = self._queue.popleft()
        generator.set_state(ready.after)
        return self._complete(ready.gathered.result())

    def order(self, generator: torch.Generator, seed: int) -> torch.Generator:
        """A generator of its own, for batches are drawn before it is known what a training draws in between."""
        return torch.Generator().manual_seed(seed ^ ORDER)

    def fit_normalizers(self, policy: Policy) -> None:
        """Gives the policy the statistics of all steps, of which few are held at a time.

        Raises:
            ValueError: each data set is to have statistics of its own.
        """
        if policy.sources:
            raise ValueError(
                "statistics of each data set need all demonstrations in memory: raise data.memory_gb, or take "
                "data.statistics=all"
            )

        def values(name: str, steps: np.ndarray) -> Tensor:
            return self._taken(self.rows.rows[name], steps).to(self.device)

        actions = (torch.from_numpy(block) for _, block in self._blocks(self.rows.rows["action"]))
        take_statistics(policy, self.rows.statistics(), actions, values, self._last, len(self))

    def _last(self, steps: np.ndarray) -> np.ndarray:
        """The last step of the episode of each step."""
        return self._ends[np.searchsorted(self._ends, steps, side="right")] - 1

    def _drawn(self, batch_size: int, generator: torch.Generator) -> Tensor:
        if self.balance is not None:
            return self.balance.draw(batch_size, generator)
        return torch.randint(len(self), (batch_size,), generator=generator)

    def _restart(self, state: Tensor) -> None:
        for waiting in self._queue:
            waiting.gathered.cancel()
        self._queue.clear()
        self._shadow.set_state(state)

    def _read_ahead(self, batch_size: int, part: slice, thread: ThreadPoolExecutor) -> None:
        before = self._shadow.get_state()
        index = self._drawn(batch_size, self._shadow)[part]
        after = self._shadow.get_state()
        self._queue.append(_Ahead(batch_size, part, before, after, thread.submit(self._gather, index)))

    def _gather(self, index: Tensor) -> _Gathered:
        """What of a batch needs no device; in the thread."""
        steps = index.numpy()
        episode = np.searchsorted(self._ends, steps, side="right")
        last = self._ends[episode, None] - 1
        past = np.maximum(steps[:, None] + self._back, self._starts[episode, None])
        future = steps[:, None] + self._ahead_steps
        mask, future = future <= last, np.minimum(future, last)
        with self._reading:
            read = {name: self._taken(each, future if name == "action" else past) for name, each in self._read.items()}
        past, future, mask, task = map(self._pinned, (past, future, mask, self._task[episode]))
        source = None if self._source is None else self._pinned(self._source[steps])
        return _Gathered(past, future, mask, task, source, read)

    def _taken(self, rows: Rows, steps: np.ndarray) -> Tensor:
        shape, dtype = (steps.size, *rows.feature.shape), DTYPES[rows.feature.dtype]
        out = torch.empty(shape, dtype=dtype, pin_memory=self.device.type == "cuda")
        rows.take(steps.reshape(-1), out.numpy())
        return out.view(*steps.shape, *rows.feature.shape)

    def _pinned(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def _complete(self, batch: _Gathered) -> Batch:
        """The batch on the device."""

        def here(tensor: Tensor) -> Tensor:
            return tensor.to(self.device, non_blocking=True)

        values = {name: here(tensor) for name, tensor in batch.read.items()}
        past, future = here(batch.past), here(batch.future)
        for name, rows in self.resident.items():
            values[name] = rows[future if name == "action" else past]
        action = values.pop("action")
        observation = {name: values[name] for name in self.rows.rows if name != "action"}
        source = None if batch.source is None else here(batch.source)
        return Batch(observation, action, here(batch.mask), here(batch.task), source)


def _bytes(rows: Rows, steps: int) -> int:
    return rows.feature.size * np.dtype(rows.feature.dtype).itemsize * steps
