"""The runtime of a simulated robot without a clock: as quick as it computes, or one step at every event of its world.

The same robot, policy, safety and observers as in `control.Runtime`, in one thread. What raises ends the run: there is
nothing here that a safe action must be sent to in time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flowhand.contracts.history import fitting
from flowhand.contracts.observers import EpisodeBegins, EpisodeEnds, Observer, Publisher, Stopped
from flowhand.control.limits.vectors import vector
from flowhand.control.observers.journaling import ControlStep
from flowhand.control.safety import Safety
from flowhand.control.sensors import InferenceResult, Policy, Robot

MOST_STEPS = 10**6  # of an episode


class SteppedRuntime:
    """Controls one simulated robot, one episode after the other.

    Args:
        robot: is read and commanded.
        policy: decides, at every control step.
        safety: has the last word on every command.
        features: of the observation.
        control_dt_s: period of the world, seconds; None: it waits for events, and an episode has no time.
        observers: are given what happens, in this thread; an essential one that raises ends the run.
    """

    def __init__(
        self,
        robot: Robot,
        policy: Policy,
        safety: Safety,
        features: Mapping[str, Any],
        control_dt_s: float | None,
        observers: Sequence[Observer] = (),
    ):
        self._robot, self._policy, self.safety, self._features = robot, policy, safety, features
        self._dt, self._publisher = control_dt_s, Publisher(observers)
        self._stopped = self._ending = ""
        self.steps = 0

    def run(self, seconds: float, seed: int, most: int = MOST_STEPS) -> str:
        """Controls the robot for one episode; why it ended: time, over, or what `stop` or `end_episode` was given.

        Args:
            seconds: to control for, where the world has a period.
            seed: of the policy's noise, in [0, 2^32).
            most: control steps.
        """
        self._ending = ""
        self.safety.reset(getattr(self._robot, "command", None))
        self._publisher.episode_begins(EpisodeBegins(0, seed, "", None))
        self._policy.reset(seed=seed)
        step = 0
        while not (ended := self._ended(step, seconds) or ("time" if step >= most else "")):
            self._tick(step, seed)
            step += 1
        self._publisher.episode_ends(EpisodeEnds(0, seed, step, ended))
        self.steps += step
        return ended

    def stop(self, reason: str) -> None:
        """Ends this run and every further one at the next control step."""
        self._stopped = self._stopped or reason

    def end_episode(self, reason: str) -> None:
        """Ends the present episode at the next control step."""
        self._ending = self._ending or reason

    def close(self) -> None:
        """Tells the observers that nothing follows."""
        self._publisher.stop(Stopped(self._stopped))

    def _ended(self, step: int, seconds: float) -> str:
        if ended := self._stopped or self._ending or ("over" if getattr(self._robot, "over", False) else ""):
            return ended
        return "time" if self._dt is not None and step * self._dt >= seconds - 1e-9 else ""

    def _tick(self, step: int, seed: int) -> None:
        observation = fitting(self._robot.read(), self._features, finite=False)
        wish = self._policy.step(observation)
        action = None if wish is None else vector(wish)
        if action is None:
            verdict = self.safety.refuse("no action", observation)
        else:
            chunk_start = bool(getattr(self._policy, "chunk_start", False))
            verdict = self.safety.step(action, observation, chunk_start=chunk_start)
        if verdict.action is not None:
            self._robot.write(verdict.action.copy())
        if self._publisher.wants("step"):
            answer = InferenceResult(step, seed=seed, observation=observation, action=action)
            sent = None if verdict.action is None else np.array(verdict.action)
            event = ControlStep(0, seed, step, observation, action, sent, answer=answer, verdict=verdict)
            self._publisher.step(event)
