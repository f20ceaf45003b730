"""The keys of a recording: end, redo, drop, annotate, take over, stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flowhand.robots.teleoperators.keys import Keys

KEYS = {"right": "end", "left": "redo", "backspace": "drop", "escape": "stop", "t": "take over"}
HELP = "keys: right end the episode, left do it again, backspace drop it, t take over or give back, escape stop"


class RecordingKeys:
    """What a person says with keys while an episode is recorded.

    Args:
        keys: where they come from; None: nobody presses any.
        tasks: texts that the keys 1 to 9 give to the episode.

    Attributes:
        said: end | redo | drop | stop, the last that was said of this episode; empty: nothing.
        task: the text that was chosen for it; empty: none.
    """

    def __init__(self, keys: Keys | None, tasks: Sequence[str]):
        if len(tasks) > 9:
            raise ValueError(f"tasks has {len(tasks)} texts, the keys 1 to 9 choose among at most 9")
        self._keys = keys
        self._tasks = {str(number): text for number, text in enumerate(tasks, 1)}
        self.said = self.task = ""

    def begin(self) -> None:
        """An episode begins; the task stays."""
        self.said = ""

    def look(self, ends: Callable[[str], Any], switch: Callable[[str], Any] | None) -> None:
        """Takes the keys that were pressed.

        Args:
            ends: ends the episode, with what was said.
            switch: lets another one act; None: there is only one.
        """
        if self._keys is None:
            return
        for key in self._keys.take([*KEYS, *self._tasks]):
            if key in self._tasks:
                self.task = self._tasks[key]
            elif KEYS[key] != "take over":
                self.said = KEYS[key]
                ends(self.said)
            elif switch is not None:
                switch("key")


class Listening:
    """An actor that looks for keys at every control step; all else is the actor's."""

    def __init__(self, actor: Any, look: Callable[[], None]):
        self._actor, self._look = actor, look

    def reset(self, *, seed: int) -> None:
        """An episode begins."""
        self._actor.reset(seed=seed)

    def step(self, observation: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """What the actor does."""
        self._look()
        return self._actor.step(observation)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._actor, name)
