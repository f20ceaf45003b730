"""Recorded actions, played again open loop, and where they lead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from flowhand.contracts.observers import Observer, StepTaken

Recorded = Mapping[str, np.ndarray]  # by name, each (N, *shape)


class PlaybackActor:
    """Gives one recorded action after the other, whatever is observed.

    Args:
        actions: (N, A).
        approach: (A,) where the robot stands; the first actions then lead from there to the first recorded one.
        approach_steps: control steps that this takes.
    """

    chunk_start, chunk_age_s = False, 0.0  # there are no chunks

    def __init__(self, actions: np.ndarray, approach: np.ndarray | None = None, approach_steps: int = 0):
        if approach is not None and approach_steps:
            way = np.linspace(0, 1, approach_steps, endpoint=False)[:, None]
            actions = np.concatenate([approach + way * (actions[0] - approach), actions])
        self._actions, self._step = actions, 0

    def reset(self, *, seed: int) -> None:
        """From the first one on."""
        self._step = 0

    def skip(self, steps: int) -> None:
        """Leaves out actions whose time has passed."""
        self._step += steps

    def step(self, observation: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """The next action; None at the end."""
        self._step += 1
        return self._actions[self._step - 1] if self._step <= len(self._actions) else None


class Reached(Observer):
    """Keeps what is reached before each recorded action, from the control step `first` on.

    Args:
        states: what to keep of the robot, by name; None: the observation.
        first: the control step of the first recorded action.
    """

    def __init__(self, states: Callable[[], Mapping[str, np.ndarray]] | None = None, first: int = 0):
        self._states, self._first = states, first
        self.steps: list[int] = []  # of the recording
        self.values: list[Mapping[str, np.ndarray]] = []
        self.changed: list[int] = []  # at which safety sent something else than was recorded

    def step(self, event: StepTaken) -> None:
        """Keeps it. A world has moved already when this is called: its own state is that of the next step."""
        number = event.step - self._first
        if number < 0:
            return
        if event.chosen is not None and (event.sent is None or not np.array_equal(event.chosen, event.sent)):
            self.changed.append(number)
        if self._states is not None:
            self.steps.append(number + 1)
            self.values.append({name: np.array(value) for name, value in self._states().items()})
        elif event.observation is not None:
            self.steps.append(number)
            self.values.append(event.observation)


def errors(reached: Reached, recorded: Recorded, wraps: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The difference of what was reached to what was recorded, by name: (n, D), one row for each of `reached.steps`.

    It is taken in the dtype of the recording, so that a number that was only rounded there is no difference. Pictures
    and texts are left out, and steps that were not recorded.

    Args:
        reached: what was reached.
        recorded: what was recorded.
        wraps: the dimensions of each that are angles (rad).
    """
    found: dict[str, np.ndarray] = {}
    for name, values in recorded.items():
        if values.dtype.kind not in "fiu" or values.ndim > 2 or not all(name in each for each in reached.values):
            continue
        rows = [
            _difference(each[name], values[step], wraps.get(name, ()))
            for step, each in zip(reached.steps, reached.values, strict=True)
            if step < len(values)
        ]
        if rows:
            found[name] = np.stack(rows)
    return found


def _difference(value: Any, recorded: np.ndarray, wraps: tuple[int, ...]) -> np.ndarray:
    difference = np.asarray(value).astype(recorded.dtype).astype(np.float64) - recorded.astype(np.float64)
    for place in wraps:
        difference[place] = (difference[place] + np.pi) % (2 * np.pi) - np.pi
    return np.abs(difference)
