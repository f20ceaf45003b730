"""The native store of demonstrations: a folder with `meta.json` and one uncompressed npz file per episode.

    meta.json              what the episodes are: features, task, environment, recipe
    episodes/000000.npz    observation/<name>, action, reward, success, task, seed, control_dt_s
    writer.lock            held (flock) by the process that writes

Files are written under a temporary name, flushed to the disk and renamed, so a writer killed at any moment loses at
most the episode it was writing. Nothing is pickled: reading a store from a stranger runs no code of theirs.
"""

import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import struct
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import numpy as np

from flowhand.contracts.data.episode import Episode
from flowhand.contracts.data.statistics import Statistics, measure
from flowhand.contracts.durable import sync, write_whole
from flowhand.contracts.features import shown

from .archive import _pack, _unpack, open_regular, read_arrays, write_arrays
from .meta import StoreMeta, canonical, meta_text, parse_meta, read_meta

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


class Store:
    """A folder of episodes; a sequence of `Episode` as it was when opened, and the only way to add to it.

    An episode is read from the disk, and checked, every time it is asked for.
    """

    def __init__(self, path: Path, meta: StoreMeta, length: int, is_view: bool = False):
        self.path = path
        self.meta = meta
        self.spec = meta.spec()
        self._length = length
        self._is_view = is_view
        self._is_writing = False
        self._indexed: list[tuple[str, int, int]] = []  # of the first episodes, as far as they were asked for
        # The number of episodes of which each was computed, and what came out.
        self._print, self._hashed = (-1, ""), (-1, "")
        self._measured: tuple[int, Statistics] = (-1, {})
        self._counted: tuple[int, int] | None = None  # the state of the folder in which the length was last right

    @classmethod
    def create(cls, path: str | Path, meta: StoreMeta) -> "Store":
        """Make an empty store; of several processes that try at once, one succeeds.

        Raises:
            ValueError: the meta data is not valid or not JSON-able.
            FileExistsError: `path` exists and is not an empty folder.
        """
        path = Path(path)
        text = meta_text(meta)
        parse_meta(text, path / "meta.json")  # what is checked is what is written
        path.parent.mkdir(parents=True, exist_ok=True)
        # Filled under another name and renamed, so that nobody ever sees half a store.
        temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
        (temporary / "episodes").mkdir(parents=True)
        write_whole(temporary / "meta.json", lambda file: file.write(text))
        (temporary / "writer.lock").touch()
        try:
            temporary.rename(path)
        except OSError as error:
            shutil.rmtree(temporary)
            if not path.exists():
                raise
            raise FileExistsError(f"{path} exists: use Store.open to read or extend it, or another path") from error
        sync(path.parent)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Open a store and check its meta data and the numbering of its episodes.

        Raises:
            ValueError: there is no store, or it has damaged, missing or unknown parts.
        """
        path = Path(path)
        try:
            return cls(path, read_meta(path / "meta.json"), _count_episodes(path))
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error

    def head(self, count: int) -> "Store":
        """A read-only view of the first `count` episodes.

        Raises:
            ValueError: the store holds fewer.
        """
        if not 0 <= count <= len(self):
            raise ValueError(f"{self.path}: {count} episodes asked for, the store has {len(self)}")
        return Store(self.path, self.meta, count, is_view=True)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}: {len(self)} episodes of {self.meta.task!r}, {self.spec})"

    @property
    def seeds(self) -> list[int]:
        """Seed of every episode, in order."""
        return [seed for _, seed, _ in self._index()]

    @property
    def tasks(self) -> list[str]:
        """Task text of every episode."""
        return [task for task, _, _ in self._index()]

    @property
    def lengths(self) -> list[int]:
        """Control steps of every episode."""
        return [length for _, _, length in self._index()]

    def _index(self) -> list[tuple[str, int, int]]:
        """Task, seed and length of every episode, of which nothing else is read."""
        for index in range(len(self._indexed), len(self)):
            with self._explained(index) as file:
                arrays = read_arrays(file, ("task", "seed", "reward"))
                self._indexed.append((str(arrays["task"]), int(arrays["seed"]), len(arrays["reward"])))
        return self._indexed[: len(self)]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of the meta data, and of the sizes and modification times of the episodes' files."""
        if self._print[0] != len(self):
            digest = hashlib.sha256(canonical(asdict(self.meta)).encode())
            for index in range(len(self)):
                state = self._file(index).stat()
                digest.update(f"{index} {state.st_size} {state.st_mtime_ns}\n".encode())
            self._print = len(self), digest.hexdigest()
        return self._print[1]

    def read(self, episode: int, start: int = 0, stop: int | None = None) -> Episode:
        """The control steps from `start` to before `stop` (None: to the end) of an episode.

        Raises:
            ValueError: these are no steps of the episode, or it is damaged.
            IndexError: there is no such episode.
        """
        return self[episode].steps(start, stop)

    def blocks(self, name: str, episode: int) -> Iterator[np.ndarray]:
        """The values of one feature, or "action", over an episode: as one part, for a file is checked as a whole.

        Raises:
            ValueError: the episode is damaged.
        """
        whole = self[episode]
        yield whole.action if name == "action" else whole.observation[name]

    def pick(self, name: str, episode: int, steps: np.ndarray) -> np.ndarray:
        """The values of one feature, or "action", at these steps (n,) of an episode; see `blocks`."""
        return next(self.blocks(name, episode))[steps]

    def plan(self, episode: int) -> np.ndarray | None:
        """The plans (N, T, A) of an episode's states; None if it has none."""
        return self[episode].plan

    def release(self) -> None:
        """Nothing is kept open."""

    def origin(self, name: str) -> str:
        """The feature's own name: each has one array."""
        return name

    @property
    def numbers(self) -> Sequence[int]:
        """The number of each episode in the store."""
        return range(len(self))

    def statistics(self) -> Statistics:
        """Moments, extremes and true quantiles of every feature, over all episodes; computed once."""
        if self._measured[0] != len(self):
            self._measured = len(self), measure(self, self.spec)
        return self._measured[1]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Episode:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path}: episode {index} of {len(self)}")
        index %= len(self)
        with self._explained(index) as file:
            episode = _unpack(read_arrays(file))
            episode.validate(self.spec)
        return episode

    @contextmanager
    def _explained(self, index: int) -> Iterator[Path]:
        """The file of an episode; whatever its damage makes raise is a `ValueError` that names it."""
        file = self._file(index)
        try:
            yield file
        except DAMAGE as error:
            raise ValueError(
                f"{file}: episode {index} cannot be used: {type(error).__name__}: {error}. "
                "Restore the file from a copy, or delete it and all later ones (a collection continues from there)"
            ) from error

    def __iter__(self) -> Iterator[Episode]:
        """Every episode once; the hash of all is known at the end, so that a training decodes the store once."""
        digest, count = hashlib.sha256(canonical(asdict(self.meta)).encode()), len(self)
        for index in range(count):
            episode = self[index]
            for name, array in sorted(_pack(episode).items()):
                digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
            yield episode
        self._hashed = count, digest.hexdigest()

    def append(self, episode: Episode) -> None:
        """Add an episode; it is on the disk when this returns.

        Raises:
            ValueError: the episode does not fit the features, or this is a view.
        """
        arrays = _pack(episode)
        written = _unpack(arrays)
        written.validate(self.spec)  # what is checked is what is written, and will be read
        if written.task != episode.task:
            raise ValueError(f"task is {shown(episode.task)}: its last character would be lost in the file")
        with self.writing():
            write_whole(self._file(self._length), lambda file: write_arrays(file, arrays))
            self._length += 1
            self._counted = self._folder_state()

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
        with open_regular(self.path / "writer.lock", os.O_RDWR | os.O_CREAT) as file:
            _lock(file, self.path)
            self._count_again()
            self._is_writing = True
            try:
                yield
            finally:
                self._is_writing = False

    def _count_again(self) -> None:
        """See what other writers did, unless the folder is as this one left it: counting takes long in a large one."""
        if self._counted == self._folder_state() and not self._file(self._length).exists():
            return  # the second condition is for clocks too coarse to tell two writers apart
        for leftover in (self.path / "episodes").glob(".*.tmp-*"):  # of a writer that was killed
            leftover.unlink()
        self._length = _count_episodes(self.path)
        self._counted = self._folder_state()

    def _folder_state(self) -> tuple[int, int]:
        """Changes whenever a file is added to the folder of episodes, or removed."""
        state = (self.path / "episodes").stat()
        return state.st_ino, state.st_mtime_ns

    def hash(self) -> str:
        """SHA-256 (hexadecimal) of the meta data and of the contents of all episodes: which data trained a policy."""
        if self._hashed[0] != len(self):
            deque(self, maxlen=0)
        return self._hashed[1]

    def _file(self, index: int) -> Path:
        return self.path / "episodes" / _file_name(index)


def _file_name(index: int) -> str:
    return f"{index:06d}.npz"


def _count_episodes(path: Path) -> int:
    """Number of episode files, which must be numbered from 0 without a gap."""
    try:
        names = {name for name in os.listdir(path / "episodes") if name.endswith(".npz")}
    except FileNotFoundError:  # as after a copy that leaves empty folders out
        names = set()
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
