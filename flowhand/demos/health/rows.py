"""Measures of every dimension over all rows, of which one episode is held at a time."""

from __future__ import annotations

import numpy as np

FEW = 12  # different values: a dimension with no more is a switch, whose jumps are no faults
KEPT = 8  # of the largest jumps and spikes of a dimension
UNIT = 1e-3  # that the square of a rotation's length may be off 1
TURN = 2 * np.pi  # what an angle jumps by where it wraps


class Largest:
    """The largest values of each dimension, with the episode and the step of each."""

    def __init__(self, dimensions: int):
        self.values = np.full((dimensions, KEPT), -np.inf)
        self.places = np.full((dimensions, KEPT, 2), -1)  # episode, step
        self.beside = np.zeros((dimensions, KEPT))  # what came with the value

    def add(self, values: np.ndarray, beside: np.ndarray, episode: int, first_step: int) -> None:
        """Looks at values (n, D), of which the first belongs to `first_step`."""
        if not len(values):
            return
        count = min(KEPT, len(values))
        top = np.argpartition(-values, count - 1, axis=0)[:count].T if len(values) > count else np.arange(count)[None]
        top = np.broadcast_to(top, (len(self.values), count))
        rows = np.arange(len(self.values))[:, None]
        found = np.concatenate([self.values, values[top, rows]], 1)
        order = np.argsort(-found, axis=1, kind="stable")[:, :KEPT]
        places = np.stack([np.full_like(top, episode), top + first_step], -1)
        self.places = np.concatenate([self.places, places], 1)[rows, order]
        self.beside = np.concatenate([self.beside, beside[top, rows]], 1)[rows, order]
        self.values = found[rows, order]


class Extreme:
    """How often the smallest or the largest value of a dimension occurs, and how it is entered."""

    def __init__(self, dimensions: int, sign: int):
        self.sign = sign  # 1: the largest, -1: the smallest
        self.value = np.full(dimensions, -np.inf)  # times the sign
        self.count = np.zeros(dimensions, np.int64)  # rows that have it
        self.entries = np.zeros(dimensions, np.int64)  # times that the value is reached from another
        self.entering = np.zeros(dimensions)  # sum of the sizes of the steps before those that reach it
        self.place = np.full((dimensions, 2), -1)  # episode and step of the first

    def add(self, rows: np.ndarray, episode: int) -> None:
        """Looks at the rows (n, D) of an episode."""
        rows = self.sign * rows
        most = rows.max(0)
        new = most > self.value
        for whole in (self.count, self.entries, self.entering):
            whole[new] = 0
        self.value = np.maximum(self.value, most)
        at = rows == self.value
        entered = at[2:] & ~at[1:-1]
        first = (self.count == 0) & at.any(0)
        self.place[first] = np.stack([np.full(first.sum(), episode), at.argmax(0)[first]], -1)
        self.count += at.sum(0)
        self.entries += entered.sum(0)
        self.entering += np.where(entered, np.abs(np.diff(rows, axis=0))[:-1], 0).sum(0)


class Quaternions:
    """Four values each that may be a rotation, and how often one becomes its negative, which is the same rotation.

    Args:
        places: of the values in a row, (Q, 4).
    """

    def __init__(self, places: np.ndarray):
        self.places = places
        self.is_unit = np.ones(len(places), bool)
        self.flips = np.zeros(len(places), np.int64)
        self.first = np.full((len(places), 2), -1)  # episode and step of the first

    def add(self, rows: np.ndarray, episode: int) -> None:
        """Looks at the rows (n, D) of an episode."""
        values = rows[:, self.places]
        self.is_unit &= (np.abs((values**2).sum(2) - 1) < UNIT).all(0)
        flipped = (values[1:] * values[:-1]).sum(2) < -0.5
        new = (self.flips == 0) & flipped.any(0)
        if new.any():
            self.first[new] = np.stack([np.full(new.sum(), episode), flipped.argmax(0)[new] + 1], -1)
        self.flips += flipped.sum(0)

    @property
    def turning(self) -> np.ndarray:
        """Which of them are rotations that become their negative."""
        return np.flatnonzero(self.is_unit & (self.flips > 0))


class RowMeasures:
    """All measures of D dimensions; `low` and `high` (D,) are the bounds that values should keep, infinite for none."""

    def __init__(self, low: np.ndarray, high: np.ndarray):
        size = len(low)
        self.bounds = low, high
        self.count, self.steps, self.turns = 0, 0, 0
        self.mean, self.squares = np.zeros(size), np.zeros(size)
        self.smallest, self.largest = Extreme(size, -1), Extreme(size, 1)
        self.outside = np.zeros(size, np.int64)
        self.outside_place = np.full((size, 2), -1)
        self.moved = np.zeros(size, np.int64)  # steps that change the value
        self.first_squares, self.second_squares = np.zeros(size), np.zeros(size)  # of the differences, and of theirs
        self.jumps, self.spikes = Largest(size), Largest(size)
        self.wraps = np.zeros(size, np.int64)
        self._values: list[set[float] | None] = [set() for _ in range(size)]

    def add(self, rows: np.ndarray, episode: int) -> None:
        """Measures the rows (n, D) of an episode, all finite."""
        n, total = len(rows), self.count + len(rows)
        mean = rows.mean(0)
        gap = mean - self.mean
        self.squares += ((rows - mean) ** 2).sum(0) + gap**2 * (self.count * n / total)
        self.mean += gap * (n / total)
        self.count = total
        self.smallest.add(rows, episode)
        self.largest.add(rows, episode)
        self._look_outside(rows, episode)
        self._look_at_changes(rows, episode)
        for dimension, known in enumerate(self._values):
            if known is not None:
                known.update(np.unique(rows[:, dimension]).tolist())
                self._values[dimension] = known if len(known) <= FEW else None

    def _look_outside(self, rows: np.ndarray, episode: int) -> None:
        outside = (rows < self.bounds[0]) | (rows > self.bounds[1])
        first = (self.outside == 0) & outside.any(0)
        self.outside_place[first] = np.stack([np.full(first.sum(), episode), outside.argmax(0)[first]], -1)
        self.outside += outside.sum(0)

    def _look_at_changes(self, rows: np.ndarray, episode: int) -> None:
        first = np.diff(rows, axis=0)
        second = np.diff(first, axis=0)
        size = np.abs(first)
        self.moved += (first != 0).sum(0)
        self.steps += len(first)
        self.turns += len(second)
        self.first_squares += (first**2).sum(0)
        self.second_squares += (second**2).sum(0)
        self.wraps += (np.abs(size - TURN) < 0.1 * TURN).sum(0)
        self.jumps.add(size, size, episode, 1)
        self.spikes.add(np.abs(second) / 2, np.abs(rows[2:] - rows[:-2]), episode, 1)

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of each dimension."""
        return np.sqrt(self.squares / max(self.count, 1))

    @property
    def low(self) -> np.ndarray:
        """Smallest value of each dimension."""
        return -self.smallest.value

    @property
    def high(self) -> np.ndarray:
        """Largest value of each dimension."""
        return self.largest.value

    @property
    def is_switch(self) -> np.ndarray:
        """Which dimensions have few different values."""
        return np.array([known is not None for known in self._values], bool)

    @property
    def step_size(self) -> np.ndarray:
        """Root mean square of the steps that change a value."""
        return np.sqrt(self.first_squares / np.maximum(self.moved, 1))

    @property
    def jerk(self) -> np.ndarray:
        """Spread of the differences of steps over that of the steps: sqrt(3) of white noise, near 0 if smooth."""
        first = self.first_squares / max(self.steps, 1)
        return np.sqrt(self.second_squares / max(self.turns, 1) / np.where(first > 0, first, np.inf))
