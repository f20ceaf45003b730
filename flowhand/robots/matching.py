"""A robot as a policy, or whoever drives it, knows it: features by name, values by name, units compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flowhand.contracts.features import Feature, Spec
from flowhand.control.background import Logger
from flowhand.control.sensors import Robot

from .units import Line, conversion, units

logger = Logger(__name__)


def matched(robot: Robot, spec: Spec, convert: bool = False) -> Robot:
    """The robot with the observation and the action of this specification.

    What a robot says of itself (`features`) is compared with the specification before anything is sent. A robot that
    says nothing is taken as it is: it must then read and take what the specification has.

    Values of states and actions belong together by name; of shoulder_pan.pos and shoulder_pan either may be the other's
    name. Pictures belong together by camera. Of names that one of the two does not say the order decides, which is then
    told.

    Args:
        robot: that is to be controlled.
        spec: of the policy or the driver; `previous_action` is not asked of a robot.
        convert: convert values whose units differ: degrees and radians, millimetres and metres, and shares of a range
            (0..100, -100..100) where its ends are known. False: refuse them.

    Raises:
        ValueError: something that the specification has and the robot has not, or the reverse in an action, another
            shape, or units that differ and are not to be converted; in one line that names both.
    """
    own: Spec | None = getattr(robot, "features", None)
    return robot if own is None else Matched(robot, own, spec, convert)


class Matched:
    """What `matched` returns; attributes that are not said here are those of the robot."""

    def __init__(self, robot: Robot, own: Spec, spec: Spec, convert: bool):
        self.robot = robot
        self.features = spec
        states = {
            name: _ranged(f, own.action) for name, f in own.sensed.items() if f.kind == "state" and len(f.shape) == 1
        }
        self._states: dict[str, Vector] = {}
        self._others: dict[str, str] = {}  # name in the specification -> the robot's
        for name, feature in spec.sensed.items():
            if feature.kind == "state" and len(feature.shape) == 1:
                self._states[name] = vector(name, states, _ranged(feature, spec.action), convert)
            else:
                self._others[name] = _same(name, feature, own)
        self._taken, commanded = own.action, {"action": spec.action}
        self._action = vector("action", commanded, own.action, convert, "the policy", "the robot")
        if own.action.size != spec.action.size:
            unknown = set(map(_bare, spec.action.names or ())) - set(map(_bare, own.action.names or ()))
            raise ValueError(f"the policy commands {', '.join(sorted(unknown))}, which the robot has not")

    def read(self) -> dict[str, np.ndarray]:
        """The observation of the specification."""
        found = self.robot.read()
        given = {name: each.of(found) for name, each in self._states.items()}
        return given | {name: np.asarray(found[other]) for name, other in self._others.items()}

    def write(self, action: np.ndarray) -> None:
        """Takes the action (A,) of the specification."""
        self.robot.write(self._action.of({"action": action}))

    @property
    def command(self) -> np.ndarray | None:
        """(A,) what the robot holds before the first command, where that is known."""
        held = getattr(self.robot, "command", None)
        return None if held is None else self._action.back(np.asarray(held, float))

    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest action (A,) that the robot says it takes, in units of the specification."""
        one, other = (self._action.back(end.astype(float)) for end in self._taken.bounds())
        return np.minimum(one, other), np.maximum(one, other)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.robot, name)


@dataclass(frozen=True)
class Vector:
    """Values of several arrays as one, each converted."""

    places: list[tuple[str, int]]  # array and index of each value
    lines: list[Line]  # of each value

    def of(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The vector; its dtype stays what it is where nothing is converted."""
        values = [np.asarray(arrays[name]).reshape(-1)[index] for name, index in self.places]
        if all(line.plain for line in self.lines):
            return np.asarray(values)
        return np.array([line.scale * value + line.offset for line, value in zip(self.lines, values, strict=True)])

    def back(self, values: np.ndarray) -> np.ndarray:
        """The one array of which `of` gave this vector, where it took every value once."""
        array = np.empty(len(self.places))
        for (_, index), line, value in zip(self.places, self.lines, values, strict=True):
            array[index] = (value - line.offset) / line.scale
        return array


def vector(
    name: str,
    given: Mapping[str, Feature],
    wanted: Feature,
    convert: bool,
    giver: str = "the robot",
    taker: str = "the policy",
) -> Vector:
    """Where the values of a vector come from, and how their units are converted.

    Args:
        name: of the vector.
        given: the vectors that there are.
        wanted: the one that is to be made of them.
        convert: whether units may be converted.
        giver: who has the vectors, for messages.
        taker: who wants one, for messages.

    Raises:
        ValueError: a value that there is not, or units that differ and are not to be converted.
    """
    named = any(feature.names for feature in given.values())
    if wanted.names is not None and named:
        places = [_place(dimension, name, given, giver, taker) for dimension in wanted.names]
    else:
        places = _in_order(name, given, wanted, giver, taker)
    lines = [_line(name, given, wanted, i, places[i], convert, giver, taker) for i in range(wanted.size)]
    known = {key: units(feature) for key, feature in given.items()}
    unsaid = [bool(known[key][index]) != bool(want) for (key, index), want in zip(places, units(wanted), strict=True)]
    if any(unsaid):
        who = taker if any(known[key][index] for key, index in places) else giver
        logger.warning(
            "%s says no unit of %r, so that nothing is compared: flowhand check looks at the ranges", who, name
        )
    return Vector(places, lines)


def _line(
    name: str,
    given: Mapping[str, Feature],
    wanted: Feature,
    place: int,
    source: tuple[str, int],
    convert: bool,
    giver: str,
    taker: str,
) -> Line:
    """How a value that is given becomes one that is wanted; `ValueError` where it may not be converted."""
    feature, index = given[source[0]], source[1]
    have, want = units(feature)[index], units(wanted)[place]
    if not have or not want or have == want:
        return Line()
    who = wanted.names[place] if wanted.names else f"dimension {place}"
    problem = f"{who} of {name!r} is in {have} for {giver} and in {want} for {taker}"
    if not convert:
        raise ValueError(f"{problem}; convert=true has it converted (robot.convert or driver.convert)")
    try:
        return conversion(have, want, _range(feature, index), _range(wanted, place))
    except ValueError as error:
        raise ValueError(f"{problem}: {error}") from error


def _place(dimension: str, name: str, given: Mapping[str, Feature], giver: str, taker: str) -> tuple[str, int]:
    """Where the value of this name is: in the vector of the same name, or in the one that has it."""
    found = [
        (key, place)
        for key, feature in given.items()
        for place, each in enumerate(feature.names or ())
        if _bare(each) == _bare(dimension)
    ]
    found = [each for each in found if each[0] == name] or found
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{giver} has {dimension!r} several times: in {', '.join(key for key, _ in found)}")
    names = [each for feature in given.values() for each in feature.names or ()]
    raise ValueError(
        f"{giver} has no value {dimension!r}, which {taker} expects in {name!r}; there is {', '.join(names)}"
    )


def _in_order(
    name: str, given: Mapping[str, Feature], wanted: Feature, giver: str, taker: str
) -> list[tuple[str, int]]:
    """The values of the vector of the same name, or of the only one, in their order."""
    key = name if name in given else next(iter(given)) if len(given) == 1 else ""
    if not key or given[key].size != wanted.size:
        sizes = ", ".join(f"{each} of {feature.size}" for each, feature in given.items()) or "none"
        raise ValueError(f"{taker} expects {name} of {wanted.size} values, and {giver} has {sizes}")
    if wanted.names != given[key].names:
        names = ", ".join(wanted.names or given[key].names or ())
        logger.warning("only one of %s and %s names the values of %r; taken in order: %s", giver, taker, name, names)
    return [(key, place) for place in range(wanted.size)]


def _same(name: str, wanted: Feature, own: Spec) -> str:
    """The robot's name of a picture, or of anything that is no vector of states."""
    camera = wanted.camera or name
    found = [other for other, f in own.sensed.items() if f.kind == wanted.kind and camera in (f.camera, other)]
    if not found:
        others = [f.camera or other for other, f in own.sensed.items() if f.kind == wanted.kind]
        raise ValueError(
            f"the robot has no {wanted.kind} {camera!r}, which the policy expects as {name!r}; it has "
            f"{', '.join(others) or 'none'}"
        )
    shape = own.sensed[found[0]].shape
    if shape != wanted.shape:
        raise ValueError(
            f"the {wanted.kind} {camera!r} of the robot has shape {shape}, the policy expects {wanted.shape}; set the "
            "size of the robot's camera"
        )
    return found[0]


def _ranged(state: Feature, action: Feature) -> Feature:
    """The state with the range of the action of the same name and unit where it does not say its own."""
    places = {name: place for place, name in enumerate(action.names or ())}
    ends = [list(end.reshape(-1).astype(float)) for end in state.bounds()]
    for index, name in enumerate(state.names or ()):
        if name in places and units(state)[index] == units(action)[places[name]]:
            for end, known in zip(ends, _range(action, places[name]), strict=True):
                end[index] = end[index] if math.isfinite(end[index]) else known
    return replace(state, low=tuple(ends[0]), high=tuple(ends[1]))


def _bare(name: str) -> str:
    return name.removesuffix(".pos")


def _range(feature: Feature, index: int) -> tuple[float, float]:
    low, high = feature.bounds()
    return float(low.reshape(-1)[index]), float(high.reshape(-1)[index])
