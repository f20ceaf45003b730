"""The rows of recorded features as a policy reads them: from arrays on the disk, or decoded when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np
from tqdm import tqdm

from flowhand.contracts.data.episode import Episode
from flowhand.contracts.data.statistics import Statistics
from flowhand.contracts.features import PREVIOUS, Feature, Spec
from flowhand.contracts.history import with_previous
from flowhand.contracts.resize import resized

from ..columns import make_episode
from ..config import TrainingDataConfig
from ..states import AS_STORED, IMAGES
from ..statistics import gathered
from .arrays import ArrayFolder, EpisodeArray
from .statistics import kept_statistics

VERSION = 1  # of what becomes of a recorded value
ROWS_AT_ONCE = 2**16  # that are held for the statistics


class Source(Protocol):
    """What rows are made from: a reader of recorded files, or a store."""

    @property
    def lengths(self) -> Sequence[int]:
        """The control steps of each episode."""
        ...

    @property
    def tasks(self) -> Sequence[str]:
        """The task text of each episode."""
        ...

    @property
    def numbers(self) -> Sequence[int]:
        """What the files count each episode as."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when the files do."""
        ...

    def origin(self, name: str) -> str:
        """Where in the files a feature comes from, and which of their episodes the numbers count."""
        ...

    def blocks(self, name: str, episode: int) -> Iterator[np.ndarray]:
        """The values of a feature over an episode, part by part."""
        ...

    def pick(self, name: str, episode: int, steps: np.ndarray) -> np.ndarray:
        """The values of a feature at these steps of an episode."""
        ...

    def plan(self, episode: int) -> np.ndarray | None:
        """The plans (N, T, A) of an episode's states; None if it has none."""
        ...

    def release(self) -> None:
        """Lets go of files that are kept open for the next reading."""
        ...


def read_features(spec: Spec, sizes: Mapping[str, tuple[int, int]]) -> dict[str, Feature]:
    """What a policy reads of each observation and of the action, where it reads images at these sizes (h, w).

    Raises:
        ValueError: a size is given for something that is no image.
    """
    features = {**spec.observation, "action": spec.action}
    for name, size in sizes.items():
        feature = features.get(name)
        if feature is None or feature.kind not in IMAGES:
            raise ValueError(f"there is no image {name!r} to be read at {size[0]} x {size[1]} points")
        features[name] = replace(feature, shape=(*size, *feature.shape[2:]))
    return features


def row_bytes(features: Mapping[str, Feature]) -> int:
    """What one control step of them takes."""
    return sum(feature.size * np.dtype(feature.dtype).itemsize for feature in features.values())


def training_rows(
    data: Source, episodes: Sequence[int], features: Mapping[str, Feature], config: TrainingDataConfig
) -> TrainingRows:
    """The rows as the settings say, with a bar that shows how far the decoding is, if it takes more than a moment."""
    folder = ArrayFolder(config.decoded_dir, int(config.cache_gb * 1e9))
    with tqdm(total=len(features) * len(episodes), desc="decode", unit="ep", delay=2, leave=False) as bar:
        return TrainingRows(data, episodes, features, folder, bar.update)


def as_read(values: np.ndarray, feature: Feature, where: str) -> np.ndarray:
    """Recorded values (N, ...) as rows (N, *shape): images at another size, all else in float32.

    Raises:
        ValueError: float32 cannot hold a value.
    """
    if feature.kind in IMAGES:
        images = values.reshape(*values.shape[:3], -1)  # a depth image may have no axis of channels
        # One at a time, for the last bit of a matrix product may depend on how many rows it has.
        rows = np.stack([resized(image, (feature.shape[0], feature.shape[1])) for image in images])
        return rows.reshape(len(values), *feature.shape)
    if feature.kind in AS_STORED:
        return values
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(values.reshape(len(values), *feature.shape), np.float32)
    if not np.isfinite(rows).all():
        raise ValueError(f"{where} has values that float32 cannot hold")
    return rows


class _Steps:
    """Control steps of the episodes, one episode after the other, and which episode each belongs to."""

    def __init__(self, lengths: Sequence[int]):
        self.ends = np.cumsum(np.asarray(lengths, np.int64))
        self.starts = self.ends - lengths

    def episodes(self, steps: np.ndarray) -> np.ndarray:
        """The episode of each step."""
        if len(steps) and not (steps.min() >= 0 and steps.max() < self.ends[-1]):
            raise IndexError(f"steps {steps.min()} to {steps.max()} asked for, there are {self.ends[-1]}")
        return np.searchsorted(self.ends, steps, side="right")


class KeptRows:
    """Rows from an array on the disk; its pages are in memory only as long as the system has room for them."""

    def __init__(self, feature: Feature, array: EpisodeArray, numbers: Sequence[int], lengths: Sequence[int]):
        self.feature = feature
        places = array.places()
        self._steps = _Steps(lengths)
        self._shift = np.array([places[number][0] for number in numbers]) - self._steps.starts
        self._values = np.asarray(array.mapped(max(sum(places[number]) for number in numbers)))

    def take(self, steps: np.ndarray, out: np.ndarray) -> None:
        """See `Rows`. Other threads run meanwhile."""
        place = steps + self._shift[self._steps.episodes(steps)]
        np.take(self._values, place, axis=0, out=out, mode="clip")  # which is checked, and `raise` would copy


class LiveRows:
    """Rows that are read from the files each time, a stretch of an episode at a time."""

    def __init__(
        self,
        feature: Feature,
        pick: Callable[[int, np.ndarray], np.ndarray],
        episodes: Sequence[int],
        lengths: Sequence[int],
    ):
        self.feature, self._pick, self._episodes = feature, pick, episodes
        self._steps = _Steps(lengths)

    def take(self, steps: np.ndarray, out: np.ndarray) -> None:
        """See `Rows`."""
        places = self._steps.episodes(steps)
        for place in np.unique(places):
            part = np.flatnonzero(places == place)
            out[part] = self._pick(self._episodes[place], steps[part] - self._steps.starts[place])


class TrainingRows:
    """Recorded episodes as training reads them; a `RowSet`.

    Each value is decoded once for all runs, where the folder has room for it. One line is logged where it has not.

    Args:
        data: the recorded set.
        episodes: which of its episodes, by their place in it.
        features: of each observation that is read, and of the action, as the policy reads them; see `read_features`.
        folder: where the arrays lie.
        progress: told how many more episodes of a feature are there.

    Raises:
        ValueError: a value cannot be decoded; the line names the file, the episode and the frame or column.
    """

    def __init__(
        self,
        data: Source,
        episodes: Sequence[int],
        features: Mapping[str, Feature],
        folder: ArrayFolder,
        progress: Callable[[int], object] = lambda count: None,
    ):
        self.data, self.episodes, self.features, self.folder = data, list(episodes), dict(features), folder
        lengths, tasks, numbers = data.lengths, data.tasks, data.numbers
        self.lengths = [lengths[episode] for episode in episodes]
        self.tasks = [tasks[episode] for episode in episodes]
        self._numbers = [numbers[episode] for episode in episodes]
        small_first = sorted(features, key=lambda name: features[name].size)
        self.rows = {name: self._rows(name, progress) for name in small_first}
        data.release()

    def __iter__(self) -> Iterator[Episode]:
        """The episodes; what training does not read of them is zero."""
        begin = 0
        for number, length, task in zip(self.episodes, self.lengths, self.tasks, strict=True):
            arrays = self._block(self.rows, np.arange(begin, begin + length))
            begin += length
            episode = make_episode(arrays, arrays.pop("action"), task, 1.0)
            yield replace(episode, plan=self.data.plan(number))

    def statistics(self) -> Statistics:
        """See `RowSet`; measured once, and kept in the folder."""
        told = [self.data.fingerprint, self._numbers, [self._key(name) for name in sorted(self.rows)]]
        key = hashlib.sha256(repr(told).encode()).hexdigest()[:32]
        return kept_statistics(self.folder.path / f"{key}.stats.json", self._measured)

    def _measured(self) -> Statistics:
        rows = {name: rows for name, rows in self.rows.items() if rows.feature.kind not in IMAGES}
        total = sum(self.lengths)

        def passes() -> Iterator[dict[str, np.ndarray]]:
            for begin in range(0, total, ROWS_AT_ONCE):
                yield self._block(rows, np.arange(begin, min(begin + ROWS_AT_ONCE, total)))

        return gathered(passes, {name: each.feature.shape for name, each in rows.items()}, total)

    def _block(self, rows: Mapping[str, KeptRows | LiveRows], steps: np.ndarray) -> dict[str, np.ndarray]:
        arrays = {name: np.empty((len(steps), *r.feature.shape), r.feature.dtype) for name, r in rows.items()}
        for name, each in rows.items():
            each.take(steps, arrays[name])
        return arrays

    def _rows(self, name: str, progress: Callable[[int], object]) -> KeptRows | LiveRows:
        feature, lengths = self.features[name], dict(zip(self._numbers, self.lengths, strict=True))
        array = EpisodeArray(self.folder, self._key(name), feature.shape, feature.dtype)
        place = dict(zip(self._numbers, self.episodes, strict=True))
        if array.has_room_for(lengths) and array.add(
            lengths, lambda number: self._decoded(name, place[number]), progress
        ):
            return KeptRows(feature, array, self._numbers, self.lengths)
        return LiveRows(feature, partial(self._picked, name), self.episodes, self.lengths)

    def _decoded(self, name: str, episode: int) -> Iterator[np.ndarray]:
        if self.features[name].kind == PREVIOUS:
            yield self._previous(name, episode)
            return
        for block in self.data.blocks(name, episode):
            yield as_read(block, self.features[name], f"episode {episode}: {name!r}")

    def _picked(self, name: str, episode: int, steps: np.ndarray) -> np.ndarray:
        if self.features[name].kind == PREVIOUS:
            return self._previous(name, episode)[steps]
        return as_read(self.data.pick(name, episode, steps), self.features[name], f"episode {episode}: {name!r}")

    def _previous(self, name: str, episode: int) -> np.ndarray:
        """The action of the step before each of an episode, which no file holds."""
        action = np.concatenate(list(self._decoded("action", episode)))
        states = [each for each, feature in self.features.items() if feature.kind == "state"]
        first = {each: self._picked(each, episode, np.zeros(1, np.int64)) for each in states}
        return with_previous(first, action, self.features)[name]

    def _key(self, name: str) -> str:
        """All that the rows of a feature depend on."""
        feature = self.features[name]
        names = self.features if feature.kind == PREVIOUS else [name]
        told = [(each, self.features[each].to_dict()) for each in names]
        told += [self.data.origin(each) for each in names if self.features[each].kind != PREVIOUS]
        text = f"{VERSION} {self.data.fingerprint} {feature.shape} {feature.dtype} {told}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]
