"""The configuration of how a policy learns its action, and what it adds to the specification."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from flowhand.contracts.features import Feature, Spec

REPRESENTATIONS = ("absolute", "delta", "relative")
STATISTICS = ("chunk", "step")
WRAPPED = ("sin_cos", "number")
GRIPPER = "gripper"  # the part of a name whose dimensions stay absolute unless told otherwise


@dataclass
class ActionConfig:
    """How the policy learns its action; what it gives and takes is always as the specification has it."""

    representation: str = "absolute"  # absolute | delta (each to the action before) | relative (all to the anchor)
    # What differences are taken to, the anchor: its value at the decision. Empty: the dimensions of the observation
    # with the names of the action's. Otherwise FEATURE (its dimensions by name, or in order where there are no names),
    # FEATURE.NAME, FEATURE.PLACE, FEATURE.FIRST:END or none, in the order of the action; a rotation counts as one.
    anchors: list[str] = field(default_factory=list)
    # Dimensions that stay absolute: their places, or parts of their names.
    absolute: list[str] = field(default_factory=lambda: [GRIPPER])
    statistics: str = "chunk"  # of differences: chunk (the same for all steps of a chunk) | step (for each its own)
    wrapped: str = "sin_cos"  # an absolute angle that wraps is learned as: sin_cos | number (as if it did not wrap)
    # Names or places of the action's dimensions that are angles (rad) that wrap, beside those that the data declare.
    angles: list[str] = field(default_factory=list)
    # Rotations that the data do not declare, as FEATURE.PLACE:FORM, such as action.3:axis_angle. Forms: axis_angle,
    # quaternion_xyzw, quaternion_wxyz, rotation_6d (two columns of the matrix), rotation_6d_rows (two rows).
    rotations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        choices = {"representation": REPRESENTATIONS, "statistics": STATISTICS, "wrapped": WRAPPED}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"action.{name}={getattr(self, name)!r} is unknown; choices: {', '.join(known)}")
        if self.representation == "absolute":
            for name in ("statistics", "anchors"):
                if getattr(self, name) not in ("chunk", []):
                    raise ValueError(
                        f"action.{name}={getattr(self, name)} is for differences, and action.representation=absolute "
                        "takes none; choices: delta, relative"
                    )


def earlier() -> dict[str, Any]:
    """What a checkpoint from before there was a choice means: numbers as they are."""
    return asdict(ActionConfig(wrapped="number"))


def declared(spec: Spec, config: ActionConfig) -> Spec:
    """The specification with the angles and rotations that the configuration declares.

    Raises:
        ValueError: a feature, name, place or form that is not there, or a declaration that contradicts the data's.
    """
    if not (config.angles or config.rotations):
        return spec
    features = {**spec.observation, "action": spec.action}
    for entry in config.rotations:
        name, place, form = _rotation(entry)
        if name not in features:
            raise ValueError(f"action.rotations: {entry!r} names no feature; choices: {', '.join(features)}")
        features[name] = _with_rotation(features[name], (place, form), entry)
    action = features.pop("action")
    if config.angles:
        wraps = {place_of(each, action, "action.angles") for each in config.angles} | set(action.wraps or ())
        action = replace(action, wraps=tuple(sorted(wraps)))
    return replace(spec, observation=features, action=action)


def place_of(entry: str, feature: Feature, where: str) -> int:
    """The place that a name or a number on the last axis of the feature stands for; `ValueError` if there is none."""
    names = feature.names or ()
    if names.count(entry) == 1:
        return names.index(entry)
    if entry.isdecimal() and int(entry) < feature.shape[-1]:
        return int(entry)
    known = f", or one of {', '.join(names)}" if names else ""
    raise ValueError(f"{where}: {entry!r} is no dimension; expected a place from 0 to {feature.shape[-1] - 1}{known}")


def _rotation(entry: str) -> tuple[str, int, str]:
    """Feature, first place and form of an entry FEATURE.PLACE:FORM."""
    name, dot, rest = entry.partition(".")
    place, colon, form = rest.partition(":")
    if not (dot and colon and place.isdecimal()):
        raise ValueError(f"action.rotations: {entry!r} is none; expected FEATURE.PLACE:FORM, as action.3:axis_angle")
    return name, int(place), form


def _with_rotation(feature: Feature, rotation: tuple[int, str], entry: str) -> Feature:
    """The feature with one more rotation, unless it has it already."""
    known = feature.rotations or ()
    if rotation in known:
        return feature
    try:
        return replace(feature, rotations=tuple(sorted((*known, rotation))))
    except ValueError as error:
        raise ValueError(f"action.rotations: {entry!r}: {error}") from error
