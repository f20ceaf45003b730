"""What training reads of recorded episodes: the values of a feature by control step, wherever they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from ..features import Feature
from .episode import Episode
from .statistics import Statistics


@runtime_checkable
class Rows(Protocol):
    """The values of one feature at all control steps of the episodes, one episode after the other."""

    @property
    def feature(self) -> Feature:
        """What a row is: states and actions are vectors of float32, images uint8 at the size that the policy reads."""
        ...

    def take(self, steps: np.ndarray, out: np.ndarray) -> None:
        """Writes the rows of these control steps (n,) int64, in any order, into `out` (n, *shape).

        Another thread may do so, one at a time.

        Raises:
            ValueError: a row cannot be read; the line names the file, the episode and the row.
        """
        ...


@runtime_checkable
class RowSet(Protocol):
    """Episodes whose values can be had by control step, so that none need be held in memory."""

    @property
    def lengths(self) -> Sequence[int]:
        """The control steps of each episode."""
        ...

    @property
    def tasks(self) -> Sequence[str]:
        """The task text of each episode."""
        ...

    @property
    def rows(self) -> Mapping[str, Rows]:
        """By the name of the observation, and "action"."""
        ...

    def statistics(self) -> Statistics:
        """Moments, extremes and true quantiles of the states and the action, over all rows."""
        ...

    def __iter__(self) -> Iterator[Episode]:
        """The episodes, with the values that `rows` gives."""
        ...
