"""What can be set of `flowhand convert`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ConvertRoot:
    """What `flowhand convert` reads and writes."""

    sources: list[str] = field(default_factory=list)  # folders or files, or OWNER/NAME on the hub, joined
    target: str = ""  # folder to write; it must not exist, and appears when all is there
    format: str = "lerobot"  # lerobot (version 3.0) | native (a store of flowhand)
    episodes: list[str] = field(default_factory=list)  # numbers and ranges, counted through the sources; empty: all
    drop: list[str] = field(default_factory=list)  # observations that are left out
    tasks: list[str] = field(default_factory=list)  # 'OLD => NEW' renames a task text; NEW alone: all texts
    images: str = "keep"  # keep (videos are copied, other images become PNG; loses nothing) | video (encoded) | png
    codec: str = "av1"  # of videos that are encoded: av1 | h264
    dry_run: bool = False  # say what would be written, and write nothing
    failed: str = ""  # robomimic: leave (out) episodes that the file calls failed | keep | only; empty: leave
    filter_key: str = ""  # robomimic: only the episodes that the file lists under this name
    rate_hz: float = 0.0  # control steps a second, where the files do not say; 0: what is usual for the format


ROOT = ConvertRoot
CHOICES = {}
ABOUT = "Recorded demonstrations of any format -> a LeRobot data set of version 3.0, or a store of flowhand."
EXAMPLES = [
    "flowhand convert data/lift.hdf5 data/lift",
    "flowhand convert sources=[data/monday,data/tuesday] target=data/both episodes=[0:50,60] drop=[wrist]",
    "flowhand convert data/arm data/arm_store format=native \"tasks=['pick => pick up the cube']\" dry_run=true",
]
MATTER = ("sources", "target", "format", "episodes", "drop", "tasks", "images", "dry_run")
