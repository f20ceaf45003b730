"""An observer in a thread of its own, so that the control of a robot waits for nobody who watches it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flowhand.contracts.observers import (
    Decision,
    EpisodeBegins,
    EpisodeEnds,
    Observer,
    Scored,
    StepTaken,
    Stopped,
)

from ..background import Background, Logger, in_words

logger = Logger(__name__)

MOST_EVENTS = 1000  # that wait for an observer; what does not fit is dropped and counted
END_S = 2.0  # longest wait for an observer at the end


class ThreadedObserver(Observer):
    """An observer whose methods return at once."""


class InThread(ThreadedObserver):
    """Gives the events to an observer in another thread; what that one raises is reported once, and ends its watching.

    Args:
        observer: watches.
        most: events that may wait for it.

    Attributes:
        dropped: events for which there was no room.
    """

    def __init__(self, observer: Observer, most: int = MOST_EVENTS):
        self.observer = observer
        self.dropped = 0
        self._failed = False
        self._background = Background(type(observer).__name__, most)

    def listens(self, name: str) -> bool:
        """What the observer listens to, but for pictures: those of a robot are taken in the thread of its control."""
        return name == "stop" or self.observer.listens(name)

    def pictures(self, lane: int, seed: int) -> int:
        """What the observer says, asked in this thread: before an episode begins there is time."""
        return self.observer.pictures(lane, seed)

    def episode_begins(self, event: EpisodeBegins) -> None:
        """Hands it over."""
        self._hand("episode_begins", event)

    def decision(self, event: Decision) -> None:
        """Hands it over."""
        self._hand("decision", event)

    def scored(self, event: Scored) -> None:
        """Hands it over."""
        self._hand("scored", event)

    def step(self, event: StepTaken) -> None:
        """Hands it over."""
        self._hand("step", event)

    def episode_ends(self, event: EpisodeEnds) -> None:
        """Hands it over."""
        self._hand("episode_ends", event)

    def stop(self, event: Stopped) -> None:
        """Hands it over, and waits a little for what is still to be done."""
        self._hand("stop", event)
        self._background.drain(END_S)
        self._background.close()
        if self.dropped:
            logger.warning("%s missed %d events: it was too slow", type(self.observer).__name__, self.dropped)

    def _hand(self, name: str, event: Any) -> None:
        self.dropped += not self._background.do(self._call, name, event)

    def _call(self, name: str, event: Any) -> None:
        """In the other thread."""
        if self._failed and name != "stop":
            return
        try:
            getattr(self.observer, name)(event)
        except BaseException as error:  # even SystemExit: an observer is not ours
            self._failed = True
            logger.error("%s failed and watches no more: %s", type(self.observer).__name__, in_words(error))


def in_threads(observers: Iterable[Observer]) -> list[Observer]:
    """The observers, none of which is waited for."""
    return [each if isinstance(each, ThreadedObserver) else InThread(each) for each in observers]
