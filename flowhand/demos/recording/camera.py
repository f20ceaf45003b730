"""One camera of the episode that is recorded: frames go to a queue on the disk, from which a thread encodes them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from flowhand.contracts.features import Feature

from ..lerobot.parts import levels_of
from ..lerobot.tables import png
from ..lerobot.video import VideoWriter
from .queue import FrameQueue, Room

QUICK = {"libx264": {"crf": "18", "preset": "ultrafast"}}  # what an encoder beside a control may take
SAMPLES = 100  # frames of an episode, at least and up to twice as many, of which image statistics are made
LARGE = 300  # points of a side from which statistics are made of fewer points, as LeRobot's are
NICE = 10  # of the encoder's thread, where the system has that: control comes first
END_S = 600.0  # longest wait for the encoder at the end of an episode


class Samples:
    """Some frames, evenly spread over an episode of unknown length, with fewer points where they are large."""

    def __init__(self) -> None:
        self._kept: list[np.ndarray] = []
        self._every, self._seen = 1, 0

    def add(self, frame: np.ndarray) -> None:
        """Looks at the next frame."""
        if self._seen % self._every == 0:
            if len(self._kept) == 2 * SAMPLES:
                self._kept, self._every = self._kept[::2], 2 * self._every
            if self._seen % self._every == 0:
                step = max(frame.shape[:2]) // (LARGE // 2) if max(frame.shape[:2]) >= LARGE else 1
                self._kept.append(frame[::step, ::step].copy())
        self._seen += 1

    def summary(self, kind: str) -> dict[str, np.ndarray]:
        """Their statistics, as LeRobot keeps them."""
        levels = levels_of(kind)
        levels.add(np.stack(self._kept))
        return levels.summary()


class Camera:
    """The frames of one camera over an episode.

    A frame that is given again (the camera is slower than the control) waits once, and is encoded for each step.

    Args:
        folder: of its own, for what waits and what is encoded.
        feature: what the frames are.
        kind: image | depth.
        video: the rate of the video, Hz, and its codec; None: the frames become PNG files.
        room: on the disk, shared with the other cameras.
    """

    def __init__(self, folder: Path, feature: Feature, kind: str, video: tuple[int, str] | None, room: Room):
        self.kind, self.samples = kind, Samples()
        self.pictures: list[bytes] = []  # encoded, of each step, where there is no video
        self.writer: VideoWriter | None = None
        if video is not None:
            height, width = feature.shape[:2]
            self.writer = VideoWriter(folder / "video", video[0], (height, width), video[1], QUICK)
        self._queue = FrameQueue(folder / "waiting", feature.shape, feature.dtype, room)
        self._times: list[int] = []  # steps that show each frame
        self._last: np.ndarray | None = None
        self._counted = threading.Condition()
        self._done = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="encoder", daemon=True)
        self._thread.start()

    def add(self, frame: np.ndarray) -> None:
        """The frame of the next step; see `FrameQueue.put`."""
        if self._error is not None:
            raise self._error
        if self._last is not None and _same(frame, self._last):
            with self._counted:
                self._times[-1] += 1
            return
        self._queue.put(frame)
        with self._counted:
            self._times.append(1)
            self._counted.notify()
        self._last = frame

    @property
    def waiting(self) -> int:
        """Frames that wait for the encoder."""
        return self._queue.waiting

    def end(self) -> Path | None:
        """Waits until all is encoded; the video, where there is one.

        Raises:
            OSError: the disk did not take it.
            ValueError: the encoder failed or hangs.
        """
        self._finish(abandon=False)
        self._thread.join(END_S)
        if self._error is not None:
            raise self._error
        if self._thread.is_alive():
            raise ValueError(f"the encoder has not finished after {END_S:g} s")
        return None if self.writer is None else self.writer.path

    def drop(self) -> None:
        """Ends the thread; what it has encoded is not used."""
        self._finish(abandon=True)
        self._thread.join(10.0)

    def _finish(self, abandon: bool) -> None:
        with self._counted:
            self._done = True
            self._counted.notify()
        self._queue.close(abandon)

    def _work(self) -> None:
        with suppress(AttributeError, OSError):  # not on every system
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        try:
            if self.writer is not None:
                self.writer.add(frame[None] for frame in self._frames())
            else:
                self.pictures = [png(frame) for frame in self._frames()]
        except BaseException as error:  # told where the next frame or the end of the episode is
            self._error = _of_system(error)
        try:
            if self.writer is not None:
                self.writer.close()
        except BaseException as error:
            self._error = self._error or _of_system(error)

    def _frames(self) -> Iterator[np.ndarray]:
        """The frame of every step. That of a step is known to be shown no longer when the next one is there."""
        for number, frame in enumerate(self._queue):
            with self._counted:
                self._counted.wait_for(lambda n=number: self._done or len(self._times) > n + 1)
                times = self._times[number]
            for _ in range(times):
                self.samples.add(frame)
                yield frame


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two frames are equal; of most that are not, some points tell."""
    some = slice(None, None, 16)
    return one is other or (np.array_equal(one[some, some], other[some, some]) and np.array_equal(one, other))


def _of_system(error: BaseException) -> BaseException:
    """What the video library says of the disk, as the system's own error."""
    number = getattr(error, "errno", None)
    return OSError(number, os.strerror(number)) if isinstance(number, int) and number > 0 else error
