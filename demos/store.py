"""The native store of demonstrations: a folder with `meta.json` and one uncompressed npz file per episode.

    meta.json              what the episodes are: features, task, environment, recipe
    episodes/000000.npz    observation/<name>, action, reward, success, task, seed, control_dt_s
    writer.lock            held (flock) by the process that writes

Files are written under a temporary name, flushed to the disk and renamed, so a writer killed at any moment loses at
most the episode it was writing. Nothing is pickled: reading a store from a stranger runs no code of theirs.
"""

import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .episode import Episode, check_features

FORMAT_VERSION = 1
OBSERVATION_PREFIX = "observation/"
OTHER_ARRAYS = {"action", "reward", "success", "task", "seed", "control_dt_s"}
# Everything a damaged zip or npy file makes the standard library and numpy raise.
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ValueError,
    TypeError,
    OSError,
    EOFError,
    RuntimeError,
    MemoryError,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoreMeta:
    """What all the episodes of a store have in common."""

    features: dict[str, Any]  # see demos.episode.Episode
    task: str  # instruction in words
    env: str  # where the episodes come from, e.g. "metaworld pick-place-v3" or "SO-101 arm, left table"
    env_version: str  # e.g. "metaworld 3.1.1, mujoco 3.3.0"; empty if nothing has a version
    recipe: dict[str, Any]  # everything that determines the episodes; empty for recorded ones

    def __post_init__(self) -> None:
        check_features(self.features)
        for name, kind in (("task", str), ("env", str), ("env_version", str), ("recipe", dict)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}: expected a {kind.__name__}")

    @property
    def recipe_hash(self) -> str:
        """SHA-256 of the recipe, hexadecimal."""
        return recipe_hash(self.recipe)


def recipe_hash(recipe: dict[str, Any]) -> str:
    """SHA-256 (hexadecimal) of a JSON-able recipe, whatever the order of its keys."""
    return hashlib.sha256(_canonical(recipe).encode()).hexdigest()


class Store:
    """A folder of episodes; a sequence of `Episode` as it was when opened, and the only way to add to it.

    An episode is read from the disk, and checked, every time it is asked for.
    """

    def __init__(self, path: Path, meta: StoreMeta, length: int, is_view: bool = False):
        self.path = path
        self.meta = meta
        self._length = length
        self._is_view = is_view
        self._is_writing = False

    @classmethod
    def create(cls, path: str | Path, meta: StoreMeta) -> "Store":
        """Make an empty store; of several processes that try at once, one succeeds.

        Raises:
            ValueError: the meta data is not valid or not JSON-able.
            FileExistsError: `path` exists and is not an empty folder.
        """
        path = Path(path)
        text = _canonical({"format_version": FORMAT_VERSION, "recipe_hash": meta.recipe_hash, **asdict(meta)})
        path.parent.mkdir(parents=True, exist_ok=True)
        # Filled under another name and renamed, so that nobody ever sees half a store.
        temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
        (temporary / "episodes").mkdir(parents=True)
        _write_durably(temporary / "meta.json", lambda file: file.write(text.encode()))
        (temporary / "writer.lock").touch()
        try:
            temporary.rename(path)
        except OSError as error:
            shutil.rmtree(temporary)
            if not path.exists():
                raise
            raise FileExistsError(f"{path} exists: use Store.open to read or extend it, or another path") from error
        _sync_folder(path.parent)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Open a store and check its meta data and the numbering of its episodes.

        Raises:
            ValueError: there is no store, or it has damaged, missing or unknown parts.
        """
        path = Path(path)
        return cls(path, _read_meta(path / "meta.json"), _count_episodes(path))

    def head(self, count: int) -> "Store":
        """A read-only view of the first `count` episodes.

        Raises:
            ValueError: the store holds fewer.
        """
        if not 0 <= count <= len(self):
            raise ValueError(f"{self.path}: {count} episodes asked for, the store has {len(self)}")
        return Store(self.path, self.meta, count, is_view=True)

    @property
    def features(self) -> dict[str, Any]:
        """Shapes, dtypes, units and ranges of the episodes' fields."""
        return self.meta.features

    @property
    def seeds(self) -> list[int]:
        """Seed of every episode, in order."""
        return [episode.seed for episode in self]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Episode:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path}: episode {index} of {len(self)}")
        index %= len(self)
        file = self._file(index)
        try:
            episode = _unpack(_read_arrays(file))
            episode.validate(self.features)
        except DAMAGE as error:
            raise ValueError(
                f"{file}: episode {index} cannot be used: {type(error).__name__}: {error}. "
                "Restore the file from a copy, or delete it and all later ones (a collection continues from there)"
            ) from error
        return episode

    def __iter__(self) -> Iterator[Episode]:
        return (self[index] for index in range(len(self)))

    def append(self, episode: Episode) -> None:
        """Add an episode; it is on the disk when this returns.

        Raises:
            ValueError: the episode does not fit the features, or this is a view.
        """
        episode.validate(self.features)
        arrays = _pack(episode)
        with self.writing():
            _write_durably(self._file(self._length), lambda file: _write_arrays(file, arrays))
            self._length += 1

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the writer's lock over several appends; waits for another writer, then sees what that one wrote.

        Raises:
            ValueError: this is a view.
        """
        if self._is_view:
            raise ValueError(f"{self.path}: a view of the first {len(self)} episodes is read-only, use Store.open")
        if self._is_writing:
            yield
            return
        with (self.path / "writer.lock").open("ab") as file:
            _lock(file, self.path)
            for leftover in (self.path / "episodes").glob(".*.tmp-*"):  # of a writer that was killed
                leftover.unlink()
            self._length = _count_episodes(self.path)
            self._is_writing = True
            try:
                yield
            finally:
                self._is_writing = False

    def hash(self) -> str:
        """SHA-256 (hexadecimal) of the meta data and of the contents of all episodes: which data trained a policy."""
        digest = hashlib.sha256(_canonical(asdict(self.meta)).encode())
        for episode in self:
            for name, array in sorted(_pack(episode).items()):
                digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def _file(self, index: int) -> Path:
        return self.path / "episodes" / _file_name(index)


def _file_name(index: int) -> str:
    return f"{index:06d}.npz"


def _canonical(content: dict[str, Any]) -> str:
    try:
        return json.dumps(content, sort_keys=True, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"store meta data must be plain JSON: {error}") from error


def _read_meta(file: Path) -> StoreMeta:
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"{file} does not exist: {file.parent} is not a store of demonstrations") from error
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}. Restore it from a copy or collect again") from error
    version = content.pop("format_version", None) if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(f"{file}: format_version is {version}, this program reads {FORMAT_VERSION}: update flowhand")
    expected = {field.name for field in fields(StoreMeta)} | {"recipe_hash"}
    if set(content) != expected:
        difference = sorted(set(content) ^ expected)
        raise ValueError(f"{file}: missing or unknown fields {difference}: expected {sorted(expected)}")
    recorded_hash = content.pop("recipe_hash")
    try:
        meta = StoreMeta(**content)
    except ValueError as error:
        raise ValueError(f"{file}: {error}. Restore it from a copy or collect again") from error
    if recorded_hash != meta.recipe_hash:
        raise ValueError(f"{file}: recipe_hash is not that of the recipe: the file was edited, restore it")
    return meta


def _count_episodes(path: Path) -> int:
    """Number of episode files, which must be numbered from 0 without a gap."""
    names = {file.name for file in (path / "episodes").glob("*.npz")}
    for index in range(len(names)):
        if _file_name(index) not in names:
            raise ValueError(
                f"{path}: episode {index} (episodes/{_file_name(index)}) is missing, but the folder holds {len(names)} "
                "npz files: restore it from a copy, or delete the later ones"
            )
    return len(names)


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.warning("%s: waiting for another process that is writing to it", path)
        fcntl.flock(file, fcntl.LOCK_EX)


def _pack(episode: Episode) -> dict[str, np.ndarray]:
    return {OBSERVATION_PREFIX + name: array for name, array in episode.observation.items()} | {
        "action": episode.action,
        "reward": episode.reward,
        "success": episode.success,
        "task": np.array(episode.task),
        "seed": np.array(episode.seed, dtype=np.int64),
        "control_dt_s": np.array(episode.control_dt_s, dtype=np.float64),
    }


def _unpack(arrays: dict[str, np.ndarray]) -> Episode:
    observation = {
        name.removeprefix(OBSERVATION_PREFIX): array
        for name, array in arrays.items()
        if name.startswith(OBSERVATION_PREFIX)
    }
    other = {name: array for name, array in arrays.items() if not name.startswith(OBSERVATION_PREFIX)}
    if set(other) != OTHER_ARRAYS:
        raise ValueError(f"missing or unknown arrays {sorted(set(other) ^ OTHER_ARRAYS)}")
    scalars = {name: other.pop(name).item() for name in ("task", "seed", "control_dt_s")}
    return Episode(observation, **other, **scalars)


def _write_arrays(file: BinaryIO, arrays: dict[str, np.ndarray]) -> None:
    """Write what np.savez would, without its option to pickle."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Read what np.load would, but check the checksum of each array before anything in it is believed."""
    with zipfile.ZipFile(file) as archive:
        return {
            name.removesuffix(".npy"): np.lib.format.read_array(BytesIO(archive.read(name)), allow_pickle=False)
            for name in archive.namelist()
        }


def _write_durably(path: Path, write: Callable[[BinaryIO], object]) -> None:
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    """Make a rename inside the folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
