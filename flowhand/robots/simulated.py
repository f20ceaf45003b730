"""A simulated world as a robot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowhand.contracts import world
from flowhand.contracts.features import Spec
from flowhand.contracts.world import World, WorldGoneError

from .base import RobotConfig


@dataclass
class SimulatedConfig(RobotConfig):
    """A world in the robot's place."""

    kind: str = "simulated"


@dataclass
class Outcome:
    """How an episode ended."""

    seed: int
    success: bool
    steps: int


class SimulatedRobot:
    """A world that does one control step per command. In real time it runs at the rate at which it is commanded.

    A late command makes it wait, which a robot would not: what a command costs by being late shows in the timing, not
    in the outcome.

    Args:
        env: the world.
        stop_at_success: end an episode at its first success.
        picture_every: control steps from one picture to the next, for those who watch; 0: none. To draw one takes time
            of the control step.

    Attributes:
        picture: of the world after the last command (H, W, 3), where it was drawn.
        info: what the world said beside the last observation.
        reward: of the last command.
        success: whether the task is solved after the last command.
        over: whether the episode has ended, or the world has gone; further commands do nothing.
        outcomes: of the episodes that have ended by themselves.
    """

    concurrent = True  # a reading takes no time

    def __init__(self, env: World, stop_at_success: bool = True, picture_every: int = 0):
        self.env = env
        self.stop_at_success = stop_at_success
        self.picture_every = picture_every
        self.picture: np.ndarray | None = None
        self.over = True
        self.outcomes: list[Outcome] = []
        self._observation: dict[str, np.ndarray] = {}
        self.info: dict[str, Any] = {}
        self.reward, self.success = 0.0, False

    @property
    def features(self) -> Spec:
        """What the world observes and takes."""
        return self.env.features

    def reset(self, seed: int) -> None:
        """Starts the episode that belongs to the seed."""
        self._begun(seed, *world.begin(self.env, seed))

    def begin_at(self, recorded: Mapping[str, np.ndarray]) -> None:
        """Starts an episode where a recorded one is, at a control step with this observation.

        Raises:
            ValueError: this world cannot.
        """
        begin = getattr(self.env, "begin_at", None)
        if begin is None:
            raise ValueError(f"{self.env.task} cannot begin at a recorded state, and the recording has no seed")
        observation, info = begin(recorded)
        self._begun(0, observation, info, False)

    def _begun(self, seed: int, observation: dict[str, np.ndarray], info: dict[str, Any], success: bool) -> None:
        self._observation, self.info, self.success = observation, info, success
        self.reward = 0.0
        self._seed, self._steps, self._success = seed, 0, False
        self.over = False

    def read(self) -> dict[str, np.ndarray]:
        """The observation after the last command."""
        return self._observation

    def write(self, action: np.ndarray) -> None:
        """Does a control step."""
        self.picture = None
        if self.over:
            return
        try:
            step = world.step(self.env, action.astype(np.float32))
        except WorldGoneError:
            self.over = True  # without an outcome
            raise
        self._observation, self.info = step.observation, step.info
        self.reward, self.success = step.reward, step.success
        self._steps += 1
        self._success |= step.success
        self.over = step.terminated or step.truncated or (self.stop_at_success and self._success)
        if self.picture_every and (self.over or self._steps % self.picture_every == 0):
            self.picture = np.asarray(self.env.render())
        if self.over:
            self.outcomes.append(Outcome(self._seed, self._success, self._steps))
