"""From the events of a control to the recorder: what was observed and sent, and nothing that was not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flowhand.contracts.observers import StepTaken
from flowhand.control.background import Background, in_words
from flowhand.control.observers.journaling import ControlStep
from flowhand.control.observers.threads import ThreadedObserver
from flowhand.demos.recording.recorder import Recorder

WAITING_BYTES = 2**28  # of steps that wait in memory for the disk
GOOD = ("", "workspace")  # refusals after which what was sent is still a demonstration
END_S = 120.0  # longest wait for the disk at the end of an episode


class EpisodeWriter(ThreadedObserver):
    """Records the episode that is controlled.

    A step at which nothing was observed in time, or at which the robot was not told what somebody wanted (it hung, the
    policy failed, the command was no number), is filled with the last observation and what was sent, for at most
    `gap_s`. After a longer gap the episode is `broken`: it ends, and is not kept.

    Args:
        recorder: is written.
        robot: says reward and success of a world.
        actor: says who acts.
        gap_s: longest gap that is filled, seconds.
        control_dt_s: time between two commands, seconds; None: the world waits for events.
        threaded: write in a thread, so that a control in real time does not wait for the disk.

    Attributes:
        broken: why the episode is not whole; empty: it is.
        nothing: why no step could be recorded yet; empty: all could.
        filled: steps that were filled in this episode.
        interventions: steps of this episode at which somebody had taken over.
        ends: is called, with the reason, where the episode cannot be whole.
    """

    essential = True

    def __init__(
        self, recorder: Recorder, robot: Any, actor: Any, gap_s: float, control_dt_s: float | None, threaded: bool
    ):
        self._recorder, self._robot, self._actor = recorder, robot, actor
        self._gap = 0 if control_dt_s is None else int(gap_s / control_dt_s + 1e-9)
        size = sum(
            f.size * np.dtype(f.dtype if f.dtype != "str" else "U64").itemsize
            for f in recorder.spec.observation.values()
        )
        most = int(min(4096, max(16, WAITING_BYTES // max(size, 1))))
        self._background = Background("recorder", most) if threaded else None
        self.ends: Callable[[str], None] = lambda reason: None
        self.error: BaseException | None = None
        self.begin()

    def begin(self) -> None:
        """An episode begins."""
        self.nothing = ""
        self.broken, self.filled, self.interventions, self.succeeded = "", 0, 0, False
        self._next = self._missing = 0
        self._last: tuple[dict[str, np.ndarray], np.ndarray, dict[str, Any]] | None = None

    def step(self, event: StepTaken) -> None:
        """Takes a control step."""
        verdict = event.verdict if isinstance(event, ControlStep) else None
        refused = verdict.refused if verdict is not None else ""
        skipped, self._next = event.step - self._next, event.step + 1
        if refused == "stopped" or getattr(self._actor, "paused", False) or self.broken:
            return
        if reason := self._wrong(event, refused):
            self._fill(1 + skipped, reason)
            return
        if skipped:
            self._fill(skipped, "control was late")
        assert event.observation is not None
        assert event.sent is not None
        told = {
            "intervention": bool(getattr(self._actor, "intervention", False)),
            "reward": float(getattr(self._robot, "reward", 0.0)),
            "success": bool(getattr(self._robot, "success", False)),
        }
        self._missing = 0
        self.interventions += told["intervention"]
        self.succeeded |= told["success"]
        self._last = (event.observation, event.sent, told)
        self._hand(event.observation, event.sent, event.chosen, told)

    @staticmethod
    def _wrong(event: StepTaken, refused: str) -> str:
        """Why this step is no demonstration; empty if it is one."""
        if event.sent is None:
            return getattr(event, "problem", "") or "nothing was sent"
        if event.observation is None:
            return refused or "nothing was observed"
        for name, value in event.observation.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                return f"{name!r} is not finite"
        return "" if refused in GOOD else refused

    def _fill(self, steps: int, reason: str) -> None:
        """Repeats the last step; before the first one there is nothing to repeat, and the episode begins later."""
        if self._last is None:
            self.nothing = reason
            return
        self._missing += steps
        if self._missing > self._gap:
            self._break(f"{reason}, {self._missing} control steps in a row")
            return
        observation, sent, told = self._last
        self.filled += steps
        for _ in range(steps):
            self._hand(observation, sent, sent, told)

    def _hand(self, observation: Any, sent: np.ndarray, asked: np.ndarray | None, told: dict[str, Any]) -> None:
        if self._background is None:
            self._write(observation, sent, asked, told)
        elif not self._background.do(self._write, observation, sent, asked, told):
            self._break(f"{self._background.most} control steps wait for the disk")

    def _write(self, observation: Any, sent: np.ndarray, asked: np.ndarray | None, told: dict[str, Any]) -> None:
        """In the recorder's thread, where there is one."""
        if self.broken:
            return
        try:
            self._recorder.add(observation, sent, asked, **told)
        except Exception as error:
            self.error = error if isinstance(error, OSError) else None
            self._break(in_words(error))

    def _break(self, reason: str) -> None:
        self.broken = self.broken or reason
        self.ends("broken")

    def wait(self) -> None:
        """Waits until all steps are written.

        Raises:
            OSError: the disk did not take them.
        """
        if self._background is not None and not self._background.drain(END_S):
            self._break(f"the disk has not taken all steps after {END_S:g} s")
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Ends the thread."""
        if self._background is not None:
            self._background.close()
