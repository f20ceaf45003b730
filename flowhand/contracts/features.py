"""What a policy sees and commands: features and the specification. No torch, so that a robot can read it without."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

DTYPE_NAMES = ("float32", "uint8")
MOST_CHOICES = 10_000  # of one dimension of an action
MOST_VALUES = 2**25  # of a feature at one control step; a colour image of 3840 x 2160 has three quarters of it
# Names that mean something else beside the parts of a torch module (held against torch by a test).
_TAKEN = """
action T_destination add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda double
dump_patches eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu items
keys load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters pop
register_backward_hook register_buffer register_forward_hook register_forward_pre_hook register_full_backward_hook
register_full_backward_pre_hook register_load_state_dict_post_hook register_load_state_dict_pre_hook
register_module register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_
set_extra_state set_submodule share_memory state_dict to to_empty train training type update values xpu zero_grad
"""
RESERVED = frozenset(_TAKEN.split())


@dataclass(frozen=True)
class Feature:
    """One named array of the observation or the action at one control step."""

    shape: tuple[int, ...]
    dtype: str  # "float32" or "uint8" (images)
    unit: str  # SI unit of the values, "" where there is none
    low: tuple[float, ...] | None = None  # smallest valid value of each dimension; None: not known
    high: tuple[float, ...] | None = None  # largest valid value of each dimension; None: not known
    # How many choices each dimension of an action has: 0 for a continuous one, otherwise its values are the indices
    # 0, 1, ... of the choices. None: all continuous.
    choices: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_NAMES:
            raise ValueError(f"feature dtype {self.dtype!r} is unknown; choices: {sorted(DTYPE_NAMES)}")
        if not self.shape or any(type(n) is not int or n < 1 for n in self.shape):
            raise ValueError(f"feature shape {self.shape} must be one or more positive integers")
        if self.size > MOST_VALUES:
            raise ValueError(f"feature shape {self.shape} has more than {MOST_VALUES} values")
        for name in ("low", "high"):
            bound = getattr(self, name)
            if bound is not None and len(bound) != self.size:
                raise ValueError(f"feature bound {name!r} has {len(bound)} values, expected {self.size}")
            if bound is not None and any(math.isnan(value) for value in bound):
                raise ValueError(f"feature bound {name!r} has NaN; write None where no bound is known")
        counts = self.choices
        if counts is not None and (
            len(counts) != self.size
            or any(type(n) is not int or not (n == 0 or 2 <= n <= MOST_CHOICES) for n in counts)
        ):
            raise ValueError(
                f"feature choices {counts} must be {self.size} integers: 0 for a continuous dimension, otherwise 2 to "
                f"{MOST_CHOICES}"
            )

    @property
    def size(self) -> int:
        """Number of values in one array of this feature."""
        size = 1
        for n in self.shape:
            size *= n
        return size

    @classmethod
    def from_dict(cls, data: Any) -> Feature:
        """Builds a feature from its JSON form; `ValueError` on a missing or unknown field."""
        if not isinstance(data, Mapping):
            raise ValueError(f"a feature is {data!r}, expected a mapping with its shape, dtype, unit, low and high")
        expected = {"shape", "dtype", "unit", "low", "high"}
        if set(data) - {"choices"} != expected:
            raise ValueError(f"feature has fields {sorted(map(str, data))}, expected {sorted(expected)}")
        if not isinstance(data["dtype"], str) or not isinstance(data["unit"], str):
            raise ValueError(f"feature dtype {data['dtype']!r} and unit {data['unit']!r} must be strings")
        choices = data.get("choices")
        for name, values in (("shape", data["shape"]), ("choices", choices), *((k, data[k]) for k in ("low", "high"))):
            if not isinstance(values, list | tuple) and (values is not None or name == "shape"):
                raise ValueError(f"feature {name} is {values!r}, expected a list of numbers")
        bounds: dict[str, Any] = {
            name: None if data[name] is None else tuple(_number(f"a feature bound {name!r}", v) for v in data[name])
            for name in ("low", "high")
        }
        choices = None if choices is None else tuple(choices)
        return cls(shape=tuple(data["shape"]), dtype=data["dtype"], unit=data["unit"], **bounds, choices=choices)


def _number(name: str, value: Any, expected: str = "a number") -> float:
    """The value as a float, numpy's numbers included."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name} is {value!r}, expected {expected}")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{name} is larger than any float") from error


@dataclass(frozen=True)
class Spec:
    """What a policy sees and commands, and how often: part of every checkpoint."""

    observation: dict[str, Feature]
    action: Feature
    control_dt_s: float  # time between two actions in seconds

    def __post_init__(self) -> None:
        if not self.observation:
            raise ValueError("the specification has no observation feature; expected at least one")
        for name in self.observation:
            if not name.isidentifier() or name in RESERVED or name.startswith("_"):
                raise ValueError(f"the observation name {name!r} is reserved or no identifier; choose another")
            if self.observation[name].choices is not None:
                raise ValueError(
                    f"the observation {name!r} has choices; only an action has, give its values as numbers"
                )
        if len(self.action.shape) != 1 or self.action.dtype != "float32":
            raise ValueError(
                f"the action is {self.action.dtype} of shape {self.action.shape}, expected a float32 vector (A,)"
            )
        if not 0 < self.control_dt_s < float("inf"):
            raise ValueError(f"control_dt_s is {self.control_dt_s}, expected a positive number of seconds")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Spec:
        """Builds a specification from its JSON form, the `features` of an environment or a store."""
        expected = {"observation", "action", "control_dt_s"}
        if set(data) != expected:
            raise ValueError(f"specification has fields {sorted(map(str, data))}, expected {sorted(expected)}")
        if not isinstance(data["observation"], Mapping):
            kind = type(data["observation"]).__name__
            raise ValueError(f"the specification's observation is a {kind}, expected a mapping of names to features")
        observation, name = {name: Feature.from_dict(f) for name, f in data["observation"].items()}, "control_dt_s"
        return cls(
            observation, Feature.from_dict(data["action"]), _number(name, data[name], "a positive number of seconds")
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; an action without choices says nothing about them."""
        data = asdict(self)
        for feature in (data["action"], *data["observation"].values()):
            if feature["choices"] is None:
                del feature["choices"]
        return data


@dataclass
class ChunkConfig:
    """How much a policy sees, predicts and executes; see the diagram in batch.py."""

    history: int = 2  # control steps of observation, O
    prediction_horizon: int = 16  # control steps predicted, T
    execution_horizon: int = 2  # control steps executed before the next decision
    loss_on_padding: bool = False  # also learn the repeated last action past the end of an episode

    def __post_init__(self) -> None:
        for name in ("history", "prediction_horizon", "execution_horizon"):
            if getattr(self, name) < 1:
                raise ValueError(f"chunk.{name}={getattr(self, name)} must be at least 1")
        if self.execution_horizon > self.prediction_horizon:
            raise ValueError(
                f"chunk.execution_horizon={self.execution_horizon} is longer than "
                f"chunk.prediction_horizon={self.prediction_horizon}; execute at most what is predicted"
            )
