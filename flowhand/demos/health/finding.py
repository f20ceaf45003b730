"""One thing that was found in a data set, and all of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

SEVERITIES = ("error", "warning", "note")  # error: cannot be used as it is; note: harmless, worth knowing


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    severity: str  # one of SEVERITIES
    check: str  # which check found it, in a word or two
    text: str  # what was found, with how often
    advice: str  # what to do about it
    episode: int | None = None  # the first that has it
    step: int | None = None  # of that episode
    dimension: str = ""  # such as "action.left"; empty: it is not about one

    @property
    def place(self) -> str:
        """Where the first of it is."""
        parts = [f"episode {self.episode}"] if self.episode is not None else []
        parts += [f"step {self.step}"] if self.step is not None else []
        return ", ".join(parts)

    def line(self) -> str:
        """All of it in one line."""
        what = f"{self.dimension}: {self.text}" if self.dimension else self.text
        return f"{self.severity:8s} {self.check}: {what}" + (f" ({self.place})" if self.place else "")


@dataclass
class Health:
    """What was looked at, and what was found."""

    episodes: int
    read: int = 0  # episodes whose numbers could be read
    steps: int = 0  # control steps of those
    frames: int = 0  # of all cameras, that were decoded
    sizes: dict[str, int] = field(
        default_factory=dict
    )  # dimensions of each feature that is numbers; the action is last
    labels: list[str] = field(default_factory=list)  # of all dimensions
    low: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (D,) smallest value of each dimension, and so on
    high: np.ndarray = field(default_factory=lambda: np.zeros(0))
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
    std: np.ndarray = field(default_factory=lambda: np.zeros(0))
    starts: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))  # (E, D) first rows of the episodes
    findings: list[Finding] = field(default_factory=list)

    def measured(self) -> dict[str, dict[str, np.ndarray]]:
        """Mean, std, min and max (n,) of each feature's rows."""
        found, begin = {}, 0
        for name, size in self.sizes.items():
            values = {"mean": self.mean, "std": self.std, "min": self.low, "max": self.high}
            found[name] = {which: value[begin : begin + size] for which, value in values.items()}
            begin += size
        return found

    def count(self, severity: str) -> int:
        """How many findings are of this severity."""
        return sum(found.severity == severity for found in self.findings)

    def add(self, *findings: Finding) -> None:
        """Adds findings; errors come first, then warnings."""
        self.findings = sorted([*self.findings, *findings], key=lambda found: SEVERITIES.index(found.severity))

    def line(self) -> str:
        """The result in one line."""
        counts = ", ".join(f"{self.count(name)} {name}s" for name in SEVERITIES)
        frames = f", {self.frames} frames decoded" if self.frames else ""
        return f"{counts}; {self.read} of {self.episodes} episodes read{frames}"
