"""Frames of recorded videos: exactly the one that is shown at a time.

A video is looked through without decoding it first, so that the time of every frame is known. A frame is then found by
its own time stamp and never by counting, whatever a seek lands on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from flowhand.contracts.features import MOST_VALUES

from .archive import open_regular

# Containers that data sets hold. Others, playlists among them, would make the library open further files.
OPTIONS = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi", "protocol_whitelist": "file"}
MOST_FRAMES = 2**24  # of one file
FAR = 32  # frames from here on that are skipped by a seek and not decoded


class VideoFile:
    """One video: the times of its frames, and the frames.

    Raises:
        ValueError: it is no video that can be read; the line names the file.
    """

    def __init__(self, path: Path | str, header_only: bool = False):
        self.path = Path(path)
        open_regular(self.path).close()
        with self._opened() as (container, stream):
            context = stream.codec_context
            self.height, self.width = int(context.height), int(context.width)
            if not 0 < self.height * self.width * 3 <= MOST_VALUES:
                raise ValueError(f"{self.path}: frames of {self.height} x {self.width} points, more than can be read")
            if stream.time_base is None:
                raise ValueError(f"{self.path}: the video stream has no time base")
            self.time_base: Fraction = stream.time_base
            self.codec = str(context.codec.canonical_name)
            if not header_only:
                self._look_through(container, stream)

    def _look_through(self, container: Any, stream: Any) -> None:
        times, keys = [], []
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            if packet.pts is None:
                raise ValueError(f"{self.path}: frame {len(times)} has no time stamp")
            times.append(packet.pts)
            if packet.is_keyframe:
                keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
            if len(times) > MOST_FRAMES:
                raise ValueError(f"{self.path}: more than {MOST_FRAMES} frames")
        if not times or not keys:
            raise ValueError(f"{self.path}: no frame can be found")
        self.pts = np.sort(np.array(times, np.int64))
        if (np.diff(self.pts) <= 0).any():
            raise ValueError(f"{self.path}: two frames have one time stamp")
        self.keys = np.array(sorted(keys), np.int64)

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of a frame."""
        return self.height, self.width

    @property
    def times_s(self) -> np.ndarray:
        """When each frame is shown, seconds (N,)."""
        return self.pts * float(self.time_base)

    def indices_at(self, times_s: np.ndarray, period_s: float) -> np.ndarray:
        """The frames that are shown at these times.

        Args:
            times_s: seconds in the video.
            period_s: between two frames; a frame may be a quarter of it off.

        Raises:
            ValueError: there is no frame at one of the times.
        """
        shown = self.times_s
        after = (
            np.searchsorted(shown, times_s).clip(1, len(shown) - 1) if len(shown) > 1 else np.zeros(len(times_s), int)
        )
        before = np.maximum(after - 1, 0)
        index = np.where(np.abs(shown[before] - times_s) <= np.abs(shown[after] - times_s), before, after)
        gaps = np.abs(shown[index] - times_s)
        if not (gaps <= period_s / 4).all():
            worst = int(np.argmax(~(gaps <= period_s / 4)))
            raise ValueError(
                f"{self.path}: no frame at {times_s[worst]:.6f} s; the nearest of {len(shown)} is at "
                f"{shown[index[worst]]:.6f} s"
            )
        return index

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The frames with these numbers, uint8 (n, H, W, 3).

        Raises:
            ValueError: a frame cannot be decoded, or has another size; the line names the file and the frame.
        """
        order, place = np.unique(np.asarray(indices, np.int64), return_inverse=True)
        if len(order) and not 0 <= order[0] <= order[-1] < len(self):
            raise ValueError(f"{self.path}: frames {order[0]} to {order[-1]} asked for, it has {len(self)}")
        found = np.empty((len(order), self.height, self.width, 3), np.uint8)
        for n, frame in enumerate(self.frames(order)):
            found[n] = frame
        return found if np.array_equal(place, np.arange(len(order))) else found[place]

    def frames(self, order: np.ndarray) -> Iterator[np.ndarray]:
        """The frames of these ascending numbers, one after the other, decoded when they are asked for; see `read`."""
        with self._opened() as (container, stream):
            stream.thread_type = "AUTO"
            at, last = None, -1
            for index in order:
                wanted = int(self.pts[index])
                if at is None or index - last > FAR:
                    at = self._from_key(container, stream, wanted)
                yield self._array(self._until(at, wanted, int(index)), int(index))
                last = int(index)

    def _from_key(self, container: Any, stream: Any, wanted: int) -> Iterator[Any]:
        """Frames from the last key frame on that is shown no later than the frame wanted."""
        place = int(np.searchsorted(self.keys[:, 0], wanted, side="right")) - 1
        if place < 0:
            container.seek(int(self.keys[0, 1]), stream=stream, backward=True)
        else:
            container.seek(int(self.keys[place, 1]), stream=stream, backward=True)
        return container.decode(stream)

    def _until(self, frames: Iterator[Any], wanted: int, index: int) -> Any:
        from av.error import FFmpegError

        reason = ""
        try:
            for frame in frames:
                if frame.pts is not None and frame.pts >= wanted:
                    if frame.pts == wanted:
                        return frame
                    break
        except FFmpegError as error:  # of this frame, or of one that it is made from
            reason = f": {' '.join(str(error).split())[:200]}"
        raise ValueError(f"{self.path}: frame {index} of {len(self)} cannot be decoded{reason}")

    def _array(self, frame: Any, index: int) -> np.ndarray:
        if frame.is_corrupt or (frame.height, frame.width) != (self.height, self.width):
            what = "is corrupt" if frame.is_corrupt else f"has {frame.height} x {frame.width} points"
            raise ValueError(f"{self.path}: frame {index} {what}; expected {self.height} x {self.width} points")
        return frame.to_ndarray(format="rgb24")

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        import av
        from av.error import FFmpegError

        try:
            with av.open(str(self.path), options=OPTIONS) as container:
                if not container.streams.video:
                    raise ValueError(f"{self.path}: it holds no video stream")
                yield container, container.streams.video[0]
        except (FFmpegError, AttributeError, OverflowError, MemoryError) as error:
            text = " ".join(str(error).split())[:200]
            raise ValueError(f"{self.path}: the video cannot be read: {type(error).__name__}: {text}") from error


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of a video's frames, as its header says.

    Raises:
        ValueError: it is no video that can be read.
    """
    return VideoFile(path, header_only=True).shape
