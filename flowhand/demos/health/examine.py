"""Looks through a data set once, and says what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from flowhand.contracts.features import Feature

from ..lerobot.dataset import LeRobotDataset
from ..native import Store
from ..reader import Reader
from .dimensions import findings as of_dimensions
from .episodes import Sketches, Times, named, of_lengths, of_starts, of_texts
from .finding import Finding, Health
from .frames import Camera
from .rows import Quaternions, RowMeasures
from .stored import of_lerobot

MOST_UNREADABLE = 5  # episodes of which each has a line


def examine(data: Store | Reader, frames: Literal["none", "some", "all"] = "some") -> Health:
    """What is wrong with a data set, where, and what to do about it.

    All rows of numbers are read, one episode at a time; what is kept of an episode is a few numbers.

    Args:
        data: the data set.
        frames: which frames are decoded; some: three of each of a few episodes.
    """
    names = numeric(data)
    features = {name: data.spec.action if name == "action" else data.spec.observation[name] for name in names}
    low, high = (np.concatenate(ends) for ends in zip(*(_bounds(f) for f in features.values()), strict=True))
    labels = [label for name, feature in features.items() for label in labels_of(name, feature)]
    is_action = np.concatenate([np.full(feature.size, name == "action") for name, feature in features.items()])
    rows, sketches, times = RowMeasures(low, high), Sketches(len(data), len(labels)), _times(data)
    rotations = Quaternions(_fours(features))
    health = Health(len(data), sizes={name: feature.size for name, feature in features.items()}, labels=labels)
    still: dict[int, np.ndarray] = {}
    broken: dict[int, str] = {}
    texts: list[str] = []  # of the episodes that can be read
    for episode in range(len(data)):
        try:
            values, text = _read(data, episode, names)
            stamps = data.times_s(episode) if times and isinstance(data, Reader) else None
        except ValueError as error:
            broken[episode] = str(error)
            continue
        texts.append(text)
        rows.add(values, episode)
        rotations.add(values, episode)
        sketches.add(values, episode)
        health.read, health.steps = health.read + 1, health.steps + len(values)
        if times and stamps is not None:
            times.add(stamps, episode)
        if frames == "all":
            still[episode] = (values[1:] == values[:-1])[:, ~is_action].all(1)
    health.low, health.high, health.mean, health.std = rows.low, rows.high, rows.mean, rows.std
    health.starts = sketches.starts
    health.add(*_unreadable(broken, len(data)), *(times.findings() if times else ()))
    if health.read:
        health.add(*_judged(rows, rotations, sketches, labels, is_action))
        health.add(*of_texts(texts, sketches.numbers))
        health.add(*(of_lerobot(data, health.measured()) if isinstance(data, LeRobotDataset) else ()))
    _look_at_frames(data, frames, still, health)
    return health


def numeric(data: Store | Reader) -> list[str]:
    """Names of the features that are numbers and no images; the action comes last."""
    features = data.spec.observation
    return [name for name, f in features.items() if f.kind not in ("image", "depth") and f.dtype != "str"] + ["action"]


def labels_of(name: str, feature: Feature) -> list[str]:
    """A name for each dimension of a feature: state.elbow, or state[3]."""
    if feature.size == 1:
        return [name]
    if feature.names and len(feature.names) == feature.size:
        return [f"{name}.{each}" for each in feature.names]
    return [f"{name}[{place}]" for place in range(feature.size)]


def rows_of(data: Store | Reader, episode: int, names: list[str]) -> np.ndarray:
    """The numbers of an episode as doubles (n, D), features in the order of their names.

    Raises:
        ValueError: it cannot be read.
    """
    return _read(data, episode, names)[0]


def _read(data: Store | Reader, episode: int, names: list[str]) -> tuple[np.ndarray, str]:
    """The numbers of an episode, and its text."""
    if isinstance(data, Reader):
        got = data.only([name for name in names if name != "action"]).read(episode)
    else:
        got = data[episode]
    arrays = {**got.observation, "action": got.action}
    return np.concatenate([arrays[name].reshape(len(got), -1).astype(np.float64) for name in names], 1), got.task


def _bounds(feature: Feature) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest valid values (size,), infinite where none is stated."""
    ends = feature.low, feature.high
    low, high = (
        np.full(feature.size, e) if b is None else np.array(b) for b, e in zip(ends, (-np.inf, np.inf), strict=True)
    )
    if feature.choices is not None:
        count = np.array(feature.choices)
        low, high = np.where(count > 0, 0, low), np.where(count > 0, count - 1, high)
    return low.astype(np.float64), high.astype(np.float64)


def _fours(features: dict[str, Feature]) -> np.ndarray:
    """Places of four values each that may be a rotation (Q, 4)."""
    found, begin = [], 0
    for feature in features.values():
        if feature.size % 4 == 0 and np.dtype(feature.dtype).kind == "f":
            found += [range(place, place + 4) for place in range(begin, begin + feature.size, 4)]
        begin += feature.size
    return np.array([list(four) for four in found], np.int64).reshape(-1, 4)


def _times(data: Store | Reader) -> Times | None:
    return Times(1 / data.spec.control_dt_s) if isinstance(data, Reader) and data.spec.control_dt_s else None


def _unreadable(broken: dict[int, str], total: int) -> Iterator[Finding]:
    for number, (episode, line) in enumerate(broken.items()):
        if number == MOST_UNREADABLE:
            text = f"{len(broken)} of {total} episodes cannot be read: {named(list(broken))}"
            yield Finding("error", "unreadable", text, "See the lines above.", episode)
            return
        advice = "Fetch the file again, or leave the episode out (convert, episodes=)."
        yield Finding("error", "unreadable", line, advice, episode)


def _judged(
    rows: RowMeasures,
    rotations: Quaternions,
    sketches: Sketches,
    labels: list[str],
    is_action: np.ndarray,
) -> Iterator[Finding]:
    yield from of_dimensions(rows, rotations, labels, is_action)
    yield from sketches.copies()
    yield from sketches.near_copies(rows.mean, rows.std)
    yield from of_lengths(sketches.lengths, sketches.numbers)
    states = np.flatnonzero(~is_action)
    starts, names = sketches.starts[:, states], [labels[place] for place in states]
    yield from of_starts(starts, sketches.numbers, names, rows.low[states], rows.high[states])


def _look_at_frames(data: Store | Reader, frames: str, still: dict[int, np.ndarray], health: Health) -> None:
    cameras = [name for name, feature in data.spec.observation.items() if feature.kind in ("image", "depth")]
    for name in cameras if frames != "none" else ():
        camera = Camera(data, name)
        if frames == "all":
            camera.every(still)
        else:
            camera.sample()
        health.frames += camera.decoded
        health.add(*camera.findings(len(data)))
