"""Videos of several episodes, one after the other in a file, as LeRobot 3.0 keeps them: encoded, or copied."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .sink import Sink
from .summary import GreyLevels

# What LeRobot encodes with: two frames a group, so that any of them is found soon.
OPTIONS = {"libsvtav1": {"crf": "30", "preset": "12"}, "libx264": {"crf": "18", "preset": "fast"}}
CODECS = {"av1": "libsvtav1", "h264": "libx264"}
LEAST = 64  # points of a side that the AV1 encoder takes
FILES_OF_CHUNK = 1000


@dataclass(frozen=True)
class Recorded:
    """An episode's frames as they lie in a video already; the file is copied, and nothing is encoded again."""

    file: Path
    begin_s: float  # when the first of them is shown
    levels: GreyLevels  # of some of them


class VideoWriter:
    """The videos of one camera.

    Args:
        folder: where its files lie.
        fps: frames a second.
        size: height and width of the frames.
        codec: av1 | h264; frames that AV1 cannot have (odd, or small) become H.264.
        options: of encoders, by name, that differ from `OPTIONS`.
    """

    def __init__(
        self,
        folder: Path,
        fps: int,
        size: tuple[int, int],
        codec: str,
        options: Mapping[str, dict[str, str]] | None = None,
    ):
        if codec not in CODECS:
            raise ValueError(f"codec is {codec!r}; choices: {', '.join(CODECS)}")
        even = size[0] % 2 == 0 and size[1] % 2 == 0
        self.codec = codec if even and min(size) >= LEAST else "h264"
        self.pix_fmt = "yuv420p" if even else "yuv444p"
        self.folder, self.fps, self.size = folder, fps, size
        self._options = {**OPTIONS, **(options or {})}
        self._container: Any = None
        self._stream: Any = None
        self._sink: Any = None
        self._frames = 0
        self.bytes = 0  # of the file that is open
        self.number = -1  # of the last file
        self.copied: dict[str, int] = {}  # number of the file that a recorded one became

    def add(self, blocks: Iterable[np.ndarray]) -> tuple[int, float, float]:
        """Writes the frames of an episode, blocks (n, H, W, 3) one after the other.

        Returns:
            The number of the file, and when in it they begin and end, seconds.
        """
        import av

        if self._container is None:
            self._next()
        first = self._frames
        for block in blocks:
            for frame in block:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                picture.pts = self._frames
                self._mux(self._stream.encode(picture))
                self._frames += 1
        return self.number, first / self.fps, self._frames / self.fps

    def copy(self, recorded: Recorded, steps: int) -> tuple[int, float, float]:
        """Takes the file of an episode's frames over, once for all the episodes in it; returns what `add` does."""
        source = str(recorded.file)
        if source not in self.copied:
            self.number += 1
            self.copied[source] = self.number
            shutil.copyfile(recorded.file, self.path)
            self.codec, self.pix_fmt = _encoding(recorded.file)
        return self.copied[source], recorded.begin_s, recorded.begin_s + steps / self.fps

    def _mux(self, packets: list[Any]) -> None:
        self.bytes += sum(packet.size for packet in packets)
        self._container.mux(packets)

    @property
    def path(self) -> Path:
        """Of the last file; its folder is made."""
        path = (
            self.folder / f"chunk-{self.number // FILES_OF_CHUNK:03d}" / f"file-{self.number % FILES_OF_CHUNK:03d}.mp4"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _next(self) -> None:
        import av

        self.number, self._frames, self.bytes = self.number + 1, 0, 0
        encoder = CODECS[self.codec]
        self._sink = Sink(self.path)
        self._container = av.open(self._sink, "w", format="mp4")
        stream: Any = self._container.add_stream(encoder, rate=self.fps, options=self._options[encoder])
        stream.height, stream.width = self.size
        stream.pix_fmt = self.pix_fmt
        stream.codec_context.gop_size = 2
        stream.codec_context.max_b_frames = 0
        self._stream = stream

    def close(self) -> None:
        """Finishes the file that is open."""
        if self._container is not None:
            container, self._container = self._container, None
            try:
                try:
                    container.mux(self._stream.encode())
                finally:
                    container.close()
            finally:
                self._sink.close()

    def info(self) -> dict[str, Any]:
        """What `info.json` says of the videos."""
        return {
            "video.height": self.size[0],
            "video.width": self.size[1],
            "video.codec": self.codec,
            "video.pix_fmt": self.pix_fmt,
            "video.is_depth_map": False,
            "video.fps": self.fps,
            "video.channels": 3,
            "has_audio": False,
        }


def _encoding(file: Path) -> tuple[str, str]:
    """Names of the codec and of the format of the points in a video."""
    import av

    with av.open(str(file)) as container:
        context = container.streams.video[0].codec_context
        return str(context.codec.canonical_name), str(context.pix_fmt)
