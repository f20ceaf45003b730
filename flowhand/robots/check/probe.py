"""The robot is watched, and moved a little, one dimension after the other; everything is noted."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowhand.contracts.features import Feature, Spec
from flowhand.contracts.history import fitting
from flowhand.control.background import in_words
from flowhand.control.limits.config import SafetyConfig
from flowhand.control.safety import Safety
from flowhand.control.sensors import Robot

from .config import CheckConfig

STILL = -1  # phase in which nothing is commanded
THUMB = 8  # rows and columns of the small pictures that are kept
MOST_ERRORS = 50  # readings or commands in a row that may fail before the check gives up


@dataclass
class Trace:
    """What was noted, step by step."""

    names: tuple[str, ...]  # of the dimensions of the action
    control_dt_s: float
    phase: list[int] = field(default_factory=list)  # dimension that is moved, or STILL
    read_s: list[float] = field(default_factory=list)  # when the reading was there
    reading_s: list[float] = field(default_factory=list)  # how long it took
    sending_s: list[float] = field(default_factory=list)  # how long the command took
    age_s: list[float] = field(default_factory=list)  # of the observation when it was there
    wanted: list[np.ndarray] = field(default_factory=list)  # (A,) command that was sent
    standing: list[np.ndarray] = field(default_factory=list)  # (A,) state of the same name; NaN: there is none
    prints: dict[str, list[int]] = field(default_factory=dict)  # camera -> checksum of the picture
    thumbs: dict[str, list[np.ndarray]] = field(default_factory=dict)  # camera -> small picture (8, 8, channels)
    errors: list[str] = field(default_factory=list)  # of readings and commands, in words
    unmoved: list[str] = field(default_factory=list)  # dimensions that were not moved, and why
    blocked: int = 0  # commands that found the robot still being read


class Probe:
    """Measures one robot.

    Args:
        robot: that is connected.
        spec: of who will control it.
        config: the motions.
        safety: limits of the motions.
        clock: seconds, as of time.monotonic().
        wait_until: waits until a time on that clock.
    """

    def __init__(
        self,
        robot: Robot,
        spec: Spec,
        config: CheckConfig,
        safety: SafetyConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
        wait_until: Callable[[float], None] | None = None,
    ):
        self.robot, self.spec, self.config = robot, spec, config
        self._dt = spec.seconds()
        self._safety = Safety.for_spec(spec, safety, self._dt)
        self._clock = clock
        self._wait_until = wait_until or (lambda at: time.sleep(max(0.0, at - clock())))
        size, names = spec.action.size, spec.action.names
        self._places = state_places(spec)
        self.trace = Trace(names or tuple(f"action {i}" for i in range(size)), self._dt)
        self._cameras = [name for name, feature in spec.sensed.items() if feature.kind in ("image", "depth")]
        for name in self._cameras:
            self.trace.prints[name], self.trace.thumbs[name] = [], []

    def run(self) -> Trace:
        """Watches, and then moves every dimension out and back; it ends where the robot stood."""
        self._next_s = self._clock()
        self._held: np.ndarray | None = None
        self._failed = 0
        for _ in range(round(self.config.still_s / self._dt)):
            self._step(STILL, None)
        start = self._start()
        if start is not None and self.config.motion:
            self._safety.reset(start)
            for dimension, way in enumerate(self._ways(start)):
                if way:
                    for share in profile(self.config, self._dt):
                        goal = start.copy()
                        goal[dimension] += share * way
                        self._step(dimension, goal)
        self.trace.blocked = getattr(self.robot, "blocked", 0)
        return self.trace

    def _start(self) -> np.ndarray | None:
        """Where the robot stands, as an action; None where that is not known."""
        held = getattr(self.robot, "command", None)
        standing = np.array([np.nan]) if held is None else np.array(held, float)
        if held is None and self.trace.standing:
            standing = self.trace.standing[-1].astype(float)
        if np.isfinite(standing).all():
            low, high = (end.astype(float) for end in self.spec.action.bounds())
            if outside := [
                n for n, v, a, b in zip(self.trace.names, standing, low, high, strict=True) if not a <= v <= b
            ]:
                self.trace.unmoved.append(f"nothing was moved: {', '.join(outside)} stands outside of its range")
                return None
            return standing
        missing = [name for name, value in zip(self.trace.names, standing, strict=False) if not np.isfinite(value)]
        self.trace.unmoved.append(f"nothing was moved: no state says where {', '.join(missing) or 'the robot'} stands")
        return None

    def _ways(self, start: np.ndarray) -> list[float]:
        """How far each dimension is moved, towards the side with more room; 0 where it cannot be."""
        low, high = (end.astype(float) for end in self.spec.action.bounds())
        ways = []
        for i, name in enumerate(self.trace.names):
            size, discrete = high[i] - low[i], self.spec.action.discrete[i]
            if discrete or not np.isfinite(size) or self._places[i] is None:
                why = (
                    "a choice" if discrete else "without a range" if self._places[i] else "without a state of its name"
                )
                self.trace.unmoved.append(f"{name} was not moved: it is {why}")
                ways.append(0.0)
            else:
                ways.append(self.config.motion * size * (1 if high[i] - start[i] >= start[i] - low[i] else -1))
        return ways

    def _step(self, phase: int, goal: np.ndarray | None) -> None:
        """One control step: read, note, and command."""
        if self._failed > MOST_ERRORS:
            return
        self._wait_until(self._next_s)
        began = self._clock()
        try:
            observation = fitting(self.robot.read(), self.spec.sensed, finite=False)
        except BaseException as error:  # even SystemExit: drivers are not ours
            self._note(f"a reading failed: {in_words(error)}", error)
            observation = None
        there = self._clock()
        verdict = None
        if goal is not None:
            verdict = self._safety.step(goal, observation or {})
            self._send(verdict.action)
        sent = self._clock()
        if observation is not None:
            self._keep(phase, observation, began, there, sent)
        # A step whose time has passed is left out, as in control.
        late = max(0.0, sent - self._next_s)
        self._next_s += self._dt * max(1, int(np.ceil(late / self._dt - 1e-9)))

    def _send(self, action: np.ndarray | None) -> None:
        if action is None:
            return
        try:
            self.robot.write(action.copy())
            self._held = action
        except BaseException as error:  # even SystemExit: drivers are not ours
            self._note(f"a command was not taken: {in_words(error)}", error)

    def _note(self, text: str, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt):
            raise error
        self._failed += 1
        self.trace.errors.append(text)

    def _keep(self, phase: int, observation: Mapping[str, np.ndarray], began: float, there: float, sent: float) -> None:
        trace, size = self.trace, self.spec.action.size
        self._failed = 0
        trace.phase.append(phase)
        trace.read_s.append(there)
        trace.reading_s.append(there - began)
        trace.sending_s.append(sent - there)
        trace.age_s.append(there - float(getattr(self.robot, "observed_at", there)))
        trace.wanted.append(np.full(size, np.nan) if self._held is None else np.array(self._held, float))
        places = self._places
        trace.standing.append(np.array([float(observation[p[0]][p[1]]) if p else np.nan for p in places]))
        for name in self._cameras:
            trace.prints[name].append(zlib.crc32(observation[name].tobytes()))
            trace.thumbs[name].append(thumb(observation[name]))


def state_places(spec: Spec) -> list[tuple[str, int] | None]:
    """For each dimension of the action the one state value of the same name; None where there is none, or several."""
    known: dict[str, list[tuple[str, int]]] = {}
    for name, feature in spec.sensed.items():
        if feature.kind == "state" and len(feature.shape) == 1:
            for place, dimension in enumerate(feature.names or ()):
                known.setdefault(dimension, []).append((name, place))
    found: list[Any] = [known.get(name, []) for name in spec.action.names or [""] * spec.action.size]
    return [places[0] if len(places) == 1 else None for places in found]


def profile(config: CheckConfig, dt: float) -> np.ndarray:
    """Share of the way at each step: there, a rest, back, a rest; with no jerk at the ends (Flash and Hogan 1985)."""
    t = np.arange(1, max(2, round(config.ramp_s / dt)) + 1) / max(2, round(config.ramp_s / dt))
    there, rest = 10 * t**3 - 15 * t**4 + 6 * t**5, max(1, round(config.rest_s / dt))
    return np.concatenate([there, np.ones(rest), 1 - there, np.zeros(rest)])


def thumb(picture: np.ndarray) -> np.ndarray:
    """The picture as (8, 8, channels): means of its parts, float."""
    if picture.ndim == 2:
        picture = picture[..., None]
    rows, columns = (np.linspace(0, n, THUMB + 1).astype(int) for n in picture.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(picture.astype(np.float64), rows[:-1], 0), columns[:-1], 1)
    return sums / (np.diff(rows)[:, None, None] * np.diff(columns)[None, :, None])


def image_features(spec: Spec) -> dict[str, Feature]:
    """The pictures of a specification."""
    return {name: feature for name, feature in spec.sensed.items() if feature.kind in ("image", "depth")}
