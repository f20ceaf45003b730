"""How a recording is written."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..lerobot.video import CODECS

IMAGES = ("video", "png")
FORMATS = ("lerobot", "native")


@dataclass
class RecorderConfig:
    """What becomes of frames, and what a recording may take of the disk while it waits for the encoder.

    Raises:
        ValueError: an unknown choice, or a number out of range.
    """

    format: str = "lerobot"  # lerobot (version 3.0) | native (a store of flowhand)
    images: str = "video"  # video (loses a little) | png (in the table, loses nothing)
    codec: str = "h264"  # of videos: h264 (quick to encode) | av1 (smaller, takes four times the processor)
    queue_gb: float = 4.0  # that frames may take on the disk while they wait for the encoder; more ends the episode
    gap_s: float = 0.1  # longest time without an observation that is filled with the last one; a longer one drops it
    data_mb: float = 100.0  # megabytes of a data file up to which files are joined at the end
    video_mb: float = 200.0  # the same for videos

    def __post_init__(self) -> None:
        for name, choices in (("format", FORMATS), ("images", IMAGES), ("codec", tuple(sorted(CODECS)))):
            if getattr(self, name) not in choices:
                raise ValueError(f"data.{name}={getattr(self, name)!r} is unknown; choices: {', '.join(choices)}")
        for name in ("queue_gb", "data_mb", "video_mb"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"data.{name}={getattr(self, name)} must be a positive number")
        if not 0 <= self.gap_s < math.inf:
            raise ValueError(f"data.gap_s={self.gap_s} must be seconds, 0 or more")
