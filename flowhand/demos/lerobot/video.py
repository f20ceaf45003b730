"""Writes videos of several episodes, one after the other in a file, as LeRobot 3.0 keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

# What LeRobot encodes with: two frames a group, so that any of them is found soon.
OPTIONS = {"libsvtav1": {"crf": "30", "preset": "12"}, "libx264": {"crf": "18", "preset": "fast"}}
CODECS = {"av1": "libsvtav1", "h264": "libx264"}
LEAST = 64  # points of a side that the AV1 encoder takes


class VideoWriter:
    """The videos of one camera.

    Args:
        folder: where its files lie.
        fps: frames a second.
        size: height and width of the frames.
        codec: av1 | h264; frames that AV1 cannot have (odd, or small) become H.264.
        most_bytes: after which a new file begins.
    """

    def __init__(self, folder: Path, fps: int, size: tuple[int, int], codec: str, most_bytes: int):
        if codec not in CODECS:
            raise ValueError(f"codec is {codec!r}; choices: {', '.join(CODECS)}")
        even = size[0] % 2 == 0 and size[1] % 2 == 0
        self.codec = codec if even and min(size) >= LEAST else "h264"
        self.pix_fmt = "yuv420p" if even else "yuv444p"
        self.folder, self.fps, self.size, self.most_bytes = folder, fps, size, most_bytes
        self._container: Any = None
        self._stream: Any = None
        self._number, self._frames, self._bytes = -1, 0, 0

    def add(self, frames: np.ndarray) -> tuple[int, float, float]:
        """Writes the frames (N, H, W, 3) of an episode.

        Returns:
            The number of the file, and when in it they begin and end, seconds.
        """
        import av

        if self._container is None or self._bytes > self.most_bytes:
            self._next()
        first = self._frames
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts = self._frames
            self._mux(self._stream.encode(picture))
            self._frames += 1
        return self._number, first / self.fps, self._frames / self.fps

    def _mux(self, packets: list[Any]) -> None:
        self._bytes += sum(packet.size for packet in packets)
        self._container.mux(packets)

    def _path(self) -> Path:
        return self.folder / "chunk-000" / f"file-{self._number:03d}.mp4"

    def _next(self) -> None:
        import av

        self.close()
        self._number, self._frames, self._bytes = self._number + 1, 0, 0
        self._path().parent.mkdir(parents=True, exist_ok=True)
        encoder = CODECS[self.codec]
        self._container = av.open(str(self._path()), "w")
        stream: Any = self._container.add_stream(encoder, rate=self.fps, options=OPTIONS[encoder])
        stream.height, stream.width = self.size
        stream.pix_fmt = self.pix_fmt
        stream.codec_context.gop_size = 2
        stream.codec_context.max_b_frames = 0
        self._stream = stream

    def close(self) -> None:
        """Finishes the file that is open."""
        if self._container is not None:
            self._mux(self._stream.encode())
            self._container.close()
            self._container = None

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
