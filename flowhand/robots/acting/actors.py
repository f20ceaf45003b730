"""An expert or a person in the policy's place of a runtime."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ..teleoperators.base import Driver


class ExpertActor:
    """A world's scripted expert.

    Args:
        robot: the simulated robot of the world.

    Raises:
        ValueError: the world has no expert.
    """

    chunk_start, chunk_age_s = False, 0.0  # there are no chunks

    def __init__(self, robot: Any):
        self._robot = robot

    def reset(self, *, seed: int) -> None:
        """The world has made its expert anew."""
        if self._robot.env.expert is None:
            raise ValueError(f"{self._robot.env.task} has no scripted expert; give driver= or checkpoint=")

    def step(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """What the expert does now (A,)."""
        return np.asarray(self._robot.env.expert(self._robot.info["expert_observation"]))


class DriverActor:
    """A person with a device, or a script."""

    chunk_start, chunk_age_s = False, 0.0  # there are no chunks

    def __init__(self, driver: Driver):
        self.driver = driver

    def reset(self, *, seed: int) -> None:
        """An episode begins."""
        if reset := getattr(self.driver, "reset", None):
            reset(seed)

    def step(self, observation: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """What the person does now (A,); None: nobody drives."""
        return self.driver.action(observation)


class PolicyActor:
    """A policy, which is shown those of the observations that it knows; all else is the policy's."""

    def __init__(self, policy: Any, names: Collection[str]):
        self._policy, self._names = policy, tuple(names)

    def reset(self, *, seed: int) -> None:
        """An episode begins."""
        self._policy.reset(seed=seed)

    def step(self, observation: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """What the policy does now (A,)."""
        return self._policy.step({name: observation[name] for name in self._names})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)
