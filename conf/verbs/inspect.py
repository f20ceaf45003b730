"""What can be set of `flowhand inspect`."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class InspectRoot:
    """What `flowhand inspect` reads."""

    where: str = MISSING  # folder or file with demonstrations, or OWNER/NAME of a data set on the Hugging Face hub
    # more sets: say how they are mapped onto the first one where a training mixes them (data.mixture)
    mixture: list[str] = field(default_factory=list)
    health: bool = True  # read all rows of states and actions, and some frames, and say what is wrong with them
    check: bool = False  # also decode every frame, and tell what is empty, frozen or damaged
    statistics: bool = False  # print mean, spread, extremes and quantiles of each dimension
    checkpoint: str = ""  # policy whose statistics are held against the rows; empty: none
    page: str = ""  # HTML file to write the report to, with plots and pictures; empty: none
    strict: bool = False  # end with exit status 1 where there are warnings, not only for errors
    failed: str = ""  # robomimic: leave (out) episodes that the file calls failed | keep | only; empty: leave
    filter_key: str = ""  # robomimic: only the episodes that the file lists under this name
    rate_hz: float = 0.0  # control steps a second, where the files do not say; 0: what is usual for the format


ROOT = InspectRoot
CHOICES = {}
ABOUT = "Recorded demonstrations -> what they are, and what is wrong with them; exit status 1 if something is."
EXAMPLES = [
    "flowhand inspect where=data/first mixture=[data/second,data/third]",
    "flowhand inspect where=data/demos/mine",
    "flowhand inspect where=data/lift.hdf5 check=true page=lift.html",
]
MATTER = ("where", "check", "statistics", "page", "strict")
