"""What can be set of `flowhand inspect`."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass
class InspectRoot:
    """What `flowhand inspect` reads."""

    where: str = MISSING  # folder or file with demonstrations, or OWNER/NAME of a data set on the Hugging Face hub
    statistics: bool = False  # read all rows: mean, spread, extremes and quantiles of each dimension
    check: bool = False  # read every episode, images too, and tell what cannot be read
    failed: str = ""  # robomimic: leave (out) episodes that the file calls failed | keep | only; empty: leave
    filter_key: str = ""  # robomimic: only the episodes that the file lists under this name
    rate_hz: float = 0.0  # control steps a second, where the files do not say; 0: what is usual for the format


ROOT = InspectRoot
CHOICES = {}
ABOUT = "Recorded demonstrations -> what they are: format, episodes, features, tasks, and what is unusual."
EXAMPLES = ["flowhand inspect where=data/demos/mine", "flowhand inspect where=data/lift.hdf5 check=true"]
MATTER = ("where", "statistics", "check")
