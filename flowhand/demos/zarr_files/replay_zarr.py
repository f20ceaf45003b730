"""Diffusion Policy's replay buffers: zarr stores of version 2, as a folder or a zip file.

    data/<name>            (T, ...) all control steps of all episodes, one after the other
    meta/episode_ends      (E,) the step after each episode's last

The store is read here, and not by the zarr package, because a store may ask that package to unpickle, and so to run,
what a stranger wrote.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowhand.contracts.data.episode import shown

from ..archive import read_bounded
from ..columns import Column, column, feature_names, images_as_bytes, kind_of
from ..reader import MOST_EPISODE_BYTES, Reader, damage, require_rate
from .zarr_chunks import MOST_CHUNK, ZarrArray

USUAL_RATE_HZ = 10.0  # of Diffusion Policy's own data
MOST_ARRAY_FILE = 2**20  # bytes that describe an array
MOST_KEYS = 10**7


class _Folder:
    """A store that is a folder."""

    def __init__(self, path: Path):
        self.path = path

    def get(self, key: str, most: int) -> bytes | None:
        try:
            return read_bounded(self.path / key, most)
        except FileNotFoundError:
            return None

    def groups(self, key: str) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self.path / key) if entry.is_dir())
        except FileNotFoundError:
            return []

    def files(self) -> Iterator[Path]:
        yield from (Path(folder) / name for folder, _, names in os.walk(self.path) for name in names)


class _Zip:
    """A store that is a zip file."""

    def __init__(self, path: Path):
        self.path = path
        with zipfile.ZipFile(path) as archive:
            self.members = {info.filename: info for info in archive.infolist()}
        if len(self.members) > MOST_KEYS:
            raise ValueError(f"{path}: more than {MOST_KEYS} members")

    def get(self, key: str, most: int) -> bytes | None:
        info = self.members.get(key)
        if info is None:
            return None
        if info.file_size > most:
            raise ValueError(f"{self.path}: {key} has {info.file_size} bytes, more than the {most} allowed")
        with zipfile.ZipFile(self.path) as archive, archive.open(info) as member:
            return member.read(most + 1)

    def groups(self, key: str) -> list[str]:
        parts = (name.split("/") for name in self.members if name.startswith(f"{key}/"))
        return sorted({part[1] for part in parts if len(part) > 2})

    def files(self) -> Iterator[Path]:
        yield self.path


class ReplayZarrDataset(Reader):
    """A store with `data` and `meta/episode_ends`.

    Args:
        path: the folder, or the zip file.
        observation: {name of the feature: name of the array}; None: all arrays but those that begin with "action".
        action: name of the action's array.
        rate_hz: control steps a second; None: 10, with a line about it, for a store does not say.

    Raises:
        ValueError: it cannot be read right; the line names the store and the array.
    """

    format = "replay buffer, zarr version 2"

    def __init__(
        self,
        path: Path | str,
        observation: Mapping[str, str] | None = None,
        action: str = "action",
        rate_hz: float | None = None,
    ):
        self._begin(path)
        with damage(str(self.path)):
            self._store: Any = _Folder(self.path) if self.path.is_dir() else _Zip(self.path)
        ends = self._array("meta/episode_ends")
        with damage(f"{self.path}: array 'meta/episode_ends'"):
            if len(ends.shape) != 1 or ends.dtype.kind not in "iu":
                raise ValueError(f"{ends.dtype} of shape {ends.shape}, expected whole numbers (E,)")
            self._ends = [0, *ends.rows(0, ends.shape[0])[0].tolist()]
            if any(end <= begin for begin, end in zip(self._ends, self._ends[1:], strict=False)):
                raise ValueError("the ends do not grow: an episode would have no steps")
        names = [
            name for name in self._store.groups("data") if self._store.get(f"data/{name}/.zarray", MOST_ARRAY_FILE)
        ]
        self._data = {name: self._array(f"data/{name}") for name in names}
        columns = self._columns(names, observation, action)
        for found in columns.values():
            if self._data[found.source].shape[0] != self._ends[-1]:
                raise ValueError(
                    f"{self.path}: array {found.source!r} has {self._data[found.source].shape[0]} steps, but the last "
                    f"episode ends at {self._ends[-1]}"
                )
        if rate_hz is None:
            self._warn(f"a store does not say its rate: {USUAL_RATE_HZ:g} control steps a second are assumed")
        rate = USUAL_RATE_HZ if rate_hz is None else require_rate(rate_hz, "rate_hz")
        lengths = [end - begin for begin, end in zip(self._ends, self._ends[1:], strict=False)]
        self._finish(columns, rate, [""] * len(lengths), lengths)

    def _array(self, name: str) -> ZarrArray:
        where = f"{self.path}: array {name!r}"
        with damage(where):
            text = self._store.get(f"{name}/.zarray", MOST_ARRAY_FILE)
            if text is None:
                three = self._store.get("zarr.json", MOST_ARRAY_FILE) is not None
                raise ValueError("the store has version 3 of zarr; only 2 can be read" if three else "it is missing")
            try:
                about = json.loads(text)
            except RecursionError as error:
                raise ValueError("nested too deeply") from error
            return ZarrArray(about, lambda key: self._store.get(f"{name}/{key}", MOST_CHUNK))

    def _columns(self, names: list[str], observation: Mapping[str, str] | None, action: str) -> dict[str, Column]:
        if observation is None:
            chosen = [name for name in names if not name.startswith("action")]
            self.left_out = {name: "an action" for name in names if name.startswith("action") and name != action}
            observation = {name: source for source, name in feature_names(chosen, ()).items()}
        columns, self._scale = {}, {}
        for name, source in {**observation, "action": action}.items():
            array = self._data.get(source)
            if array is None or not array.shape:
                raise ValueError(f"{self.path}: array {source!r} is missing; there are {', '.join(names)}")
            shape, stored = array.shape[1:], array.dtype.name
            kind = "action" if name == "action" else kind_of(shape, stored)
            if kind == "image" and stored != "uint8":
                self._scale[name] = self._grey_scale(source, array)
                columns[name] = column(source, "uint8", shape, kind)
            else:
                columns[name] = column(source, stored, shape, kind)
        return columns

    def _grey_scale(self, source: str, array: ZarrArray) -> float:
        """What values of images are multiplied by to be grey levels: they are stored as 0 to 255, or as 0 to 1."""
        step = max(1, array.chunks[0])
        for start in range(0, array.shape[0], step):
            with damage(f"{self.path}: array {source!r}"):
                values, _ = array.rows(start, min(start + step, array.shape[0]))
            if values.max() > 1:
                self._warn(f"images {source!r} are stored as {array.dtype.name}, 0 to 255: read as uint8")
                return 1.0
            if (values != np.rint(values)).any():
                self._warn(f"images {source!r} are stored as {array.dtype.name}, 0 to 1: rounded to 256 grey levels")
                return 255.0
        return 1.0

    def _arrays(
        self, stored: int, start: int, stop: int, names: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        begin, arrays = self._ends[stored], {}
        for name in names:
            source = self.columns[name].source
            where = f"{self.path}: episode {stored}: array {source!r}"
            array = self._data[source]
            if (stop - start) * array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=object)) > MOST_EPISODE_BYTES:
                raise ValueError(f"{where}: {stop - start} steps are more than can be read at once")
            with damage(where):
                values, absent = array.rows(begin + start, begin + stop)
            if absent:
                self._missing(source, absent[0])
            if name in self._scale:
                values = images_as_bytes(values, self._scale[name], where)
            arrays[name] = self._checked(name, values, stop - start, f"{self.path}: episode {stored}")
        return arrays, {}

    def _missing(self, source: str, key: str) -> None:
        """A writer may leave out a chunk of zeros; so may a copy that was interrupted leave out any."""
        line = f"array {source!r}: chunk {key} is not there, and is read as its fill value; is the copy complete?"
        if line not in self.warnings:
            self._warn(line)

    def _files(self) -> Iterator[Path]:
        yield from self._store.files()


def is_replay_buffer(path: Path) -> bool:
    """Whether there are signs of a store of replayed episodes, as a folder or a zip file."""
    if path.is_dir():
        return (path / "meta" / "episode_ends").is_dir() or ((path / "data").is_dir() and (path / ".zgroup").is_file())
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.startswith("meta/episode_ends") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise ValueError(f"{path}: no zip file that can be read: {shown(str(error))}") from error
