"""What decides on chunks, and what it is asked."""

# ruff: noqa: N815  (shape suffixes)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .features import GIVEN, PREVIOUS, ChunkConfig, Spec, shown
from .provenance import Provenance

FORMS = {"rtc_exact": "exact", "rtc_identity": "identity", "rtc_trained": "trained"}  # mode: form of its prefix
SEEN = "seen"  # form of a prefix that a planner wants to look at where the mode has none
LEARNED = {  # dtypes of each kind of feature that policies take
    "state": ("float32",),
    **dict.fromkeys((PREVIOUS, *GIVEN), ("float32",)),
    "image": ("uint8",),
    "depth": ("uint16", "float32"),
    "elements": ("uint8", "float32"),
}
OPEN = ("unit", "names", "wraps", "rotations", "camera")  # what a feature may leave open
NOTHING: Mapping[str, int] = MappingProxyType({})  # what a planner `continues` that knows no prefix


def check_spec(spec: Spec) -> None:
    """Raises `ValueError` naming the first feature that is not of the kinds that policies learn."""
    for name, feature in spec.observation.items():
        if feature.dtype not in LEARNED.get(feature.kind, ()):
            raise ValueError(
                f"the observation {name!r} is {feature.dtype} of kind {feature.kind!r}; a policy takes states in "
                "float32, images in uint8, depth in uint16 or float32 and elements in uint8 (text) or float32: convert "
                "it, or leave it out"
            )
    if spec.action.dtype != "float32":
        raise ValueError(f"the action is {spec.action.dtype}, a policy gives float32: convert it")


def learnable(spec: Spec) -> Spec:
    """What a policy has of data with this specification: its states and its action are cast to float32."""
    observation = {
        name: replace(feature, dtype="float32") if feature.kind == "state" else feature
        for name, feature in spec.observation.items()
    }
    return replace(spec, observation=observation, action=replace(spec.action, dtype="float32"))


def require_drives(planner: Spec, driven: Spec, what: str) -> None:
    """Raises `ValueError` unless what is to be driven has the observation and the action of the planner.

    Names of features, shapes, dtypes and choices must be the same, and, where both say them, units, names of
    dimensions, angles that wrap, rotations and cameras. Bounds and the control period may differ.

    Args:
        planner: what it sees and commands.
        driven: what the world or the robot has.
        what: that is, for the message.
    """
    wanted, found = ({**spec.sensed, "action": spec.action} for spec in (planner, driven))
    if wanted.keys() != found.keys():
        raise ValueError(f"{what} has the features {sorted(found)}, the policy expects {sorted(wanted)}")
    for name, feature in wanted.items():
        other = found[name]
        for part in ("shape", "dtype", "choices", "pointers", "uses", *OPEN):
            a, b = getattr(feature, part), getattr(other, part)
            if part == "choices":
                a, b = a or (0,) * feature.size, b or (0,) * other.size
            if a != b and not (part in OPEN and (not a or not b)):
                raise ValueError(f"{what} has {name!r} with {part} {shown(b)}, the policy expects {shown(a)}")


@dataclass(frozen=True)
class PrefixArrays:
    """The previous chunk of every row, for a planner that continues it; `Prefix` without torch."""

    actions_BTA: np.ndarray  # (B, T, A) float32, physical units; index 0 is the first step of the new chunk
    delay_B: np.ndarray  # (B,) int64: control steps that will be executed before the new chunk arrives
    overlap_B: np.ndarray  # (B,) int64: leading control steps for which the previous chunk has values; 0: there is none
    form: str  # exact | identity | trained | seen


@runtime_checkable
class Planner(Protocol):
    """What decides on chunks: a checkpoint, an export without torch, a server, a scripted expert."""

    @property
    def spec(self) -> Spec:
        """What it sees and commands."""
        ...

    @property
    def chunk(self) -> ChunkConfig:
        """How much it sees, predicts and executes."""
        ...

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise of one decision."""
        ...

    @property
    def continues(self) -> Mapping[str, int]:
        """The forms of a prefix that it knows, each with the longest delay, in control steps, that it takes."""
        ...

    def plan(
        self, observation: Mapping[str, np.ndarray], noise: np.ndarray, prefix: PrefixArrays | None = None
    ) -> np.ndarray:
        """Chunks (B, T, A) in physical units, which continue the prefix if there is one.

        Args:
            observation: histories, each (B, O, *shape).
            noise: (B, *noise_shape).
            prefix: in one of the forms of `continues`.
        """
        ...


class LoadedPlanner(Planner, Protocol):
    """A planner that was trained, and says of itself what records of it need."""

    @property
    def words(self) -> str:
        """What it is, in words."""
        ...

    @property
    def provenance(self) -> Provenance:
        """Where it comes from."""
        ...

    @property
    def identity(self) -> dict[str, Any] | None:
        """What tells an export from others; None: it is no export."""
        ...

    @property
    def changed_head(self) -> dict[str, Any]:
        """Fields of the head with which it samples otherwise than it was trained to, and their values."""
        ...

    @property
    def observation_spread(self) -> Mapping[str, list[float]]:
        """Standard deviation of every dimension of the observation's vectors in the demonstrations."""
        ...

    @property
    def device_name(self) -> str:
        """Where it computes: cpu | cuda | cuda:N."""
        ...

    def settled(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """All that its chunks depend on beside their inputs, as JSON values and as arrays."""
        ...


@dataclass(frozen=True)
class PlanRequest:
    """All that one decision depends on."""

    observation: dict[str, np.ndarray]  # histories (O, *shape)
    noise: np.ndarray  # (*noise_shape,)
    previous: np.ndarray  # (T, A) actions of the previous chunk from the present step on, zero where it has none
    delay: int  # control steps that will be executed meanwhile
    overlap: int  # leading steps for which there is a previous action
