"""Arrays on the disk to which whole episodes are added: each is decoded once, by whichever process is first.

    <key>.rows     the values of the episodes, one after the other, as plain numbers
    <key>.index    24 bytes for each episode that is there whole: its number, its first row, its rows (int64)

An episode counts from the moment when its line is in the index, which is written after its values are on the disk. A
writer that is killed leaves values without a line, which the next one overwrites. The index is the lock, too.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..archive import open_regular

LINE_BYTES = 24
AT_ONCE = 2**26  # bytes of episodes that are written together, and lost together when the writer is killed
MOST_ROWS = 2**40

logger = logging.getLogger(__name__)


class ArrayFolder:
    """The folder that holds the arrays, and how much it may hold.

    Args:
        path: made when the first array is written.
        most_bytes: of all files together, whoever wrote them.
    """

    def __init__(self, path: Path | str, most_bytes: int):
        self.path, self.most_bytes = Path(path), most_bytes
        self._full = False  # whether the line about it has been logged

    def make(self) -> None:
        """Makes the folder.

        Raises:
            ValueError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise ValueError(
                f"data.cache_dir={self.path} cannot be written ({error.strerror}); choose another folder"
            ) from error

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more may lie here; where not, one line is logged."""
        used = sum(entry.stat().st_size for entry in os.scandir(self.path) if entry.is_file())
        if used + size <= self.most_bytes:
            return True
        self._say(f"{(used + size) / 1e9:.3g} GB are more than data.cache_gb={self.most_bytes / 1e9:.3g} allows")
        return False

    def reserve(self, file: BinaryIO, begin: int, size: int) -> bool:
        """Makes a file end at `begin` and, if there is room, `size` bytes later; whether there is.

        The length of the file says to other processes that the room is taken, before anything is written there.
        """
        with open_regular(self.path / "room.lock", os.O_RDWR | os.O_CREAT) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            file.truncate(begin)
            if not self.has_room(size):
                return False
            file.truncate(begin + size)
            return True

    def disk_is_full(self) -> None:
        """Logs the line about it."""
        self._say("the disk is full")

    def _say(self, reason: str) -> None:
        if not self._full:
            self._full = True
            logger.warning("%s: %s; frames are decoded on the fly", self.path, reason)


class EpisodeArray:
    """One array of the folder.

    Args:
        folder: that it lies in.
        key: its name, which says all that its values depend on.
        shape: of a row.
        dtype: of the values.
    """

    def __init__(self, folder: ArrayFolder, key: str, shape: tuple[int, ...], dtype: str):
        self.folder, self.shape, self.dtype = folder, shape, np.dtype(dtype)
        self.file, self.index_file = folder.path / f"{key}.rows", folder.path / f"{key}.index"
        self.row_bytes = int(np.prod(shape, dtype=object)) * self.dtype.itemsize

    def places(self) -> dict[int, tuple[int, int]]:
        """First row and number of rows of every episode that is there whole.

        Raises:
            ValueError: the files contradict each other.
        """
        try:
            with open_regular(self.index_file) as index:
                return self._places(index.read())
        except FileNotFoundError:
            return {}

    def _places(self, content: bytes) -> dict[int, tuple[int, int]]:
        whole = len(content) // LINE_BYTES
        lines = np.frombuffer(content, "<i8", 3 * whole).reshape(-1, 3)
        first = np.cumsum([0, *lines[:, 2]])
        size = os.stat(self.file).st_size if self.file.is_file() else 0
        good = (lines[:, 0] >= 0).all() and (lines[:, 2] > 0).all() and np.array_equal(lines[:, 1], first[:-1])
        if not good or first[-1] > MOST_ROWS or int(first[-1]) * self.row_bytes > size:
            raise ValueError(f"{self.index_file} and {self.file.name} do not fit together; delete both")
        return {episode: (begin, rows) for episode, begin, rows in lines.tolist()}

    def mapped(self, rows: int) -> np.ndarray:
        """The first rows, read from the disk when they are touched."""
        return np.memmap(self.file, self.dtype, "r", shape=(rows, *self.shape))

    def has_room_for(self, lengths: Mapping[int, int]) -> bool:
        """Whether these episodes ({number: rows}) are there or may be added."""
        self.folder.make()
        there = self.places()
        missing = sum(rows for episode, rows in lengths.items() if episode not in there)
        return not missing or self.folder.has_room(missing * self.row_bytes)

    def add(
        self,
        lengths: Mapping[int, int],
        blocks: Callable[[int], Iterable[np.ndarray]],
        added: Callable[[int], object] = lambda count: None,
    ) -> bool:
        """Adds the episodes that are not there, a few at a time; whether all are there now.

        Args:
            lengths: rows of each episode by its number.
            blocks: gives the values of an episode by its number, part by part.
            added: told how many more are there, at each time.

        Raises:
            ValueError: an episode has other than so many rows, or cannot be decoded; nothing is kept of it then.
        """
        known = 0
        while True:
            with open_regular(self.index_file, os.O_RDWR | os.O_CREAT) as index:
                fcntl.flock(index, fcntl.LOCK_EX)
                there = self._places(index.read())
                missing = [number for number in lengths if number not in there]
                added(len(lengths) - len(missing) - known)
                known = len(lengths) - len(missing)
                if not missing:
                    return True
                try:
                    if not self._add_some(index, there, {number: lengths[number] for number in missing}, blocks):
                        return False
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    self.folder.disk_is_full()
                    return False

    def _add_some(
        self,
        index: BinaryIO,
        there: Mapping[int, tuple[int, int]],
        missing: Mapping[int, int],
        blocks: Callable[[int], Iterable[np.ndarray]],
    ) -> bool:
        """Adds the first of the episodes that are missing, whose lines are written together."""
        lines, size = [], 0
        end = max((begin + count for begin, count in there.values()), default=0)
        try:
            for number, rows in missing.items():
                if size and size + rows * self.row_bytes > AT_ONCE:
                    break
                if not self._write(end, rows, blocks(number)):
                    return False
                lines.append((number, end, rows))
                end, size = end + rows, size + rows * self.row_bytes
        finally:  # what was decoded before a damaged episode stays
            if lines:
                with open_regular(self.file, os.O_RDWR) as file:
                    os.fdatasync(file.fileno())
                index.seek(LINE_BYTES * len(there))
                index.truncate()
                index.write(np.array(lines, "<i8").tobytes())
        return True

    def _write(self, first: int, rows: int, blocks: Iterable[np.ndarray]) -> bool:
        begin, written = first * self.row_bytes, 0
        with open_regular(self.file, os.O_RDWR | os.O_CREAT) as file:
            if not self.folder.reserve(file, begin, rows * self.row_bytes):
                return False
            file.seek(begin)
            for block in blocks:
                if block.shape[1:] != self.shape or block.dtype != self.dtype:
                    raise ValueError(f"rows are {block.dtype} {block.shape[1:]}, expected {self.dtype} {self.shape}")
                written += len(block)
                if written > rows:
                    break
                file.write(np.ascontiguousarray(block).data)
            if written != rows:
                raise ValueError(f"{written} rows were decoded, expected {rows}")
        return True
