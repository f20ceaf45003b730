"""How columns of recorded files become features: names, types, kinds. Every reader goes through here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowhand.contracts.data.episode import Episode
from flowhand.contracts.features import DTYPES, RESERVED, Feature, shown

NUMBERS = ("float16", "float32", "float64", "uint8", "uint16", "int8", "int16", "int32", "int64", "uint32", "bool")
MOST_NAMES = 10_000  # names of dimensions that are looked at


@dataclass(frozen=True)
class Column:
    """One column of the files and the feature that it becomes."""

    source: str  # its name in the files
    stored: str  # its dtype in the files
    feature: Feature
    kind: str  # state | image | depth | action
    names: tuple[str, ...] = ()  # of the dimensions; empty: not known
    encoding: str = "numbers"  # numbers | video | png, jpeg and the like: image


def column(
    source: str,
    stored: str,
    shape: Sequence[int],
    kind: str,
    names: Sequence[str] = (),
    encoding: str = "numbers",
    choices: tuple[int, ...] | None = None,
) -> Column:
    """Describes a column; this is the one place that says which dtype the feature has.

    A feature keeps the dtype that is stored where features may have it, and is float32 otherwise.

    Raises:
        ValueError: it holds no numbers, or no feature may have its shape.
    """
    if stored not in NUMBERS:
        raise ValueError(f"column {source!r} has dtype {shown(stored)}; expected one of {', '.join(NUMBERS)}")
    if kind == "image" and _is_channels_first(shape):
        shape = (shape[1], shape[2], shape[0])
    dtype = stored if stored in DTYPES else "float32"
    is_image = kind in ("image", "depth")
    names = tuple(names) if len(names) == (tuple(shape) or (1,))[-1] and not is_image else ()
    more: dict[str, Any] = {"kind": kind, "names": names or None, "camera": source if is_image else ""}
    try:
        feature = Feature(tuple(shape) or (1,), dtype, "", choices=choices, **more)
    except ValueError as error:
        raise ValueError(f"column {source!r}: {error}") from error
    return Column(source, stored, feature, kind, names, encoding)


def kind_of(shape: Sequence[int], dtype: str) -> str:
    """What an array of this shape at each step is taken for: an image has 3 colours and at least 8 x 8 points."""
    if len(shape) == 3 and dtype in ("uint8", "float32", "float64", "float16"):
        height, width, depth = (shape[1], shape[2], shape[0]) if _is_channels_first(shape) else shape
        if depth == 3 and min(height, width) >= 8:
            return "image"
    if dtype == "uint16" and len(shape) in (2, 3) and min(shape[:2]) >= 8:
        return "depth"
    return "state"


def _is_channels_first(shape: Sequence[int]) -> bool:
    return len(shape) == 3 and shape[0] == 3 and shape[2] != 3


def names_of(value: Any) -> tuple[str, ...]:
    """Names of dimensions out of what is found in the wild: a list, lists in lists, or a mapping of lists."""
    found: list[str] = []
    _collect(value, found, depth=8)
    return tuple(found)


def _collect(value: Any, found: list[str], depth: int) -> None:
    if isinstance(value, str) and len(found) < MOST_NAMES:
        found.append(value)
    elif isinstance(value, Mapping) and depth:
        if all(isinstance(item, int) and not isinstance(item, bool) for item in value.values()):
            found += [str(name) for name, _ in sorted(value.items(), key=lambda pair: pair[1])][:MOST_NAMES]
        else:
            for item in value.values():
                _collect(item, found, depth - 1)
    elif isinstance(value, list | tuple) and depth:
        for item in value:
            _collect(item, found, depth - 1)


def feature_names(sources: Iterable[str], prefixes: Sequence[str]) -> dict[str, str]:
    """Names of features for names of columns: the longest prefix is taken off, and what is no identifier replaced.

    Args:
        sources: names of the columns.
        prefixes: what may be taken off, such as "observation.images." and "observation.".

    Returns:
        The name in the specification by name of the column. Where two columns would have one name, both keep theirs
        whole.
    """
    sources = list(sources)
    short = {source: _identifier(_without(source, prefixes)) for source in sources}
    counts: dict[str, int] = {}
    for name in short.values():
        counts[name] = counts.get(name, 0) + 1
    named = {source: name if counts[name] == 1 else _identifier(source) for source, name in short.items()}
    taken: dict[str, str] = {}
    for source, name in named.items():
        if name in taken:
            raise ValueError(f"columns {taken[name]!r} and {source!r} would both be called {name!r}; rename one")
        taken[name] = source
    return named


def _without(source: str, prefixes: Sequence[str]) -> str:
    for prefix in sorted(prefixes, key=len, reverse=True):
        if source.startswith(prefix) and source != prefix:
            return source.removeprefix(prefix)
    return source


def _identifier(text: str) -> str:
    name = re.sub(r"\W", "_", text, flags=re.ASCII).strip("_") or "unnamed"
    return f"observation_{name}" if name[0].isdigit() or name in RESERVED or not name.isidentifier() else name


def as_feature(values: np.ndarray, column: Column, where: str) -> np.ndarray:
    """The values (N, ...) as the column's feature has them.

    Raises:
        ValueError: they have another shape, or are not finite.
    """
    shape = (len(values), *column.feature.shape)
    if column.kind == "image" and values.shape != shape and _is_channels_first(values.shape[1:]):
        values = values.transpose(0, 2, 3, 1)
    if values.shape != shape and values.size == np.prod(shape, dtype=object) and values.ndim <= 2:
        values = values.reshape(shape)  # a scalar at each step is a vector of one
    if values.shape != shape:
        raise ValueError(f"{where}: the shape of a step is {values.shape[1:]}, expected {column.feature.shape}")
    if values.dtype.kind == "f" and np.dtype(column.feature.dtype).kind != "f":
        raise ValueError(f"{where}: {values.dtype}, expected {column.feature.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is looked at below
        values = np.ascontiguousarray(values, column.feature.dtype)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        step, *dimension = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise ValueError(
            f"{where}: {values[(step, *dimension)]} at row {step}, dimension {dimension}; expected numbers"
        )
    return values


def images_as_bytes(values: np.ndarray, scale: float, where: str) -> np.ndarray:
    """Images stored as numbers (N, H, W, 3) or (N, 3, H, W) as uint8 (N, H, W, 3).

    Args:
        values: the images.
        scale: what a value is multiplied by to be a grey level: 1 or 255.
        where: names the column in an error.

    Raises:
        ValueError: a value is outside 0 to 255, or between two grey levels where these are stored themselves.
    """
    if _is_channels_first(values.shape[1:]):
        values = values.transpose(0, 2, 3, 1)
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    levels = values * np.asarray(scale, values.dtype)
    whole = np.rint(levels)
    if not (np.isfinite(levels).all() and (whole >= 0).all() and (whole <= 255).all()):
        raise ValueError(f"{where}: grey levels are outside 0 to 255")
    if scale == 1 and not np.array_equal(whole, levels):
        raise ValueError(f"{where}: grey levels are no whole numbers, so they would be changed; expected 0, 1, ... 255")
    return whole.astype(np.uint8)


def make_episode(
    observation: dict[str, np.ndarray],
    action: np.ndarray,
    task: str,
    control_dt_s: float,
    reward: np.ndarray | None = None,
    success: np.ndarray | None = None,
    seed: int | None = None,
    intervention: np.ndarray | None = None,
) -> Episode:
    """An episode of recorded arrays. What was not recorded is zero, for an episode has all fields.

    Raises:
        ValueError: a reward is no finite number in float32.
    """
    steps = len(action)
    with np.errstate(over="ignore"):  # what comes of it is looked at below
        reward = np.zeros(steps, np.float32) if reward is None else reward.reshape(steps).astype(np.float32)
    if not np.isfinite(reward).all():
        step = int(np.argmax(~np.isfinite(reward)))
        raise ValueError(f"the reward is {reward[step]} at row {step}; expected numbers")
    return Episode(
        observation=observation,
        action=action,
        reward=reward,
        success=np.zeros(steps, bool) if success is None else success.reshape(steps).astype(bool),
        task=task,
        seed=0 if seed is None else seed,
        control_dt_s=control_dt_s,
        intervention=None if intervention is None else intervention.reshape(steps).astype(bool),
    )
