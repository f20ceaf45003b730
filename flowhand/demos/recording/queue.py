"""Frames that wait on the disk for their encoder, first in, first out, within a bound that all cameras share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

SEGMENT_BYTES = 2**25  # of a file of the queue; it is removed once it was read


class QueueFull(ValueError):  # noqa: N818  (the line that is told says it)
    """More frames wait than may."""


class Room:
    """Bytes on the disk that the queues of all cameras share."""

    def __init__(self, limit: float):
        self.limit, self.taken = limit, 0
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Counts bytes that are about to be written.

        Raises:
            QueueFull: there is no room for them.
        """
        with self._lock:
            if self.taken + count > self.limit:
                raise QueueFull(
                    f"{self.taken / 2**20:.0f} MB of frames wait for the encoder, as many as data.queue_gb allows: "
                    "use data.codec=h264, smaller pictures or a lower rate"
                )
            self.taken += count

    def give(self, count: int) -> None:
        """Counts bytes that were removed."""
        with self._lock:
            self.taken -= count


class FrameQueue:
    """Frames of one camera; one thread puts them in, another takes them out.

    Args:
        folder: its own, which is made.
        shape: of a frame.
        dtype: of a frame.
        room: that it shares.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: str, room: Room):
        self._folder, self._shape, self._dtype, self._room = folder, shape, np.dtype(dtype), room
        self._bytes = int(np.prod(shape)) * self._dtype.itemsize
        self._of_segment = max(1, SEGMENT_BYTES // self._bytes)
        self._put = self._got = 0
        self._closed = self._abandoned = False
        self._changed = threading.Condition()
        self._file: BinaryIO | None = None
        folder.mkdir(parents=True)

    def put(self, frame: np.ndarray) -> None:
        """Writes a frame.

        Raises:
            QueueFull: too many wait.
            OSError: the disk does not take it.
        """
        if frame.shape != self._shape or frame.dtype != self._dtype:
            raise ValueError(f"a frame is {frame.dtype} {frame.shape}, expected {self._dtype} {self._shape}")
        self._room.take(self._bytes)
        if self._file is None or self._put % self._of_segment == 0:
            if self._file is not None:
                self._file.close()
            self._file = self._path(self._put).open("wb", buffering=0)
        written = self._file.write(np.ascontiguousarray(frame).data.cast("B"))
        if written != self._bytes:  # as it is on a disk that is nearly full
            raise OSError(28, "No space left on device", str(self._folder))
        with self._changed:
            self._put += 1
            self._changed.notify()

    def close(self, abandon: bool = False) -> None:
        """No frame follows; abandoned, none is taken out either."""
        with self._changed:
            self._closed, self._abandoned = True, self._abandoned or abandon
            self._changed.notify()
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def waiting(self) -> int:
        """Frames that wait."""
        return self._put - self._got

    def __iter__(self) -> Iterator[np.ndarray]:
        """Every frame, as it comes, until the queue is closed and empty."""
        file: BinaryIO | None = None
        try:
            while self._comes():
                if self._got % self._of_segment == 0:
                    self._leave(file)
                    file = self._path(self._got).open("rb", buffering=0)
                assert file is not None
                frame = np.empty(self._shape, self._dtype)
                if file.readinto(frame.data.cast("B")) != self._bytes:
                    raise OSError(5, "a frame that waited for the encoder is cut off", str(self._folder))
                self._room.give(self._bytes)
                self._got += 1
                yield frame
        finally:
            self._leave(file)

    def _comes(self) -> bool:
        """Waits for a frame; whether there is one."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._put > self._got)
            return self._put > self._got and not self._abandoned

    def _path(self, number: int) -> Path:
        return self._folder / f"{number // self._of_segment:06d}.raw"

    def _leave(self, file: BinaryIO | None) -> None:
        if file is not None:
            file.close()
            Path(file.name).unlink(missing_ok=True)
