"""What a world returns, checked where it enters: a NaN or half a success must not pass for a result."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import Env, Features, Observation


class WorldError(ValueError):
    """A world returned what no world may return."""


@dataclass(frozen=True)
class Step:
    """What a control step came to, every value of the type that it says."""

    observation: Observation
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]
    success: bool


def begin(env: Env, seed: int) -> tuple[Observation, dict[str, Any], bool]:
    """Reset the world; the observation, the info, and whether the task is solved already, as far as the world says.

    Raises:
        WorldError: an observation that does not fit the features, or a success that is neither true nor false.
    """
    observation, info = env.reset(seed=seed)
    check_observation(observation, env.features)
    return observation, info, truth(info.get("success", False), "info['success'] of reset")


def step(env: Env, action: np.ndarray) -> Step:
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


def check_observation(observation: Mapping[str, Any], features: Features) -> None:
    """Raises `WorldError` unless the observation has the features' names, shapes, and only finite numbers."""
    expected = features["observation"]
    if observation.keys() != expected.keys():
        raise WorldError(f"the observation has {sorted(observation)}, the features say {sorted(expected)}")
    for name, feature in expected.items():
        value = np.asarray(observation[name])
        if value.shape != tuple(feature["shape"]):
            raise WorldError(f"observation {name!r} has shape {value.shape}, the features say {feature['shape']}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            where = int(np.flatnonzero(~np.isfinite(value))[0])
            raise WorldError(
                f"observation {name!r} is {value.flat[where]} in dimension {where}, expected finite numbers"
            )


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
