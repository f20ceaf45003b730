"""The rows of several data sets as those of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from flowhand.contracts.data.episode import Episode
from flowhand.contracts.data.rows import Rows, RowSet
from flowhand.contracts.data.statistics import Statistics
from flowhand.contracts.features import Feature

from ..mixture import Column, Mixture


class JoinedRows:
    """One feature of several sets, one set after the other."""

    def __init__(self, feature: Feature, parts: Sequence[tuple[Rows, Column]], ends: np.ndarray):
        self.feature, self._parts, self._ends = feature, parts, ends

    def take(self, steps: np.ndarray, out: np.ndarray) -> None:
        """See `Rows`."""
        which = np.searchsorted(self._ends, steps, side="right")
        for number, (rows, column) in enumerate(self._parts):
            places = np.flatnonzero(which == number)
            if len(places):
                first = self._ends[number - 1] if number else 0
                own = np.empty((len(places), *rows.feature.shape), rows.feature.dtype)
                rows.take(steps[places] - first, own)
                out[places] = column(own)


class JoinedRowSet:
    """The rows of a mixture; a `RowSet`.

    Args:
        mixture: says how its sets are mapped.
        parts: the rows of each set.
        features: of each observation that is read, and of the action, as the policy reads them.
    """

    def __init__(self, mixture: Mixture, parts: Sequence[RowSet], features: Mapping[str, Feature]):
        self._mixture, self._parts = mixture, parts
        self.sources, self.weights = mixture.sources, mixture.weights
        ends = np.cumsum([sum(part.lengths) for part in parts])
        self.rows: dict[str, Rows] = {}
        for name, feature in features.items():
            found = [(p.rows[c[name].name], c[name]) for p, c in zip(parts, mixture.columns, strict=True)]
            self.rows[name] = JoinedRows(feature, found, ends)

    @property
    def lengths(self) -> Sequence[int]:
        """The control steps of each episode."""
        return [length for part in self._parts for length in part.lengths]

    @property
    def tasks(self) -> Sequence[str]:
        """The task text of each episode."""
        return [text for part in self._parts for text in part.tasks]

    def statistics(self) -> Statistics:
        """Moments, extremes and true quantiles of the states and the action, over all rows."""
        return self._mixture.statistics()

    def __iter__(self) -> Iterator[Episode]:
        """The episodes, with the values that `rows` gives."""
        for number, part in enumerate(self._parts):
            for episode in part:
                yield self._mixture.mapped(number, episode)
