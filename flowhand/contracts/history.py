"""What a policy sees at a control step: an observation checked against its features, and the last O of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .features import PREVIOUS, Feature, shown

Arrays = dict[str, np.ndarray]


def fitting(
    observation: Mapping[str, Any], features: Mapping[str, Feature], *leading: int, finite: bool = True
) -> Arrays:
    """Copies of the arrays of an observation, in the dtypes of its features.

    Numbers of any kind become floats; to other dtypes only what they can hold is cast, since values would wrap around.

    Args:
        observation: by name, each of the leading sizes and the feature's shape.
        features: by name.
        leading: sizes before the shape, such as the length of a history.
        finite: refuse NaN, infinity, and what becomes infinite in the feature's dtype.

    Raises:
        ValueError: a name is missing or unknown, or an array has another shape, another dtype or no finite numbers.
    """
    if not isinstance(observation, Mapping) or observation.keys() != features.keys():
        got = sorted(map(str, observation)) if isinstance(observation, Mapping) else observation
        raise ValueError(f"the observation has {shown(got)}, expected {sorted(features)}")
    return {n: fitted(f"observation {n!r}", observation[n], f, *leading, finite=finite) for n, f in features.items()}


def fitted(what: str, given: Any, feature: Feature, *leading: int, finite: bool = True) -> np.ndarray:
    """A copy of one array, named `what` in errors, as `fitting` checks and casts it."""
    value, dtype, shape = np.asarray(given), np.dtype(feature.dtype), (*leading, *feature.shape)
    if value.shape != shape:
        raise ValueError(f"{what} has shape {value.shape}, expected {shape}")
    fits = value.dtype.kind == "U" if dtype.kind == "U" else np.can_cast(value.dtype, dtype, _CASTING[dtype.kind])
    if not fits:
        raise ValueError(f"{what} is {value.dtype}, expected {feature.dtype}")
    with np.errstate(over="ignore"):
        value = np.array(value, dtype)
    if finite and dtype.kind == "f" and not np.isfinite(value).all():
        where = int(np.flatnonzero(~np.isfinite(value))[0])
        raise ValueError(f"{what} has NaN or infinity in dimension {where}, expected finite numbers")
    return value


def with_previous(
    observation: Mapping[str, np.ndarray], action: np.ndarray, features: Mapping[str, Feature]
) -> dict[str, np.ndarray]:
    """The observations of an episode with the action of the step before each; `before_first` is before the first.

    Args:
        observation: by name, each (N, *shape).
        action: (N, A).
        features: of the policy; without one of the kind `previous_action` that is missing, nothing is added.
    """
    names = [name for name, feature in features.items() if feature.kind == PREVIOUS and name not in observation]
    if not names or not len(action):
        return dict(observation)
    first = before_first({name: values[0] for name, values in observation.items()}, features)
    shifted = {name: np.concatenate([first[name][None], action[:-1]]).astype(np.float32) for name in names}
    return {**observation, **shifted}


def before_first(observation: Mapping[str, np.ndarray], features: Mapping[str, Feature]) -> Arrays:
    """What stands for the previous action, by name, at the first step of an episode.

    A robot that has not been commanded stands where it is: a dimension is the value of the one state dimension that has
    its name, and zero where there is none, or several.
    """
    states = {n: f for n, f in features.items() if f.kind == "state" and len(f.shape) == 1 and n in observation}
    known: dict[str, list[float]] = {}
    for name, feature in states.items():
        for dimension, value in zip(feature.names or (), observation[name], strict=False):
            known.setdefault(dimension, []).append(float(value))
    found = {}
    for name, feature in features.items():
        if feature.kind == PREVIOUS:
            values = [known.get(dimension, []) for dimension in feature.names or [""] * feature.size]
            found[name] = np.array([each[0] if len(each) == 1 else 0 for each in values], np.float32)
    return found


_CASTING: Any = {"f": "same_kind", "u": "safe", "i": "safe", "b": "safe"}


class History:
    """The last O observations of an episode, oldest first; at its start the first one is repeated.

    Args:
        features: of the observation, by name.
        length: O.
        given: what of it stays the same over the episode, each (*shape).
    """

    def __init__(self, features: Mapping[str, Feature], length: int, given: Mapping[str, np.ndarray] | None = None):
        self.features, self.length, self._given = features, length, dict(given or {})
        self._seen: list[Arrays] = []
        self._own = [name for name, feature in features.items() if feature.kind == PREVIOUS]
        self._acted: np.ndarray | None = None  # the last action of the episode

    def acted(self, action: np.ndarray) -> None:
        """Notes the action (A,) of this control step, which the next one may observe."""
        self._acted = np.array(action, np.float32)

    def see(self, observation: Arrays) -> None:
        """Appends an observation that `fitting` gave; what a controller knows is filled in where it is not there."""
        observation = {**self._given, **observation}
        if any(name not in observation for name in self._own):
            acted = self._acted
            own = before_first(observation, self.features) if acted is None else dict.fromkeys(self._own, acted)
            observation = {**own, **observation}
        self._seen.extend([observation] * (1 if self._seen else self.length))
        del self._seen[: -self.length]

    def replace(self, histories: Arrays) -> None:
        """Takes these arrays, each (O, *shape), for what was seen."""
        self._seen = [{name: values[i] for name, values in histories.items()} for i in range(self.length)]

    def arrays(self) -> Arrays:
        """The histories, each (O, *shape)."""
        return {name: np.stack([seen[name] for seen in self._seen]) for name in self.features}
