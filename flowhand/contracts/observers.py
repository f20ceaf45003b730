"""What happens in an evaluation or a control, as events for those who watch: records, video, data set, journal, viewer.

    class Lengths(Observer):
        def episode_ends(self, event):
            print(event.seed, event.steps)

    rollout(make_env, agent, seeds, observers=[Lengths()])

**Order.** Of one lane (a world or a robot with its present episode): `episode_begins`; then for every control step the
`decision` that was made at it, if there was one, its `scored` where a monitor judges, and the `step`; then
`episode_ends`. Events of other lanes come between. `stop` comes once, last, also where an error ends it all. Observers
are called in the order in which they are given, where the event happens: in a rollout the next step waits for them, and
in a control every observer has a thread of its own (`flowhand.control.observers.threads`).

**Errors.** An observer that raises is reported once and gets no further event; what it watches goes on. One that is
`essential` (records, a data set) ends a rollout with its error instead, since a result that was not kept is none. The
control of a robot is ended by no observer: a journal that fails ends at that record, is reported and counted.

**Cost.** Events are made only where somebody overrides their method. Their arrays belong to all: a change needs a copy.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class EpisodeBegins:
    """The world was reset, or the control of a robot begins."""

    lane: int  # of those that run side by side; 0 for a robot
    seed: int  # of the episode
    task: str  # its short name; empty where it is not known
    observation: dict[str, np.ndarray] | None  # the first one, each (*shape); None: not read yet
    picture: np.ndarray | None = None  # (H, W, 3) uint8, where somebody wants one
    text: str = ""  # the task as an instruction; empty where it is not known


@dataclass(frozen=True, eq=False)
class Decision:
    """A planner has decided on a chunk."""

    lane: int
    seed: int
    step: int  # the control step at which it began
    observation: dict[str, np.ndarray]  # histories, each (O, *shape)
    noise: np.ndarray  # (*noise_shape,)
    chunk: np.ndarray  # (T, A), physical units
    delay: int  # control steps from its beginning to its arrival: simulated, or what has passed
    seconds: float  # of the inference call, which several lanes may share


@dataclass(frozen=True, eq=False)
class Scored:
    """A monitor has judged a decision."""

    decision: int  # its number in the episode, from 0
    scores: dict[str, float]
    limits: dict[str, float]  # a score above its limit is an alarm


@dataclass(frozen=True, eq=False)
class StepTaken:
    """A control step."""

    lane: int
    seed: int
    step: int  # its number in the episode, from 0
    observation: dict[str, np.ndarray] | None  # what was acted on, each (*shape); None: it was not there in time
    chosen: np.ndarray | None  # (A,) the action that was chosen; None: there was none
    sent: np.ndarray | None  # (A,) what was executed, after noise or safety; None: nothing
    reward: float = 0.0  # of a simulated world
    success: bool = False  # whether the task is solved after the step
    picture: np.ndarray | None = None  # after the step, where somebody wants one
    # what the expert would do, (A,) or a whole plan (T, A), where it is asked or acts by plans
    advice: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class EpisodeEnds:
    """An episode is over."""

    lane: int
    seed: int
    steps: int
    ended: str  # success, or the kind of failure; of a control why it ended
    record: Any = None  # a rollout's `EpisodeRecord`


@dataclass(frozen=True, eq=False)
class Stopped:
    """No event follows."""

    reason: str = ""  # an error in words; empty: all that was to be done is done


class Enough(Exception):  # noqa: N818  (it is no error)
    """Raised by an observer that has all it wants: the rollout ends, with the episodes that have ended."""


class Observer:
    """Watches; every method does nothing unless it is overridden."""

    essential = False  # its failure ends a rollout

    def listens(self, name: str) -> bool:
        """Whether events of this name are worth making: whether the method is overridden."""
        return getattr(type(self), name) is not getattr(Observer, name)

    def pictures(self, lane: int, seed: int) -> int:
        """Control steps from one picture of this episode to the next; 0: none. The first and last are always taken."""
        return 0

    def episode_begins(self, event: EpisodeBegins) -> None:
        """An episode begins."""

    def decision(self, event: Decision) -> None:
        """A chunk was decided."""

    def scored(self, event: Scored) -> None:
        """A decision was judged."""

    def step(self, event: StepTaken) -> None:
        """A control step was taken."""

    def episode_ends(self, event: EpisodeEnds) -> None:
        """An episode is over."""

    def stop(self, event: Stopped) -> None:
        """No event follows; let go of what is held."""


METHODS = ("pictures", "episode_begins", "decision", "scored", "step", "episode_ends", "stop")


class Publisher:
    """Gives each event to the observers that listen to it.

    Args:
        observers: who watches, in the order in which they are called.

    Raises:
        ValueError: something that is no observer.
    """

    def __init__(self, observers: Iterable[Observer] = ()):
        self.observers = tuple(observers)
        for observer in self.observers:
            if not isinstance(observer, Observer):
                raise ValueError(f"got {observer!r} among the observers, expected an Observer (contracts.observers)")
        self._listening = {name: [each for each in self.observers if each.listens(name)] for name in METHODS}
        self._wanted = {name for name, observers in self._listening.items() if observers}

    def wants(self, *names: str) -> bool:
        """Whether somebody listens to one of these, so that the event is worth making."""
        return not self._wanted.isdisjoint(names)

    def pictures(self, lane: int, seed: int) -> int:
        """Control steps from one picture to the next that serve everybody; 0: nobody wants any."""
        return math.gcd(*self._call("pictures", lane, seed))

    def episode_begins(self, event: EpisodeBegins) -> None:
        """Publishes."""
        self._call("episode_begins", event)

    def decision(self, event: Decision) -> None:
        """Publishes."""
        self._call("decision", event)

    def scored(self, event: Scored) -> None:
        """Publishes."""
        self._call("scored", event)

    def step(self, event: StepTaken) -> None:
        """Publishes."""
        self._call("step", event)

    def episode_ends(self, event: EpisodeEnds) -> None:
        """Publishes."""
        self._call("episode_ends", event)

    def stop(self, event: Stopped) -> None:
        """Publishes."""
        self._call("stop", event)

    def _call(self, name: str, *arguments: Any) -> list[Any]:
        """The answers of all who listen. Every one is called before the first error that ends it all is raised."""
        answers, ending = [], None
        for observer in tuple(self._listening[name]):
            try:
                answers.append(getattr(observer, name)(*arguments))
            except Enough as enough:
                ending = ending or enough
            except Exception as error:
                if observer.essential:
                    ending = error if ending is None or isinstance(ending, Enough) else ending
                self._drop(observer, error)
        if ending is not None:
            raise ending
        return answers

    def _drop(self, observer: Observer, error: Exception) -> None:
        """Reports an observer that raised; of what follows it gets `stop` alone."""
        logger.error("%s failed and watches no more: %s: %s", type(observer).__name__, type(error).__name__, error)
        for name in METHODS[:-1]:
            self._listening[name] = [each for each in self._listening[name] if each is not observer]
        self._wanted = {name for name, observers in self._listening.items() if observers}
