"""What a world is to those who act in it, and what it returns, checked where it enters.

A NaN or half a success must not pass for a result.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .features import Spec
from .history import fitting

Observation = dict[str, np.ndarray]
Expert = Callable[[np.ndarray], np.ndarray]


class World(Protocol):
    """A world to act in: `envs.Env`, or anything that has these."""

    @property
    def features(self) -> Spec:
        """Names, shapes, dtypes, units and ranges of observation and action, and the control period."""
        ...

    @property
    def task(self) -> str:
        """The short name of the task, as it stands in records."""
        ...

    @property
    def task_text(self) -> str:
        """The task as an instruction in plain English."""
        ...

    @property
    def version(self) -> str:
        """The simulator and its version."""
        ...

    @property
    def expert(self) -> Expert | None:
        """A function from `info["expert_observation"]` to an action, made anew by every `reset`, or None."""
        ...

    @property
    def perturbation(self) -> str:
        """What disturbs the world, as it stands in records; empty if nothing does."""
        ...

    @property
    def rest(self) -> Sequence[float | None] | None:
        """The action at which the robot stands still; a dimension that is None repeats its last; None: not known."""
        ...

    def reset(self, *, seed: int | None = None) -> tuple[Observation, dict[str, Any]]:
        """Start the episode that belongs to the seed; its first observation, and an info."""
        ...

    def step(self, action: np.ndarray) -> tuple[Observation, Any, Any, Any, dict[str, Any]]:
        """Act for one control period: observation, reward, terminated, truncated, and an info with `success`."""
        ...

    def render(self) -> Any:
        """A picture (H, W, 3), uint8."""
        ...

    def close(self) -> None:
        """Let go of what the world holds."""
        ...


class WorldError(ValueError):
    """A world returned what no world may return."""


class WorldGoneError(WorldError):
    """A world answers no more: its simulator or its browser has died. What would have come is not known."""


@dataclass(frozen=True)
class Step:
    """What a control step came to, every value of the type that it says."""

    observation: Observation
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]
    success: bool


def begin(env: World, seed: int) -> tuple[Observation, dict[str, Any], bool]:
    """Reset the world; the observation, the info, and whether the task is solved already, as far as the world says.

    Raises:
        WorldError: an observation that does not fit the features, or a success that is neither true nor false.
    """
    observation, info = env.reset(seed=seed)
    check_observation(observation, env.features)
    return observation, info, truth(info.get("success", False), "info['success'] of reset")


def step(env: World, action: np.ndarray) -> Step:
    """Act in the world for one control period.

    Raises:
        WorldError: as `begin`; or a reward that is no finite number, or an end that is neither true nor false.
    """
    observation, reward, terminated, truncated, info = env.step(action)
    check_observation(observation, env.features)
    if "success" not in info:
        raise WorldError(f"info lacks 'success', which every step must tell; it has {sorted(map(str, info))}")
    return Step(
        observation,
        real(reward, "the reward"),
        truth(terminated, "terminated"),
        truth(truncated, "truncated"),
        info,
        truth(info["success"], "info['success']"),
    )


def check_observation(observation: Mapping[str, Any], spec: Spec) -> None:
    """Raises `WorldError` unless the observation has the features' names, shapes, dtypes, and only finite numbers."""
    try:
        fitting(observation, spec.observation)
    except ValueError as error:
        raise WorldError(str(error)) from error


def plain(value: Any) -> Any:
    """A number as Python has it, where numpy's is given, a scalar or an array without dimensions."""
    return (
        value.item() if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and not value.ndim) else value
    )


def real(value: Any, what: str) -> float:
    """The value as a float; `WorldError` if it is no finite number."""
    number = plain(value)
    if not isinstance(number, numbers.Real) or not math.isfinite(number):
        raise WorldError(f"{what} is {value!r}, expected a finite number")
    return float(number)


def truth(value: Any, what: str) -> bool:
    """The value as a bool; `WorldError` if it is neither one nor exactly 0 or 1, as worlds that count have it."""
    number = plain(value)
    if not isinstance(number, numbers.Real) or number not in (0, 1):
        raise WorldError(f"{what} is {value!r}, expected true or false")
    return bool(number)


def check_action(action: np.ndarray, spec: Spec, *, where: str) -> np.ndarray:
    """Return the action as float32 (A,).

    Raises:
        ValueError: the shape is wrong or an element is not finite; `where` (seed, step) is part of the message.
    """
    action = np.asarray(action, dtype=np.float32)
    if action.shape != spec.action.shape:
        raise ValueError(f"{where}: got an action of shape {action.shape}, expected {spec.action.shape}")
    if not np.isfinite(action).all():
        raise ValueError(f"{where}: the action is not finite: {action.tolist()}")
    return action
