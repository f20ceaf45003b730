"""What an expert sees of a screen, what it can do there, and how a plan becomes actions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flowhand.contracts.screen.fields import ACTIONS, FIELDS, KEYS, PIXEL_FIELDS

from .screen import Element, Screen

PLAN = 12  # actions of a plan, the rest of which is "stop"
ENDS = "\"'`.,:;()[]?!"  # of words, which say nothing


class Move(NamedTuple):
    """One action, in terms of elements."""

    action: str
    element: Element
    target: Element | None = None
    span: tuple[int, int] = (0, 0)  # first and last word
    dx: float = 0.0  # widths of the screen
    dy: float = 0.0
    key: str = KEYS[0]


def click(element: Element, dx: float = 0.0, dy: float = 0.0) -> Move:
    """Click in the middle of an element, or so far from it, in widths of the screen."""
    return Move("click", element, dx=dx, dy=dy)


def enter(screen: Screen, element: Element, text: str) -> Move:
    """Type a part of the instruction into a field."""
    return Move("type", element, span=span(screen.words, text))


def press(element: Element, key: str, times: int = 1) -> list[Move]:
    """Press a key so many times."""
    return [Move("key", element, key=key)] * times


def drag(element: Element, target: Element, dx: float = 0.0, dy: float = 0.0) -> Move:
    """Drag an element to the middle of another, or so far from it, in widths of the screen."""
    return Move("drag", element, target, dx=dx, dy=dy)


def span(words: Sequence[str], text: str) -> tuple[int, int]:
    """First and last of the words that say the text, but for punctuation around them.

    Raises:
        ValueError: none do.
    """
    wanted = [word.strip(ENDS) for word in text.split()]
    bare = [word.strip(ENDS) for word in words]
    for first in range(len(words) - len(wanted) + 1):
        if bare[first : first + len(wanted)] == wanted:
            return first, first + len(wanted) - 1
    raise ValueError(f"the instruction does not say {text!r}: {' '.join(words)}")


def said(screen: Screen, pattern: str) -> tuple[str, ...]:
    """The groups of a regular expression that the instruction has.

    Raises:
        ValueError: it does not.
    """
    found = re.search(pattern, screen.instruction)
    if not found:
        raise ValueError(f"the instruction is not of the kind {pattern!r}: {screen.instruction}")
    return found.groups()


def seen(screen: Screen, *, tag: str = "", text: str | None = None, name: str = "", label: str = "") -> list[Element]:
    """The elements whose tag and name contain these, and that have this text and this label, where they are given."""
    return [
        element
        for element in screen.elements
        if tag in element.tag
        and name in element.name
        and (text is None or element.text == text)
        and (not label or element.label.rstrip(": ") == label)
    ]


def actions(plan: Sequence[Move], *, pixels: bool = False) -> np.ndarray:
    """The plan as actions (PLAN, A) of the contract; what goes beyond is left to the next look."""
    rows = np.zeros((PLAN, len(PIXEL_FIELDS if pixels else FIELDS)), np.float32)
    for row, move in zip(rows, plan, strict=False):
        values = _at_places(move) if pixels else _at_elements(move)
        names = PIXEL_FIELDS if pixels else FIELDS
        row[:] = [values.get(name, 0) for name in names]
    return rows


def _at_elements(move: Move) -> dict[str, float]:
    target = move.target.row if move.target else 0
    return _common(move) | {"element": move.element.row, "target": target, "dx": move.dx, "dy": move.dy}


def _at_places(move: Move) -> dict[str, float]:
    x, y = move.element.aim
    if move.action in ("drag", "copy"):
        assert move.target is not None
        end = {"x2": move.target.aim[0] + move.dx, "y2": move.target.aim[1] + move.dy}
        return _common(move) | {"x": x, "y": y} | end
    if move.action == "scroll":
        return _common(move) | {"x": x, "y": y, "x2": x + move.dx, "y2": y + move.dy}
    return _common(move) | {"x": x + move.dx, "y": y + move.dy}


def _common(move: Move) -> dict[str, float]:
    place = ACTIONS.index(move.action), KEYS.index(move.key)
    return {"action": place[0], "first": move.span[0], "last": move.span[1], "key": place[1]}
