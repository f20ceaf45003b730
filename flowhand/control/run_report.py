"""What happened in a run, as numbers."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FIELDS = ("steps", "sent", "misses", "skipped", "unwritten", "unlogged", "ended")  # of a report, as they are


def _times() -> array[float]:
    return array("d")


@dataclass
class Report:
    """All the episodes of a runtime."""

    control_dt_s: float
    steps: int = 0  # control steps
    sent: int = 0  # commands that the robot took
    misses: int = 0  # control steps that were over when their command was sent, and those that were skipped
    skipped: int = 0  # control steps that were left out since their time had passed
    unwritten: int = 0  # records that the journal lacks
    unlogged: int = 0  # log lines that were dropped
    woke_s: array[float] = field(default_factory=_times)  # of each step, how much later than due it began
    sent_s: array[float] = field(default_factory=_times)  # of each step, from due to sent
    decide_s: array[float] = field(default_factory=_times)  # of each answer, from observation to action
    jitter_s: array[float] = field(default_factory=_times)  # deviation of the time between two commands from the period
    alarms: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)  # of safety: "clamp: reason", "refusal: reason"
    ended: str = ""  # why the last episode ended

    def add(self, due_ns: int, woke_ns: int, sent_ns: int, interval_ns: int) -> None:
        """Notes the times of a control step; `interval_ns` since the last command, 0 where there was none."""
        self.steps += 1
        self.misses += sent_ns - due_ns > self.control_dt_s * 1e9
        self.woke_s.append((woke_ns - due_ns) / 1e9)
        self.sent_s.append((sent_ns - due_ns) / 1e9)
        if interval_ns:
            self.jitter_s.append(abs(interval_ns / 1e9 - self.control_dt_s))

    def summary(self) -> dict[str, Any]:
        """Everything as numbers, times as percentiles in milliseconds."""
        return {
            "rate_hz": 1 / self.control_dt_s,
            **{name: getattr(self, name) for name in FIELDS},
            **{f"{name}_ms": percentiles(getattr(self, f"{name}_s")) for name in ("woke", "sent", "decide", "jitter")},
            "counts": dict(self.counts),
            "alarms": dict(self.alarms),
        }

    def line(self) -> str:
        """One line with all that matters."""
        counts = ", ".join(f"{what} {count}" for what, count in sorted(self.counts.items())) or "nothing clamped"
        p99 = percentiles(self.jitter_s).get("p99")
        jitter = "" if p99 is None else f", jitter p99 {p99:.2f} ms"
        lost = "".join(
            f"{count} {what} lost; "
            for count, what in ((self.unwritten, "journal records"), (self.unlogged, "log lines"))
            if count
        )
        return (
            f"{self.steps} steps at {1 / self.control_dt_s:.4g} Hz, {self.misses} missed{jitter}; {counts}; "
            f"{sum(self.alarms.values())} alarms; {lost}ended: {self.ended}"
        )


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and largest value, in milliseconds; empty where there are none."""
    if not len(seconds):
        return {}
    return {name: 1e3 * float(np.percentile(seconds, q)) for name, q in (("p50", 50), ("p99", 99), ("max", 100))}
