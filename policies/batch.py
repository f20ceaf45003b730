"""The contract between demonstrations, policies and controllers: what a feature, a specification and a batch are.

Dimensions, everywhere in this package:

    B batch    O observation history    T chunk length (prediction horizon)    A action
    S state    E embedding              K solver steps

The window decided at control step i (history O=2, prediction horizon T=4, execution horizon 2):

    control step    i-1   i   i+1  i+2  i+3
    observed         o    o
    predicted             a    a    a    a
    executed              a    a

Before the episode the first observation repeats. Past its end the last action repeats and the mask is False there.
Generation time runs from t=0 (noise) to t=1 (data).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

DTYPES = {"float32": torch.float32, "uint8": torch.uint8}


@dataclass(frozen=True)
class Feature:
    """One named array of the observation or the action at one control step."""

    shape: tuple[int, ...]
    dtype: str  # "float32" or "uint8" (images)
    unit: str  # SI unit of the values, "" where there is none
    low: tuple[float, ...] | None = None  # smallest valid value of each dimension; None: not known
    high: tuple[float, ...] | None = None  # largest valid value of each dimension; None: not known

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"feature dtype {self.dtype!r} is unknown; choices: {sorted(DTYPES)}")
        if not self.shape or any(type(n) is not int or n < 1 for n in self.shape):
            raise ValueError(f"feature shape {self.shape} must be one or more positive integers")
        for name in ("low", "high"):
            bound = getattr(self, name)
            if bound is not None and len(bound) != self.size:
                raise ValueError(f"feature bound {name!r} has {len(bound)} values, expected {self.size}")
            if bound is not None and any(math.isnan(value) for value in bound):
                raise ValueError(f"feature bound {name!r} has NaN; write None where no bound is known")

    @property
    def size(self) -> int:
        """Number of values in one array of this feature."""
        size = 1
        for n in self.shape:
            size *= n
        return size

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Feature:
        """Builds a feature from its JSON form; `ValueError` on a missing or unknown field."""
        expected = {"shape", "dtype", "unit", "low", "high"}
        if set(data) != expected:
            raise ValueError(f"feature has fields {sorted(data)}, expected {sorted(expected)}")
        if not isinstance(data["dtype"], str) or not isinstance(data["unit"], str):
            raise ValueError(f"feature dtype {data['dtype']!r} and unit {data['unit']!r} must be strings")
        bounds = {k: None if data[k] is None else tuple(float(v) for v in data[k]) for k in ("low", "high")}
        return cls(shape=tuple(data["shape"]), dtype=data["dtype"], unit=data["unit"], **bounds)


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
            # They name parts of a torch module beside those of the action.
            if not name.isidentifier() or name == "action" or hasattr(nn.ModuleDict(), name):
                raise ValueError(f"the observation name {name!r} is reserved or no identifier; choose another")
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
            raise ValueError(f"specification has fields {sorted(data)}, expected {sorted(expected)}")
        if isinstance(data["control_dt_s"], bool) or not isinstance(data["control_dt_s"], int | float):
            raise ValueError(f"control_dt_s is {data['control_dt_s']!r}, expected a positive number of seconds")
        observation = {name: Feature.from_dict(f) for name, f in data["observation"].items()}
        return cls(observation, Feature.from_dict(data["action"]), float(data["control_dt_s"]))

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


@dataclass
class Batch:
    """B windows on one device."""

    observation: dict[str, Tensor]  # each (B, O, *feature shape), in physical units
    action: Float[Tensor, "B T A"]  # in physical units
    mask: Bool[Tensor, "B T"]  # False where the action only repeats past the end of the episode
