"""The monitor at work: on a robot as the runtime's `Monitor`, and in evaluation as the agent of a rollout.

    monitor = Monitor(calibrated, policy, execution)
    inference_thread = InferenceThread(monitor.policy, execution)   # decides as the policy does, and is scored
    runtime = Runtime(robot, inference_thread, ..., monitor=monitor)  # which hears of alarms at every control step

Nothing here changes an action: what an alarm does is the runtime's `on_alarm`. Nor is torch needed, for an export.
"""

# ruff: noqa: N815  (shape suffixes)

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.export.band import Band
from flowhand.contracts.observers import Observer, Publisher, Scored
from flowhand.contracts.planner import Planner

from .controller import Controller
from .observers.threads import in_threads


class Watched(Planner, Protocol):
    """A policy for one robot that scores its own decisions: `WatchedPolicy`, or exported `WatchedExport`."""

    names: list[str]  # of the D scores
    scores_ND: list[list[float]]  # of the decisions since `begin`

    def begin(self) -> None:
        """Starts an episode."""
        ...


class Calibrated(Protocol):
    """A monitor's band and scores: those of a checkpoint (`CalibratedMonitor`) or of an export (`ExportedMonitor`)."""

    @property
    def band(self) -> Band:
        """The limits of the scores."""
        ...

    def watch(self, policy: Any, execution: ExecutionConfig) -> Watched:
        """The policy with the scores of the band; `ValueError` for an execution that was not calibrated."""
        ...


class Monitor:
    """Watches a policy's decisions against the calibrated band, for one robot.

    An alarm stands until the episode ends: what the policy does after its first decision out of the band is nothing
    that the calibration knows. A runtime that restarts the policy within an episode (after a hang) starts the count of
    decisions anew, and clears no alarm.

    Args:
        calibrated: from `policies.monitor.calibrated.load_monitor`, or an export's `manifest.monitor`.
        policy: the one that it was calibrated for, or the export.
        execution: how its chunks are executed.
        observers: are given the scores of every decision, each in a thread of its own.

    Attributes:
        policy: what must decide in its place.

    Raises:
        ValueError: an execution for which the monitor was not calibrated.
    """

    def __init__(
        self,
        calibrated: Calibrated,
        policy: Planner,
        execution: ExecutionConfig | None = None,
        observers: Iterable[Observer] = (),
    ):
        self._publisher = Publisher(in_threads(observers))
        self.band = calibrated.band
        self.policy = calibrated.watch(policy, execution or ExecutionConfig())
        self._judged = 0  # decisions
        self._alarms: list[str] = []

    def reset(self, seed: int, again: bool = False) -> None:
        """Starts an episode, or `again` its policy; the noise of the scores follows from that of the decisions."""
        self.policy.begin()
        self._judged, self._alarms = 0, self._alarms if again else []

    def observe(self, observation: Mapping[str, np.ndarray], action: np.ndarray) -> list[str]:
        """The alarms so far, in words; judges the decisions made since the last call."""
        scores_ND = self.policy.scores_ND
        for decision in range(self._judged, len(scores_ND)):
            if self._publisher.wants("scored"):
                limits = dict(zip(self.policy.names, map(float, self.band.threshold(decision)), strict=True))
                scores = dict(zip(self.policy.names, map(float, scores_ND[decision]), strict=True))
                self._publisher.scored(Scored(decision, scores, limits))
            if not self._alarms:
                self._alarms = self._judge(decision, np.array(scores_ND[decision]))
        self._judged = len(scores_ND)
        return list(self._alarms)

    def _judge(self, decision: int, scores_D: np.ndarray) -> list[str]:
        limits_D = self.band.threshold(decision)
        return [
            f"{name} {score:.4g} above {limit:.4g} at decision {decision}"
            for name, score, limit in zip(self.policy.names, scores_D, limits_D, strict=True)
            if not score <= limit
        ]


@dataclass
class Trace:
    """The scores of one episode."""

    seed: int
    names: list[str]  # of the scores
    steps: list[int] = field(default_factory=list)  # control step of each decision
    scores: list[list[float]] = field(default_factory=list)  # (decisions, names)

    def alarm_step(self, band: Band) -> int | None:
        """The control step of the first decision out of the band; None if there is none."""
        decision = band.alarm(np.array(self.scores))
        return None if decision is None else self.steps[decision]


class WatchedAgent:
    """The agent of a rollout in which every decision is scored; alarms are noted, not acted on.

    Every lane has a controller of its own that decides for it alone, as on a robot, so neither actions nor scores
    depend on how many lanes there are.

    Args:
        watch: makes a watched policy, one for each lane.
        execution: how chunks are executed, simulated delay included.
        noise_seed: another value gives another draw of all noise.

    Attributes:
        traces: of all episodes begun, by seed.
    """

    def __init__(self, watch: Callable[[], Watched], execution: ExecutionConfig, noise_seed: int = 0):
        self.traces: dict[int, Trace] = {}
        self._watch, self._execution, self._noise_seed = watch, execution, noise_seed
        self._lanes: dict[int, tuple[Watched, Controller]] = {}
        self._now: dict[int, tuple[Trace, int]] = {}  # of each lane: its episode's trace, and its control step

    def reset(self, lane: int, seed: int) -> None:
        """Starts the episode of a seed."""
        if lane not in self._lanes:
            watched = self._watch()
            self._lanes[lane] = watched, Controller(watched, noise_seed=self._noise_seed, execution=self._execution)
        watched, controller = self._lanes[lane]
        watched.begin()
        controller.reset(seed=seed)
        self.traces[seed] = Trace(seed, watched.names, scores=watched.scores_ND)
        self._now[lane] = self.traces[seed], 0

    def act(self, observations: dict[int, dict[str, np.ndarray]]) -> dict[int, np.ndarray]:
        """One action (A,) for every lane given."""
        actions = {}
        for lane, observation in observations.items():
            trace, step = self._now[lane]
            actions[lane] = self._lanes[lane][1].step(observation)
            if len(trace.scores) > len(trace.steps):
                trace.steps.append(step)
            self._now[lane] = trace, step + 1
        return actions


def write_traces(path: str | Path, traces: Iterable[Trace]) -> None:
    """One line of JSON per episode."""
    lines = [json.dumps(asdict(trace)) + "\n" for trace in traces]
    Path(path).write_text("".join(lines), encoding="utf-8")
