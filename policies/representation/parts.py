"""The parts of an action (numbers, choices, angles, rotations), and what each is a difference to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flowhand.contracts.features import ROTATIONS, Feature, Spec

from .config import ActionConfig, place_of

MOST_PARTS = 2**16  # of an action, or of a feature with its anchors


@dataclass(frozen=True)
class Part:
    """Neighbouring values of a feature that mean something together."""

    first: int  # place of the first of them
    size: int  # how many they are
    kind: str  # number | choice | angle (that wraps) | one of ROTATIONS

    @property
    def places(self) -> slice:
        """Where they are."""
        return slice(self.first, self.first + self.size)

    @property
    def turns(self) -> bool:
        """Whether it is a rotation."""
        return self.kind in ROTATIONS


@dataclass(frozen=True)
class Anchor:
    """The part of an observation that a part of the action is a difference to."""

    feature: str
    part: Part


def parts(feature: Feature) -> list[Part]:
    """The parts of a feature's values, in their order; of an array of several axes all values are numbers.

    Raises:
        ValueError: there are more values than any robot has, as a file from a stranger may say.
    """
    if feature.size > MOST_PARTS:
        raise ValueError(f"a feature has {feature.size} values, and an action or its anchors have at most {MOST_PARTS}")
    if len(feature.shape) > 1:
        return [Part(place, 1, "number") for place in range(feature.size)]
    turns, wraps = dict(feature.rotations or ()), set(feature.wraps or ())
    found, place = [], 0
    while place < feature.size:
        kind = turns.get(place) or ("angle" if place in wraps else "number")
        kind = "choice" if feature.choices and feature.choices[place] else kind
        found.append(Part(place, ROTATIONS.get(kind, 1), kind))
        place += found[-1].size
    return found


def anchors(config: ActionConfig, spec: Spec) -> list[Anchor | None]:
    """The anchor of each part of the action; None for a part that stays absolute.

    Raises:
        ValueError: a dimension without an anchor, with several, or with one that it cannot be a difference to.
    """
    own = parts(spec.action)
    if config.representation == "absolute":
        return [None] * len(own)
    stay = _absolute(config, spec.action, own)
    states = {name: f for name, f in spec.observation.items() if f.dtype == "float32"}
    given = _by_name(own, stay, spec.action, states, config) if _named(config, spec.action, states) else None
    if given is None:
        given = _by_place(config.anchors, states)
        if len(given) != len(own):
            raise ValueError(
                f"action.anchors gives {len(given)} anchors to the {len(own)} dimensions of the action, of which "
                "a rotation is one; expected one for each, or none"
            )
    found = [None if absolute else anchor for absolute, anchor in zip(stay, given, strict=True)]
    for part, anchor in zip(own, found, strict=True):
        if anchor is not None:
            _require_fit(part, anchor, spec)
    if not any(found):
        raise ValueError(
            f"action.representation={config.representation} leaves all dimensions absolute; give action.anchors, or "
            "take action.representation=absolute"
        )
    return found


def _absolute(config: ActionConfig, action: Feature, own: Sequence[Part]) -> list[bool]:
    """Which parts stay absolute: choices, and those that the configuration names."""
    names = [name.lower() for name in action.names or [""] * action.size]
    places: set[int] = set()
    for entry in config.absolute:
        found = {place for place, name in enumerate(names) if entry.lower() in name}
        if not found and entry != ActionConfig().absolute[0]:
            found = {place_of(entry, action, "action.absolute")}
        places |= found
    return [part.kind == "choice" or bool(places & set(range(action.size)[part.places])) for part in own]


def _named(config: ActionConfig, action: Feature, states: Mapping[str, Feature]) -> bool:
    """Whether anchors are found by the names of dimensions."""
    if not config.anchors:
        if action.names is None:
            raise ValueError(
                f"action.representation={config.representation} finds anchors by names, and the action's dimensions "
                f"have none; give action.anchors, of the features {', '.join(states) or 'none: there is no vector'}"
            )
        return True
    whole = all(entry in states for entry in config.anchors)
    return whole and action.names is not None and all(states[entry].names is not None for entry in config.anchors)


def _by_name(
    own: Sequence[Part], stay: Sequence[bool], action: Feature, states: Mapping[str, Feature], config: ActionConfig
) -> list[Anchor | None]:
    """The parts of observations with the names of the action's parts."""
    assert action.names is not None
    searched = {name: states[name] for name in config.anchors} if config.anchors else states
    table: dict[tuple[str, ...], list[Anchor]] = {}
    for name, feature in searched.items():
        known = feature.names if len(feature.shape) == 1 else None
        for part in parts(feature) if known else []:
            table.setdefault((known or ())[part.places], []).append(Anchor(name, part))
    found: list[Anchor | None] = []
    for part, absolute in zip(own, stay, strict=True):
        names = action.names[part.places]
        fits = [] if absolute else table.get(names, [])
        if not absolute and len(fits) != 1:
            where = f"in {', '.join(each.feature for each in fits)}" if fits else f"in none of {', '.join(searched)}"
            raise ValueError(
                f"action.representation={config.representation}: the action's {' '.join(names)!r} is found {where}, "
                "expected in one feature of the observation; give action.anchors, or leave it in action.absolute"
            )
        found.append(fits[0] if fits else None)
    return found


def _by_place(entries: Sequence[str], states: Mapping[str, Feature]) -> list[Anchor | None]:
    """The parts of observations that the entries name, in order."""
    found: list[Anchor | None] = []
    for entry in entries:
        if entry == "none":
            found.append(None)
            continue
        name, dot, rest = entry.partition(".")
        if name not in states:
            raise ValueError(
                f"action.anchors: {entry!r} names no vector of the observation; choices: {', '.join(states)}, none"
            )
        every = parts(states[name])
        first, colon, end = rest.partition(":")
        begins, stops = 0, states[name].size
        if colon and first.isdecimal() and end.isdecimal():
            begins, stops = int(first), int(end)
        elif dot:
            begins = place_of(rest, states[name], "action.anchors")
            stops = next((part.places.stop for part in every if part.first == begins), -1)
        chosen = [part for part in every if begins <= part.first and part.places.stop <= stops]
        if not chosen or chosen[0].first != begins or chosen[-1].places.stop != stops:
            raise ValueError(f"action.anchors: {entry!r} begins or ends outside of {name!r} or within a rotation of it")
        found += [Anchor(name, part) for part in chosen]
    return found


def _require_fit(part: Part, anchor: Anchor, spec: Spec) -> None:
    """Raises `ValueError` where the part cannot be a difference to the anchor."""
    what = f"action dimension {part.first} ({part.kind}) and its anchor, {anchor.feature}.{anchor.part.first}"
    what += f" ({anchor.part.kind}),"
    if part.turns != anchor.part.turns:
        raise ValueError(f"{what} must both be rotations, or neither; declare them in action.rotations")
    if anchor.part.kind == "angle" and part.kind == "number":
        raise ValueError(f"{what} must both wrap; declare the action's in action.angles")
    units = spec.action.unit, spec.observation[anchor.feature].unit
    if all(units) and units[0] != units[1]:
        raise ValueError(
            f"{what} have the units {units[0]!r} and {units[1]!r}, whose difference means nothing; "
            "take action.representation=absolute"
        )
