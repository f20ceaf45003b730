"""Opens recorded demonstrations of any known format; the files themselves say which one it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .hdf5_files.hdf5 import child, numbered, opened
from .hdf5_files.minari import MinariDataset
from .hdf5_files.robomimic import RobomimicDataset
from .hub import SCHEME, address, fetched, is_repo_id
from .lerobot.dataset import LeRobotDataset
from .native import Store
from .reader import Reader
from .zarr_files.replay_zarr import ReplayZarrDataset, is_replay_buffer

KNOWN = "a store of flowhand, LeRobot 2.0 to 3.0, robomimic HDF5, a replay buffer (zarr), Minari HDF5"
MOST_LOOKED_AT = 2000  # folders and files, for data sets below a folder that is none
DEPTH = 3


def open_dataset(where: Path | str, **options: Any) -> Store | Reader:
    """The demonstrations that lie there, read when they are asked for.

    Args:
        where: a folder or a file, or the name of a data set on the Hugging Face hub, "owner/name" or
            "owner/name@revision"; with hf:// before it no file here is looked for.
        options: of the format's reader, such as `observation`, `action`, `rate_hz`, `failed`, `filter_key`.

    Raises:
        ValueError: there are none, of no known format, or they are damaged; the line says what was found.
    """
    if isinstance(where, str) and address(where):
        where = where.removeprefix(SCHEME)
    elif os.path.lexists(where) or not isinstance(where, str):
        return _opened(Path(where), options)
    repo, _, revision = where.partition("@")
    if not is_repo_id(repo):
        raise ValueError(f"{where} does not exist; expected a path, or OWNER/NAME of a data set on the hub")
    folder = fetched(repo, revision or "main")
    data = _opened(folder, options)
    if isinstance(data, Reader):
        data.revision = f"{repo}@{folder.name}"
    return data


def _opened(path: Path, options: dict[str, Any]) -> Store | Reader:
    reader = _reader_of(path)
    if reader is None:
        below = [str(found) for found in _below(path)][:3] if path.is_dir() else []
        hint = f"; there are data sets in it: {', '.join(below)}" if below else f"; expected {KNOWN}"
        raise ValueError(f"{path} is no data set that is known{hint}")
    try:
        return reader(path, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ValueError(f"{path}: {reader.__name__}: {str(error).split(') ')[-1]}") from error


def _reader_of(path: Path) -> Callable[..., Store | Reader] | None:
    """What reads the data set that lies there; None if none does."""
    if path.is_dir():
        if (path / "meta" / "info.json").is_file():
            return LeRobotDataset
        if (path / "meta.json").is_file():
            return _store
        if (path / "data" / "main_data.hdf5").is_file() or (path / "main_data.hdf5").is_file():
            return MinariDataset
        return ReplayZarrDataset if is_replay_buffer(path) else None
    if not path.is_file():
        return None
    with path.open("rb") as file:
        start = file.read(8)
    if start == b"\x89HDF\r\n\x1a\n":
        return _hdf5_reader(path)
    return ReplayZarrDataset if start[:4] == b"PK\x03\x04" and is_replay_buffer(path) else None


def _hdf5_reader(path: Path) -> Callable[..., Reader] | None:
    with opened(path) as file:
        if child(file, "data", str(path)) is not None:
            return RobomimicDataset
        episodes = numbered(file, "episode_")
    return (lambda path, **options: MinariDataset(path.parent, **options)) if episodes else None


def _store(path: Path, **options: Any) -> Store:
    if options:
        raise ValueError(f"{path} is a store of flowhand, which has no option {next(iter(options))!r}")
    return Store.open(path)


def _below(path: Path) -> Iterator[Path]:
    """Data sets in a folder that is none."""
    looked_at = 0
    for folder, folders, files in os.walk(path):
        here = Path(folder)
        if len(here.relative_to(path).parts) >= DEPTH:
            folders.clear()
        for name in sorted([*folders, *files]):
            looked_at += 1
            if looked_at > MOST_LOOKED_AT:
                return
            try:
                known = _reader_of(here / name)
            except (ValueError, OSError):
                known = None
            if known is not None:
                yield here / name
                if name in folders:
                    folders.remove(name)
