"""A policy beside the person who drives: it decides and sends nothing, and is compared with what the person does.

It is an observer, so it has no robot to send to. At every control step it is shown what was observed, and what it would
do then is held against what was done. A dimension in which it does the opposite is named: the first thing to know of a
policy that is to move a robot for the first time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.features import dimension_name
from flowhand.contracts.history import fitting
from flowhand.contracts.observers import Decision, EpisodeBegins, Observer, StepTaken
from flowhand.contracts.planner import Planner
from flowhand.control.controller import Controller

WINDOW_S = 10.0  # over which policy and person are compared
LEAST = 20  # control steps before anything is said of a dimension
OPPOSITE = -0.5  # correlation below which a dimension is said to be flipped
NEARER = 0.6  # and the flipped policy must be nearer by this factor
MOVES = 0.01  # share of a dimension's range, or of its largest value, that the person must move it by


@dataclass
class Comparison:
    """Policy against person in one dimension, over the last seconds."""

    name: str
    moved: bool  # the person has moved it, so that there is something to compare
    correlation: float  # of what both do, -1 to 1; 0 where one of them does not move
    error: float  # root mean square of the difference, units of the action
    spread: float  # standard deviation of what the person does, units of the action
    flipped: bool  # the policy does the opposite

    def words(self) -> str:
        """In a few words."""
        if not self.moved:
            return f"{self.name} not moved"
        told = f"{self.name} {100 * self.error / self.spread:.0f} % off"
        return f"{self.name} FLIPPED SIGN (correlation {self.correlation:+.2f})" if self.flipped else told


def compared(names: Sequence[str], policy: np.ndarray, person: np.ndarray, ranges: np.ndarray) -> list[Comparison]:
    """Compares what both do (N, A); `ranges` (A,) of the dimensions, infinite where they have none."""
    found = []
    for i, name in enumerate(names):
        own, other = policy[:, i], person[:, i]
        spread, size = float(other.std()), float(np.abs(other).max(initial=0))
        moved = len(other) >= LEAST and spread > MOVES * (ranges[i] if np.isfinite(ranges[i]) else max(size, 1e-6))
        centred, there = own - own.mean(), other - other.mean()
        both = float(centred.std() * there.std())
        correlation = float((centred * there).mean() / both) if moved and both > 0 else 0.0
        nearer = np.square(centred + there).mean() < NEARER**2 * np.square(centred - there).mean()
        error = float(np.sqrt(np.square(own - other).mean()))
        found.append(Comparison(name, moved, correlation, error, spread, correlation < OPPOSITE and bool(nearer)))
    return found


class Shadow(Observer):
    """Compares a policy with whoever acts; see the module.

    Args:
        planner: the policy.
        execution: how its chunks would be executed.
        noise_seed: of its decisions.
        control_dt_s: time between two actions, seconds.
        say: is given a line now and then; None: nobody is.
        every_s: seconds from one line to the next.

    Attributes:
        steps: (episode, step) of each comparison.
        policy: what it would have done, each (A,).
        person: what was done, each (A,).
        chunks: (episode, step, chunk (T, A)) of each decision.
        flipped: names of the dimensions in which it did the opposite, in the order in which that was seen.
    """

    def __init__(
        self,
        planner: Planner,
        execution: ExecutionConfig,
        noise_seed: int,
        control_dt_s: float,
        say: Callable[[str], None] | None = None,
        every_s: float = 1.0,
    ):
        self._controller = Controller(planner, execution=execution, noise_seed=noise_seed, observers=[_Chunks(self)])
        self._features, action = planner.spec.sensed, planner.spec.action
        self.names = [dimension_name(action, i) for i in range(action.size)]
        low, high = (bound.astype(float) for bound in action.bounds())
        self._ranges, self.control_dt_s, self._say = high - low, control_dt_s, say
        self._every = max(1, round(every_s / control_dt_s))
        self._window = max(LEAST, round(WINDOW_S / control_dt_s))
        self._recent: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=self._window)
        self.steps: list[tuple[int, int]] = []
        self.policy: list[np.ndarray] = []
        self.person: list[np.ndarray] = []
        self.chunks: list[tuple[int, int, np.ndarray]] = []
        self.flipped: list[str] = []
        self._episode, self._next = -1, 0

    def episode_begins(self, event: EpisodeBegins) -> None:
        """The policy begins too."""
        self._episode, self._next = self._episode + 1, 0
        self._controller.reset(seed=event.seed)

    def step(self, event: StepTaken) -> None:
        """Asks the policy, and compares."""
        if event.observation is None or event.sent is None or event.chosen is None:
            return  # nobody acted: the robot was held
        if event.step > self._next:
            self._controller.skip(event.step - self._next)
        self._next = event.step + 1
        seen = {name: event.observation[name] for name in self._features}
        own = self._controller.step(fitting(seen, self._features))
        done = np.asarray(event.sent, np.float64)
        self.steps.append((self._episode, event.step))
        self.policy.append(np.asarray(own, np.float64))
        self.person.append(done)
        self._recent.append((self.policy[-1], done))
        if len(self.steps) % self._every == 0:
            self._look()

    def compared(self) -> list[Comparison]:
        """Of the last seconds, by dimension."""
        if not self._recent:
            nothing = np.zeros((0, len(self.names)))
            return compared(self.names, nothing, nothing, self._ranges)
        policy, person = (np.stack(each) for each in zip(*self._recent, strict=True))
        return compared(self.names, policy, person, self._ranges)

    def whole(self) -> list[Comparison]:
        """Of all that was compared, by dimension."""
        policy, person = (np.array(each).reshape(-1, len(self.names)) for each in (self.policy, self.person))
        return compared(self.names, policy, person, self._ranges)

    def line(self) -> str:
        """Of the last seconds, in one line."""
        return "shadow: " + ", ".join(each.words() for each in self.compared())

    def _look(self) -> None:
        for each in self.compared():
            if each.flipped and each.name not in self.flipped:
                self.flipped.append(each.name)
        if self._say is not None:
            self._say(self.line())


class _Chunks(Observer):
    """Keeps the chunks."""

    def __init__(self, shadow: Shadow):
        self._shadow = shadow

    def decision(self, event: Decision) -> None:
        """Notes it."""
        self._shadow.chunks.append((self._shadow._episode, event.step, event.chunk))
