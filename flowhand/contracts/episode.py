"""One demonstration, and the description of its fields (`features`) that it is checked against."""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Demonstrations use seeds below this one, evaluation the seeds from it on: a policy is never scored on what it saw.
SEED_LIMIT = 1_000_000

FEATURES_KEYS = {"observation", "action", "control_dt_s"}
MOST_DIMENSIONS = 32  # of a feature, as many as numpy has with the steps
FEATURE_KEYS = {"shape", "dtype", "unit", "low", "high"}
REWARD = {"shape": [], "dtype": "float32"}
SUCCESS = {"shape": [], "dtype": "bool"}


@dataclass(eq=False)
class Episode:
    """N control steps of one demonstration; observation n is the one at which action n was decided.

    `features` is a plain JSON-able dict: {"observation": {name: feature}, "action": feature, "control_dt_s": seconds},
    where a feature is {"shape": [...], "dtype": "float32", "unit": "m", "low": [...] or None, "high": [...] or None}.
    """

    observation: dict[str, np.ndarray]  # each (N, *shape), shape and dtype as in the features
    action: np.ndarray  # (N, A); the action that was meant, without execution noise
    reward: np.ndarray  # (N,) float32; earned by that step
    success: np.ndarray  # (N,) bool; true if the task was solved after that step
    task: str  # instruction in words
    seed: int  # start state and goal, in [0, 1_000_000)
    control_dt_s: float  # time between two actions, seconds

    def __len__(self) -> int:
        return len(self.action)

    def validate(self, features: Mapping[str, Any]) -> None:
        """Check every field against the features.

        Raises:
            ValueError: names the field, the step and the dimension of the first thing that is wrong.
        """
        check_features(features)
        if np.size(self.action) == 0:
            raise ValueError("action has no step 0: an episode needs at least one step, this one is empty")
        self._check_names(set(features["observation"]))
        _check_array("action", self.action, features["action"], steps=None)
        for name, feature in features["observation"].items():
            _check_array(f"observation {name!r}", self.observation[name], feature, len(self))
        _check_array("reward", self.reward, REWARD, len(self))
        _check_array("success", self.success, SUCCESS, len(self))
        self._check_scalars(features["control_dt_s"])

    def _check_names(self, expected: set[str]) -> None:
        got = set(self.observation)
        for what, names in (("misses", expected - got), ("has unknown", got - expected)):
            if names:
                raise ValueError(f"observation {what} key {sorted(names)[0]!r}: the features list {sorted(expected)}")

    def _check_scalars(self, control_dt_s: float) -> None:
        number = isinstance(self.seed, int | np.integer) and not isinstance(self.seed, bool)
        if not number or not 0 <= self.seed < SEED_LIMIT:
            raise ValueError(
                f"seed is {shown(self.seed)}: demonstrations have int seeds in [0, {SEED_LIMIT}), evaluation the "
                "larger ones"
            )
        if not isinstance(self.task, str) or not _is_text(self.task):
            raise ValueError(f"task is {shown(self.task)}: expected the instruction as a string")
        if not is_number(self.control_dt_s) or self.control_dt_s != control_dt_s:
            raise ValueError(f"control_dt_s is {shown(self.control_dt_s)} s, but the features say {control_dt_s} s")


def _check_array(name: str, array: np.ndarray, feature: Mapping[str, Any], steps: int | None) -> None:
    """Raise ValueError unless `array` holds `steps` (None: any number) finite entries of the feature's shape, dtype."""
    if type(array) not in (np.ndarray, np.memmap):  # a masked array, for example, is not what is written of it
        raise ValueError(f"{name} is a {type(array).__name__}: expected a numpy array")
    if array.dtype != np.dtype(feature["dtype"]):
        raise ValueError(f"{name} has dtype {array.dtype} from step 0 on: expected {feature['dtype']}")
    if array.ndim == 0 or list(array.shape[1:]) != list(feature["shape"]):
        raise ValueError(f"{name} has shape {array.shape[1:]} from step 0 on: expected {tuple(feature['shape'])}")
    if steps is not None and len(array) != steps:
        raise ValueError(
            f"{name} has {len(array)} steps but action has {steps}: they part at step {min(len(array), steps)}"
        )
    if array.dtype.kind == "b" and (array.view(np.uint8) > 1).any():
        raise ValueError(f"{name} holds bytes that are neither 0 nor 1: expected bool")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        step, *dimension = (int(i) for i in np.argwhere(~np.isfinite(array))[0])
        value = array[(step, *dimension)]
        where = f", dimension {dimension[0] if len(dimension) == 1 else dimension}" if dimension else ""
        raise ValueError(f"{name} is {value} at step {step}{where}: expected finite numbers")


def check_features(features: Mapping[str, Any]) -> None:
    """Check that a features dict is complete and consistent.

    Raises:
        ValueError: names the entry that is missing, unknown or of the wrong form.
    """
    _check_keys("features", features, FEATURES_KEYS)
    observation, control_dt_s = features["observation"], features["control_dt_s"]
    if not observation or not isinstance(observation, Mapping):
        raise ValueError(f"features: observation is {shown(observation)}: expected at least one {{name: feature}}")
    if not is_number(control_dt_s) or control_dt_s <= 0:
        raise ValueError(f"features: control_dt_s is {shown(control_dt_s)}: expected seconds, finite and above 0")
    _check_feature("action", features["action"])
    for name, feature in observation.items():
        _check_feature(f"observation {shown(name)}", feature)


def _check_feature(name: str, feature: Any) -> None:
    known = {key: value for key, value in feature.items() if key != "choices"} if isinstance(feature, dict) else feature
    _check_keys(f"features: {name}", known, FEATURE_KEYS)
    shape, dtype = feature["shape"], feature["dtype"]
    if not isinstance(shape, list | tuple) or len(shape) > MOST_DIMENSIONS or not all(map(_is_size, shape)):
        raise ValueError(f"features: {name} has shape {shown(shape)}: expected a list of sizes above 0")
    if not _is_number_type(dtype):
        raise ValueError(f"features: {name} has dtype {shown(dtype)}: expected a number type such as 'float32'")
    for bound in ("low", "high"):
        values = feature[bound]
        if values is not None and not _fits(values, shape) and not _fits(values, [math.prod(shape)]):
            raise ValueError(
                f"features: {name} has {bound} {shown(values)}: expected None or finite numbers of shape {shape}"
            )


def _check_keys(name: str, mapping: Any, expected: set[str]) -> None:
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{name} is {shown(mapping)}: expected a dict with {sorted(expected)}")
    for what, keys in (("misses", expected - set(mapping)), ("has unknown", set(mapping) - expected)):
        if keys:
            raise ValueError(f"{name} {what} {shown(min(keys, key=str))}: expected {sorted(expected)}")


def shown(value: Any) -> str:
    """The value on one line, as an error shows it, however long it is."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def is_number(value: Any) -> bool:
    """Whether it is a finite number as JSON has it; not one of numpy's, which are written otherwise."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value <= sys.maxsize


def _is_number_type(name: Any) -> bool:
    # One word, for numpy reads whole languages as dtypes, and warns about some.
    if not isinstance(name, str) or not re.fullmatch(r"[<>=|]?[b-zB-Z][a-z]*[0-9]*", name):
        return False
    try:
        return np.dtype(name).kind in "fiub"
    except TypeError:
        return False


def _is_text(value: str) -> bool:
    """Whether the string can be written to a file."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _fits(values: Any, shape: Sequence[int]) -> bool:
    """Whether these are finite numbers in nested lists of this shape."""
    if not shape:
        return is_number(values) or isinstance(values, bool)
    return (
        isinstance(values, list | tuple)
        and len(values) == shape[0]
        and all(_fits(value, shape[1:]) for value in values)
    )
