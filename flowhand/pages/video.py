"""Pictures of episodes, and frames -> H.264 in an mp4 that every browser plays."""

import math
import tempfile
from collections.abc import Collection, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from flowhand.contracts.observers import EpisodeBegins, EpisodeEnds, Observer, StepTaken

# Small enough to inline half a dozen clips in a page, still free of visible blocks on rendered scenes.
CRF = "28"


class Film(Observer):
    """Keeps pictures of some episodes of a rollout.

    Args:
        seeds: of the episodes.
        every: control steps from one picture to the next; the first and the last are always kept.

    Attributes:
        frames: of every episode that has ended, by seed, uint8 (H, W, 3).
        ended: their ends (`EpisodeEnds`), by seed.
    """

    essential = True  # a rollout that is made for its pictures

    def __init__(self, seeds: Collection[int], every: int = 4):
        if every < 1:
            raise ValueError(f"every={every} control steps per picture, expected 1 or more")
        self.every = every
        self.frames: dict[int, list[np.ndarray]] = {}
        self.ended: dict[int, EpisodeEnds] = {}
        self._seeds = frozenset(seeds)
        self._begun: dict[int, list[np.ndarray]] = {}
        self._last: dict[int, np.ndarray] = {}  # pictures that are kept only where no other follows

    def pictures(self, lane: int, seed: int) -> int:
        """Of these seeds."""
        return self.every if seed in self._seeds else 0

    def episode_begins(self, event: EpisodeBegins) -> None:
        """Keeps the picture of the start."""
        if event.seed in self._seeds and event.picture is not None:
            self._begun[event.seed] = [event.picture]

    def step(self, event: StepTaken) -> None:
        """Keeps the picture if it is due."""
        if event.seed not in self._seeds or event.picture is None:
            return
        self._last.pop(event.seed, None)
        if (event.step + 1) % self.every == 0:
            self._begun[event.seed].append(event.picture)
        else:  # the last one, or one that another observer wanted
            self._last[event.seed] = event.picture

    def episode_ends(self, event: EpisodeEnds) -> None:
        """Hands over the pictures."""
        if event.seed in self._begun:
            last = [self._last.pop(event.seed)] if event.seed in self._last else []
            self.frames[event.seed] = self._begun.pop(event.seed) + last
            self.ended[event.seed] = event


def write_mp4(path: str | Path, frames: Sequence[np.ndarray], fps: float) -> None:
    """Write frames as H.264, yuv420p, index first; the same frames give the same bytes on every machine.

    Args:
        path: Where to write; an existing file is replaced.
        frames: uint8 arrays (H, W, 3), RGB, all of one shape; odd sizes are padded by repeating the last row or column.
        fps: Frames per second, > 0.

    Raises:
        ValueError: No frames, another dtype or layout, a shape that changes, or an impossible fps.
    """
    import av  # only where it is used: it is large, and a machine without it can do all but videos

    _check(frames, fps)
    height, width, _ = frames[0].shape
    pad = ((0, height % 2), (0, width % 2), (0, 0))  # yuv420p halves both sides
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        # One thread: x264 cuts frames by thread count, and the bytes should not depend on the machine. No macroblock
        # tree: with AVX-512 it now and then reads memory that nobody wrote, and the same frames give other bytes.
        options = {"crf": CRF, "threads": "1", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", Fraction(fps).limit_denominator(1000), options)
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        # Said aloud, because players guess the matrix of untagged video from its size.
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709 in ITU-T H.273
        context.color_range = 1  # limited: black is 16, white 235
        for rgb in frames:
            frame = av.VideoFrame.from_ndarray(np.pad(rgb, pad, mode="edge"), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="itu709")))
        container.mux(stream.encode())


def encode_mp4(frames: Sequence[np.ndarray], fps: float) -> bytes:
    """Return what `write_mp4` would write, same arguments and errors."""
    with tempfile.TemporaryDirectory() as folder:  # moving the index to the front needs a file that can be read back
        path = Path(folder, "clip.mp4")
        write_mp4(path, frames, fps)
        return path.read_bytes()


def _check(frames: Sequence[np.ndarray], fps: float) -> None:
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps is {fps}; expected a positive number of frames per second")
    if len(frames) == 0:
        raise ValueError("no frames; a video needs at least one uint8 array (H, W, 3)")
    for i, frame in enumerate(frames):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
            raise ValueError(f"frame {i} is {frame.dtype} {frame.shape}; expected uint8 (H, W, 3), RGB")
        if frame.shape != frames[0].shape:
            raise ValueError(f"frame {i} has shape {frame.shape}, frame 0 has {frames[0].shape}; they must agree")
