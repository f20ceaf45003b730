"""Minari's data sets: a folder `data` with `main_data.hdf5` and `metadata.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowhand.contracts.data.episode import SEED_LIMIT, shown

from .. import images
from ..columns import Column, column, feature_names, kind_of
from ..reader import MOST_EPISODE_BYTES, Reader, damage, read_json, require_rate
from .hdf5 import arrays_of, child, is_array, is_group, numbered, opened, require_plain, rows, text_of

USUAL_RATE_HZ = 20.0


class MinariDataset(Reader):
    """A folder with `data/main_data.hdf5`, or that folder `data` itself.

    An episode has one observation more than actions; the last one, after which nothing was decided, is not read.

    Args:
        path: the folder.
        observation: {name of the feature: path of the array below `observations`, "" for an observation that is one
            array}; None: all of numbers and images.
        rate_hz: control steps a second; None: as the metadata say, else 20, with a line about it.

    Raises:
        ValueError: it cannot be read right; the line names the file.
    """

    format = "Minari HDF5"

    def __init__(self, path: Path | str, observation: Mapping[str, str] | None = None, rate_hz: float | None = None):
        self._begin(path)
        folder = self.path / "data" if (self.path / "data").is_dir() else self.path
        self.file, self.metadata_file = folder / "main_data.hdf5", folder / "metadata.json"
        self.metadata = read_json(self.metadata_file)
        self._spaces = {key: self._space(key) for key in ("observation_space", "action_space")}
        if (kept := self.metadata.get("data_format", "hdf5")) != "hdf5":
            raise ValueError(f"{self.metadata_file}: data_format is {kept!r}; only hdf5 can be read")
        with opened(self.file) as file:
            self._names = numbered(file, "episode_")
            if not self._names:
                raise ValueError("it holds no episodes")
            episodes = [child(file, name, str(self.file)) for name in self._names]
            lengths = [self._length(episode, name) for episode, name in zip(episodes, self._names, strict=True)]
            tasks = [self._mission(episode, name) for episode, name in zip(episodes, self._names, strict=True)]
            columns = self._columns(episodes[0], observation)
        said = self.metadata.get("total_episodes")
        if said not in (None, len(self._names)):
            self._warn(f"metadata.json says {said} episodes, the file has {len(self._names)}")
        self._finish(columns, self._rate(rate_hz), tasks, lengths)

    def _space(self, key: str) -> dict[str, Any]:
        value = self.metadata.get(key)
        with damage(f"{self.metadata_file}: {key}"):
            try:
                value = json.loads(value) if isinstance(value, str) else value
            except RecursionError as error:
                raise ValueError("nested too deeply") from error
        return value if isinstance(value, dict) else {}

    def _rate(self, rate_hz: float | None) -> float:
        if rate_hz is not None:
            return require_rate(rate_hz, "rate_hz")
        self._warn(f"the files do not say their rate: {USUAL_RATE_HZ:g} control steps a second are assumed")
        return USUAL_RATE_HZ

    def _length(self, episode: Any, name: str) -> int:
        where = f"{self.file}: episode {name}"
        actions = child(episode, "actions", where) if is_group(episode) else None
        if not is_group(episode) or not is_array(actions) or actions.ndim == 0 or len(actions) == 0:
            kind = "is missing or empty" if actions is None or is_array(actions) else "is a group; expected one array"
            raise ValueError(f"{where}: column 'actions' {kind}")
        said = episode.attrs.get("total_steps")
        if said is not None and not np.array_equal(said, len(actions)):
            raise ValueError(f"{where}: total_steps is {said}, but column 'actions' has {len(actions)} rows")
        return len(actions)

    def _mission(self, episode: Any, name: str) -> str:
        """The instruction, which some worlds observe as text."""
        observations = child(episode, "observations", name)
        if not is_group(observations):
            return ""
        mission = child(observations, "mission", name)
        if not is_array(mission) or mission.ndim != 1 or not len(mission):
            return ""
        require_plain(mission, f"{self.file}: episode {name}: mission")
        return text_of(mission[0])

    def _observed(self, episode: Any, where: str) -> dict[str, Any]:
        """Arrays by path below `observations`; "" for an observation that is one array."""
        observations = child(episode, "observations", where)
        if observations is None:
            raise ValueError(f"{where}: column 'observations' is missing")
        return {"": observations} if is_array(observations) else arrays_of(observations, where)

    def _columns(self, episode: Any, observation: Mapping[str, str] | None) -> dict[str, Column]:
        where = f"{self.file}: episode {self._names[0]}"
        there = self._observed(episode, where)
        if observation is None:
            names = feature_names([path or "state" for path in there], ())
            observation = {names[path or "state"]: path for path in there}
        columns: dict[str, Column] = {}
        for name, path in observation.items():
            if path not in there:
                raise ValueError(f"{where}: column {path!r} is missing; there are {', '.join(there)}")
            if found := self._column(path, there[path], where):
                columns[name] = found
        actions = child(episode, "actions", where)
        shape, space = actions.shape[1:], self._spaces["action_space"]
        choices = _choices(space, int(np.prod(shape, dtype=object)))
        columns["action"] = column("actions", actions.dtype.name, shape, "action", choices=choices)
        return columns

    def _column(self, path: str, array: Any, where: str) -> Column | None:
        require_plain(array, f"{where}: column {path!r}")
        space = self._spaces["observation_space"]
        for part in path.split("/") if path else ():
            inner = space.get("subspaces")
            place = part.removeprefix("_index_")
            if isinstance(inner, list) and place.isdigit() and int(place) < len(inner):
                inner = {part: inner[int(place)]}
            space = inner.get(part) if isinstance(inner, dict) else None
            space = space if isinstance(space, dict) else {}
        shape = space.get("shape")
        image = space.get("dtype") == "uint8" and isinstance(shape, list) and len(shape) in (2, 3)
        if (image and array.ndim == 1) or (image and array.ndim == 2 and array.dtype == np.uint8):
            channels = shape[2:] if isinstance(shape, list) else []
            shape = [*images.size_of(bytes(array[0])), *(channels or [1])]
            return column(path, "uint8", shape, "image", encoding="image")
        if array.dtype.kind not in "fiub":
            self.left_out[path] = "it holds no numbers"
            return None
        kind = kind_of(array.shape[1:], array.dtype.name)
        return column(path, array.dtype.name, array.shape[1:], kind if array.dtype == np.uint8 else "state")

    def _arrays(
        self, stored: int, start: int, stop: int, names: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        name, length = self._names[stored], self.lengths_stored[stored]
        where, arrays, extra = f"{self.file}: episode {name}", {}, {}
        with opened(self.file) as file:
            episode = child(file, name, where)
            if not is_group(episode):
                raise ValueError(f"{where} is missing")
            there = self._observed(episode, where)
            for feature in names:
                column = self.columns[feature]
                place = f"{where}: column {column.source!r}"
                array = child(episode, "actions", where) if feature == "action" else there.get(column.source)
                expected = length + (feature != "action")
                if not is_array(array) or len(array) != expected:
                    raise ValueError(f"{place} has {len(array) if is_array(array) else 'no'} rows, expected {expected}")
                values = self._values(array, column, start, stop, place)
                arrays[feature] = self._checked(feature, values, stop - start, where)
            if len(names) == len(self.columns):
                extra = self._extra(episode, start, stop, where)
        return arrays, extra

    def _values(self, array: Any, column: Column, start: int, stop: int, place: str) -> np.ndarray:
        if column.encoding != "image":
            if array.dtype.name != column.stored:
                raise ValueError(f"{place} holds {array.dtype} here and {column.stored} in the first episode")
            return rows(array, start, stop, place)
        require_plain(array, place)
        if (stop - start) * int(np.prod(column.feature.shape)) > MOST_EPISODE_BYTES:
            raise ValueError(f"{place}: {stop - start} images are more than can be read at once")
        with damage(place):
            return np.stack(
                [images.decoded(bytes(array[i]), column.feature.shape, "uint8") for i in range(start, stop)]
            )

    def _extra(self, episode: Any, start: int, stop: int, where: str) -> dict[str, Any]:
        """Reward, seed and success, if they were recorded."""
        extra: dict[str, Any] = {}
        if is_array(rewards := child(episode, "rewards", where)):
            extra["reward"] = rows(rewards, start, stop, f"{where}: column 'rewards'")
        infos = child(episode, "infos", where)
        success = child(infos, "success", where) if is_group(infos) else None
        if is_array(success) and success.ndim == 1 and success.dtype.kind in "biuf" and len(success) > 1:
            late = len(success) - len(child(episode, "actions", where))  # one more, from the reset, in some files
            if late in (0, 1):
                extra["success"] = rows(success, start + late, stop + late, f"{where}: column 'infos/success'") > 0
        seed = episode.attrs.get("seed")
        if isinstance(seed, int | np.integer) and 0 <= seed < SEED_LIMIT:
            extra["seed"] = int(seed)
        return extra

    @property
    def lengths_stored(self) -> list[int]:
        """Control steps of each episode of the file, whichever are chosen."""
        return self._all_lengths

    def _finish(
        self, columns: Mapping[str, Column], rate_hz: float, tasks: Sequence[str], lengths: Sequence[int]
    ) -> None:
        self._all_lengths = list(lengths)
        super()._finish(columns, rate_hz, tasks, lengths)

    def _files(self) -> Iterator[Path]:
        yield from (self.file, self.metadata_file)


def _choices(space: Mapping[str, Any], size: int) -> tuple[int, ...] | None:
    """How many choices each dimension of an action has; None: it is continuous.

    Raises:
        ValueError: the choices do not count from 0, as those of a policy do.
    """
    kind = space.get("type")
    if kind not in ("Discrete", "MultiDiscrete"):
        return None
    whole = kind == "MultiDiscrete"
    counts, start = (space.get("nvec"), space.get("start")) if whole else ([space.get("n")], [space.get("start")])
    found = [n for n in counts if type(n) is int] if isinstance(counts, list) else []
    if len(found) != size or found != counts:
        raise ValueError(f"action_space has choices {shown(counts)}, expected {size} numbers")
    if isinstance(start, list) and any(start):
        raise ValueError(f"action_space counts its choices from {shown(start)}, expected from 0")
    return tuple(found)
