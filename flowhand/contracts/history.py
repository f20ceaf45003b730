"""What a policy sees at a control step: an observation checked against its features, and the last O of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .features import Feature, shown

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


_CASTING: Any = {"f": "same_kind", "u": "safe", "i": "safe", "b": "safe"}


class History:
    """The last O observations of an episode, oldest first; at its start the first one is repeated.

    Args:
        features: of the observation, by name.
        length: O.
    """

    def __init__(self, features: Mapping[str, Feature], length: int):
        self.features, self.length = features, length
        self._seen: list[Arrays] = []

    def see(self, observation: Arrays) -> None:
        """Appends an observation that `fitting` gave."""
        self._seen.extend([observation] * (1 if self._seen else self.length))
        del self._seen[: -self.length]

    def replace(self, histories: Arrays) -> None:
        """Takes these arrays, each (O, *shape), for what was seen."""
        self._seen = [{name: values[i] for name, values in histories.items()} for i in range(self.length)]

    def arrays(self) -> Arrays:
        """The histories, each (O, *shape)."""
        return {name: np.stack([seen[name] for seen in self._seen]) for name in self.features}
