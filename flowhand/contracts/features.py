"""What a policy sees and commands: features and the specification. No torch, so that a robot can read it without."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from .data.tasks import SOURCE, TASK, check_given
from .screen.pointers import check_pointers, require_rows

DTYPES = ("float16", "float32", "float64", "uint8", "uint16", "int32", "int64", "bool", "str")
PREVIOUS = "previous_action"  # name and kind of the observation that a policy's own controller fills in
GIVEN = (TASK, SOURCE)  # names and kinds of those that it is given for an episode
KINDS = ("state", "image", "depth", "text", "elements", "action", PREVIOUS, *GIVEN)
# Forms of a rotation, and how many values each has. The two of six are the first two columns of the matrix (Zhou 2019),
# one after the other, and its first two rows (as PyTorch3D and Diffusion Policy write it).
ROTATIONS = {"axis_angle": 3, "quaternion_xyzw": 4, "quaternion_wxyz": 4, "rotation_6d": 6, "rotation_6d_rows": 6}
NESTED = ("rotations", "pointers", "uses")  # fields of a feature that are tuples of tuples
MOST_DIMENSIONS = 31  # of one array; numpy has 32, and the steps take one
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
    """One named array of the observation or the action at one control step, as it is stored."""

    shape: tuple[int, ...]
    dtype: str  # one of DTYPES; "str" is text in UTF-8
    unit: str  # SI unit of the values, "" where there is none
    low: tuple[float, ...] | None = None  # smallest valid value of each dimension, -inf: none; None: not known
    high: tuple[float, ...] | None = None  # largest valid value of each dimension, inf: none; None: not known
    # How many choices each dimension of an action has: 0 for a continuous one, otherwise its values are the indices
    # 0, 1, ... of the choices. None: all continuous.
    choices: tuple[int, ...] | None = None
    kind: str = ""  # one of KINDS; empty: what the dtype and the shape say
    names: tuple[str, ...] | None = None  # of the values along the last axis, such as those of joints
    wraps: tuple[int, ...] | None = None  # places on the last axis whose values are angles (rad) that wrap
    camera: str = ""  # that takes the image
    # Rotations among the values along the last axis: the first place and the form (one of ROTATIONS) of each.
    rotations: tuple[tuple[int, str], ...] | None = None
    # Choices of an action that point at a row of an observation of kind "elements": the dimension and its name.
    pointers: tuple[tuple[int, str], ...] | None = None
    # Which dimensions of an action count, for each choice of its dimension 0, which always counts; None: all do.
    uses: tuple[tuple[int, ...], ...] | None = None
    texts: tuple[str, ...] | None = None  # of the task that a policy knows
    vectors: str | None = None  # of the texts (tasks.packed); None: one-hot

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"feature dtype {shown(self.dtype)} is unknown; choices: {', '.join(DTYPES)}")
        shape = self.shape
        if not 1 <= len(shape) <= MOST_DIMENSIONS or any(type(n) is not int or n < 1 for n in shape):
            raise ValueError(f"feature shape {shown(shape)} must be 1 to {MOST_DIMENSIONS} positive integers")
        if self.size > MOST_VALUES:
            raise ValueError(f"feature shape {shown(shape)} has more than {MOST_VALUES} values")
        for name in ("unit", "kind", "camera"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"feature {name} is {shown(getattr(self, name))}, expected a string")
        object.__setattr__(self, "kind", self.kind or self._usual_kind())
        self._check_kind()
        self._check_bounds()
        counts = self.choices
        if counts is not None and (
            len(counts) != self.size
            or any(type(n) is not int or not (n == 0 or 2 <= n <= MOST_CHOICES) for n in counts)
        ):
            raise ValueError(
                f"feature choices {shown(counts)} must be {self.size} integers: 0 for a continuous dimension, "
                f"otherwise 2 to {MOST_CHOICES}"
            )
        check_pointers(self.pointers, self.uses, counts or ())
        check_given(self.kind, self.shape[-1], self.names, self.texts, self.vectors)

    def _usual_kind(self) -> str:
        if self.dtype == "str":
            return "text"
        return "image" if self.dtype == "uint8" and len(self.shape) == 3 else "state"

    def _check_kind(self) -> None:
        vector = len(self.shape) == 1
        forms = {
            "image": (self.dtype == "uint8" and len(self.shape) == 3, "uint8 of shape (height, width, channels)"),
            "depth": (self.dtype != "str" and len(self.shape) in (2, 3), "numbers of shape (height, width[, 1])"),
            "action": (vector and self.dtype != "str", "a vector (A,) of numbers"),
            **dict.fromkeys((PREVIOUS, *GIVEN), (vector and self.dtype == "float32", "a vector in float32")),
        }
        if self.kind not in KINDS:
            raise ValueError(f"feature kind {shown(self.kind)} is unknown; choices: {', '.join(KINDS)}")
        fits, expected = forms.get(self.kind, ((self.dtype == "str") == (self.kind == "text"), "text, and only text"))
        if not fits:
            what = f"{self.dtype} of shape {self.shape}"
            raise ValueError(f"a feature of kind {self.kind!r} is {what}, expected {expected}")
        if self.camera and self.kind not in ("image", "depth"):
            raise ValueError(f"a feature of kind {self.kind!r} has the camera {self.camera!r}; only images have one")
        last, names, wraps = self.shape[-1], self.names, self.wraps
        if names is not None and (len(names) != last or not all(isinstance(name, str) for name in names)):
            raise ValueError(f"feature names {shown(names)} must be {last} strings, one of each value on the last axis")
        if wraps is not None and not all(type(place) is int and 0 <= place < last for place in wraps):
            raise ValueError(f"feature wraps {shown(wraps)} must be places on the last axis, 0 to {last - 1}")
        self._check_rotations()

    def _check_rotations(self) -> None:
        """Raises `ValueError` unless rotations have known forms and places of their own on the last axis."""
        taken = set(self.wraps or ()) | {place for place, n in enumerate(self.choices or ()) if n}
        for each in self.rotations or ():
            if len(each) != 2 or type(each[0]) is not int or not isinstance(each[1], str) or each[1] not in ROTATIONS:
                raise ValueError(
                    f"a rotation of a feature is {shown(each)}, expected its first place and its form, one of "
                    f"{', '.join(ROTATIONS)}"
                )
            places = set(range(each[0], each[0] + ROTATIONS[each[1]]))
            if not places <= set(range(self.shape[-1])) or places & taken:
                raise ValueError(
                    f"the rotation {shown(each)} of a feature takes places {each[0]} to {max(places)}, expected some "
                    f"of 0 to {self.shape[-1] - 1} that no other rotation, angle that wraps or choice has"
                )
            taken |= places

    def _check_bounds(self) -> None:
        for name, never in (("low", math.inf), ("high", -math.inf)):
            bound = getattr(self, name)
            if bound is not None and (len(bound) != self.size or self.dtype == "str"):
                expected = "none: it is text" if self.dtype == "str" else self.size
                raise ValueError(f"feature bound {name!r} has {len(bound)} values, expected {expected}")
            if bound is not None and any(math.isnan(value) or value == never for value in bound):
                raise ValueError(
                    f"feature bound {name!r} is {shown(bound)}; write {-never} for a dimension that has none"
                )

    @property
    def size(self) -> int:
        """Number of values in one array of this feature."""
        return math.prod(self.shape)

    @property
    def discrete(self) -> np.ndarray:
        """Which dimensions of an action are choices, bool (size,)."""
        return np.zeros(self.size, bool) if self.choices is None else np.array(self.choices) > 0

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest valid values, in the feature's shape and dtype; infinite where a float has none."""
        dtype = np.dtype(self.dtype)
        least, most = (0, 1) if dtype.kind == "b" else (-np.inf, np.inf)
        if dtype.kind in "iu":
            least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        low, high = (
            np.full(self.shape, end, dtype)
            if bound is None
            else np.clip(np.reshape(bound, self.shape), least, most).astype(dtype)
            for bound, end in ((self.low, least), (self.high, most))
        )
        if self.choices is not None:
            counts = np.reshape(self.choices, self.shape)
            low[counts > 0], high[counts > 0] = 0, counts[counts > 0] - 1
        return low, high

    @classmethod
    def from_dict(cls, data: Any) -> Feature:
        """Builds a feature from its JSON form; `ValueError` on a missing or unknown field."""
        known = [field.name for field in fields(cls)]
        if not isinstance(data, Mapping):
            raise ValueError(f"a feature is {shown(data)}, expected a mapping with its {', '.join(known[:5])}")
        if not set(known[:5]) <= set(data) <= set(known):
            got = shown(sorted(map(str, data)))
            raise ValueError(f"a feature has fields {got}, expected {known[:5]} and, if wanted, {known[5:]}")
        values = dict(data)
        for name in ("shape", "low", "high", "choices", "names", "wraps", "texts", *NESTED):
            value = values.get(name)
            if not isinstance(value, list | tuple) and (value is not None or name == "shape"):
                raise ValueError(f"feature {name} is {shown(value)}, expected a list")
            values[name] = None if value is None else tuple(value)
        for name in NESTED:
            if values[name] is not None:
                values[name] = tuple(tuple(v) if isinstance(v, list | tuple) else (v,) for v in values[name])
        for name, end in (("low", -math.inf), ("high", math.inf)):
            if values[name] is not None:
                what = f"a feature bound {name!r}"
                values[name] = tuple(end if v is None else _number(what, v) for v in values[name])
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, in which a dimension without a bound has null; what is as usual is left out."""
        data: dict[str, Any] = {"shape": list(self.shape), "dtype": self.dtype, "unit": self.unit}
        for name in ("low", "high"):
            bound = getattr(self, name)
            data[name] = None if bound is None else [v if math.isfinite(v) else None for v in bound]
        for name in ("choices", "names", "wraps", "texts"):
            if getattr(self, name) is not None:
                data[name] = list(getattr(self, name))
        for name in NESTED:
            if getattr(self, name) is not None:
                data[name] = [list(each) for each in getattr(self, name)]
        if self.kind != self._usual_kind():
            data["kind"] = self.kind
        return data | {name: getattr(self, name) for name in ("camera", "vectors") if getattr(self, name)}


def shown(value: Any) -> str:
    """The value on one line, as an error shows it, however long it is."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _number(name: str, value: Any, expected: str = "a number") -> float:
    """The value as a float, numpy's numbers included."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name} is {shown(value)}, expected {expected}")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{name} is {shown(value)}, larger than any float") from error


@dataclass(frozen=True, repr=False)
class Spec:
    """What a policy sees and commands, and how often: part of every checkpoint, and what a world or a data set has."""

    observation: dict[str, Feature]
    action: Feature  # a vector (A,) of numbers
    control_dt_s: float | None  # time between two actions in seconds; None: each action waits for an event

    def __post_init__(self) -> None:
        if not self.observation:
            raise ValueError("the specification has no observation feature; expected at least one")
        for name, feature in self.observation.items():
            if not isinstance(name, str) or not name.isidentifier() or name in RESERVED or name.startswith("_"):
                raise ValueError(f"the observation name {shown(name)} is reserved or no identifier; choose another")
            if feature.choices is not None:
                raise ValueError(
                    f"the observation {name!r} has choices; only an action has, give its values as numbers"
                )
            if feature.kind == "action" or (feature.kind in GIVEN and name != feature.kind):
                raise ValueError(f"the observation {name!r} is of kind {feature.kind!r}, expected another kind")
            if feature.kind == PREVIOUS and feature.shape != self.action.shape:
                raise ValueError(f"the observation {name!r} has shape {feature.shape}, the action {self.action.shape}")
        object.__setattr__(self, "action", replace(self.action, kind="action"))
        require_rows(self.action.pointers, self.action.choices or (), self.observation)
        if self.control_dt_s is not None and not 0 < self.control_dt_s < math.inf:
            raise ValueError(f"control_dt_s is {self.control_dt_s}, expected a positive number of seconds, or None")

    def __repr__(self) -> str:
        seen = ", ".join(f"{name} {feature.dtype} {feature.shape}" for name, feature in self.observation.items())
        pace = "at every event" if self.control_dt_s is None else f"every {self.control_dt_s:g} s"
        return f"Spec({seen} -> action {self.action.dtype} {self.action.shape}, {pace})"

    @property
    def sensed(self) -> dict[str, Feature]:
        """The observation without what no robot measures, but its controller fills in."""
        own = (PREVIOUS, *GIVEN)
        return {name: feature for name, feature in self.observation.items() if feature.kind not in own}

    @property
    def recorded(self) -> Spec:
        """The same without what is given for an episode, which follows from its task and its data set."""
        kept = {name: feature for name, feature in self.observation.items() if feature.kind not in GIVEN}
        return replace(self, observation=kept)

    def with_previous_action(self) -> Spec:
        """The specification of a policy that also observes the action of the control step before.

        Raises:
            ValueError: there is an observation of this name already.
        """
        if PREVIOUS in self.observation:
            raise ValueError(f"there is an observation {PREVIOUS!r} already; expected another name")
        added = replace(self.action, dtype="float32", kind=PREVIOUS, choices=None)
        return replace(self, observation={**self.observation, PREVIOUS: added})

    def seconds(self) -> float:
        """`control_dt_s`, for those who count in time; `ValueError` where the control waits for events."""
        if self.control_dt_s is None:
            raise ValueError("control_dt_s is None, for the control waits for events; expected a number of seconds")
        return self.control_dt_s

    @classmethod
    def from_dict(cls, data: Any) -> Spec:
        """Builds a specification from its JSON form, as checkpoints and stores have it.

        Raises:
            ValueError: names the feature and the field that is missing, unknown or of another form.
        """
        expected = {"observation", "action", "control_dt_s"}
        if not isinstance(data, Mapping) or set(data) != expected:
            got = f"fields {sorted(map(str, data))}" if isinstance(data, Mapping) else shown(data)
            raise ValueError(f"the specification has {got}, expected fields {sorted(expected)}")
        if not isinstance(data["observation"], Mapping):
            got = shown(data["observation"])
            raise ValueError(f"the specification's observation is {got}, expected a mapping of names to features")
        read = {}
        for name, feature in (("action", data["action"]), *data["observation"].items()):
            try:
                read[name] = Feature.from_dict(feature)
            except ValueError as error:
                raise ValueError(f"{shown(name)}: {error}") from error
        name = "control_dt_s"
        dt = None if data[name] is None else _number(name, data[name], "a positive number of seconds")
        return cls({each: read[each] for each in data["observation"]}, read["action"], dt)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        observation = {name: feature.to_dict() for name, feature in self.observation.items()}
        action = self.action.to_dict()
        del action["kind"]  # it has no other
        return {"observation": observation, "action": action, "control_dt_s": self.control_dt_s}


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


def dimension_name(feature: Feature, dimension: int) -> str:
    """The name of a dimension of a vector, with its unit where there is one."""
    name = feature.names[dimension] if feature.names else f"{feature.kind} {dimension}"
    return f"{name} ({feature.unit})" if feature.unit else name
