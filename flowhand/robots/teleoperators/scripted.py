"""A driver that plays a script: for tests, and for programs that drive."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .base import Observation

Script = Sequence[np.ndarray | None] | Callable[[Observation], np.ndarray | None]


class ScriptedDriver:
    """Gives one action of the script after the other, from its beginning in every episode, and then none.

    Args:
        script: the actions, each (A,) or None; or a function of the observation.

    Attributes:
        led: the actions to which the driver was led.
    """

    def __init__(self, script: Script):
        self._script, self._step = script, 0
        self.led: list[np.ndarray] = []

    def reset(self, seed: int) -> None:
        """Starts the script again."""
        self._step = 0

    def lead(self, action: np.ndarray) -> None:
        """Notes the action."""
        self.led.append(np.array(action))

    def action(self, observation: Observation) -> np.ndarray | None:
        """The next action of the script."""
        if callable(self._script):
            return self._script(observation)
        self._step += 1
        return self._script[self._step - 1] if self._step <= len(self._script) else None
