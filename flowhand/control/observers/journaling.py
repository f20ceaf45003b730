"""The journal of a run as an observer of its control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowhand.contracts.observers import EpisodeBegins, StepTaken, Stopped

from ..background import Background, Logger, in_words
from ..journal import Journal
from ..safety import Verdict
from ..sensors import InferenceResult
from .threads import ThreadedObserver

logger = Logger(__name__)

WAITING_BYTES = 2**26  # of records that wait to be written
WAITING = (16, 4096)  # such records, at least and at most
ENDS = "the journal ends before control step %d, control goes on: %s"


@dataclass(frozen=True, eq=False)
class ControlStep(StepTaken):
    """A control step in real time, with all that its journal keeps."""

    answer: InferenceResult | None = None  # what was read and decided; None: nothing was there in time
    late: Sequence[InferenceResult] = ()  # to earlier steps, which came too late to be sent
    verdict: Verdict | None = None  # of safety
    taken: bool = True  # the robot took the command
    problem: str = ""  # what it raised, in words
    due_ns: int = 0  # when the step should have begun
    woke_ns: int = 0  # when it did
    sent_ns: int = 0  # when the robot had taken the command


class JournalWriter(ThreadedObserver):
    """Writes a journal in a thread of its own. It ends at the first record that is lost, and control goes on.

    After a gap a replay would compare decisions with a history that it does not have, and to stop a robot because of a
    missing record would be worse.

    Args:
        journal: is written, and closed at the end.
        actions: number of action dimensions, A.
        reasons: of refusals, as the journal counts them.

    Attributes:
        lost: records that the journal lacks.
    """

    def __init__(self, journal: Journal, actions: int, reasons: Sequence[str]):
        self.journal = journal
        self._size = actions
        self._reasons = list(reasons)
        self._background = Background("journal", min(max(WAITING_BYTES // journal.size, WAITING[0]), WAITING[1]))
        self._full = False  # a record found no room there, and so ended the journal
        self._unhanded = self._failed = 0  # records lost: in the caller's thread, in the writer's
        self._episode = -1
        self._start: np.ndarray | None = None

    @property
    def lost(self) -> int:
        """Records that the journal lacks."""
        return self._unhanded + self._failed

    def begin(self, start: np.ndarray | None) -> None:
        """The next episode, in which the robot holds this command (A,) at first; None: it is not known."""
        self._start = start

    def episode_begins(self, event: EpisodeBegins) -> None:
        """Counts it."""
        self._episode += 1

    def step(self, event: StepTaken) -> None:
        """Hands over a record of every answer that came late, and of the step."""
        if isinstance(event, ControlStep):
            for answer in event.late:
                self._hand(answer, None)
            self._hand(event.answer or InferenceResult(event.step), event)

    def _hand(self, answer: InferenceResult, event: ControlStep | None) -> None:
        if not self._full and not self._background.do(self._write, answer, event, self._episode, self._start):
            self._full = True
            step = event.step if event else answer.step
            logger.error(ENDS, step, f"{self._background.most} records wait for the disk")
        self._unhanded += self._full

    def drain(self, limit_s: float) -> bool:
        """Waits until all is written, but no longer than the limit; whether it is."""
        return self._background.drain(limit_s)

    def stop(self, event: Stopped) -> None:
        """Closes the journal after the last record; it is not waited for, see `drain`."""
        self._background.do(self._close)
        self._background.close()

    def _write(
        self, answer: InferenceResult, event: ControlStep | None, episode: int, start: np.ndarray | None
    ) -> None:
        """In the writer's thread: a record. After one that is lost there are no more, or a replay would differ."""
        if not self._failed:
            try:
                verdict = event.verdict if event else None
                clamps = verdict.clamps if verdict else {}
                self.journal.append(self._values(answer, event, episode, start), clamps, words(answer, event))
                return
            except Exception as error:  # of any kind: a journal must not end the control of a robot
                logger.error(ENDS, answer.step, in_words(error))
        self._failed += 1

    def _values(
        self, answer: InferenceResult, event: ControlStep | None, episode: int, start: np.ndarray | None
    ) -> Mapping[str, Any]:
        """The fields of a record: of a control step or, without one, of a late answer."""
        action = answer.action
        if action is not None and action.shape != (self._size,):
            action = None
        values = {"episode": episode, "late": event is None, "start": start, "action": action, **answer.values()}
        if event is not None and event.verdict is not None:
            values |= {name: getattr(event, name) for name in ("due_ns", "woke_ns", "sent_ns")}
            values |= {"refused": self._reasons.index(event.verdict.refused)}
            values |= {"safe": event.verdict.action, "sent": event.taken}
        return values

    def _close(self) -> None:
        """In the writer's thread."""
        try:
            self.journal.close()
        except OSError as error:
            logger.error("the end of the journal may be missing: %s", in_words(error))


def words(answer: InferenceResult, event: ControlStep | None) -> str:
    """What a record says in words."""
    return "; ".join(filter(None, [answer.error, event.problem if event else "", *answer.alarms]))
