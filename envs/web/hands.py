"""An action of the contract, done on a page with mouse and keyboard.

Done by script, for a headless browser shows no windows of its own: a click on an option chooses it, a click on a
closed list gives it the focus, typing into a list or a native field for dates or times sets its value, and a scroll
moves what scrolls. What is out of view in a part that scrolls is scrolled to before it is acted on, at its middle.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flowhand.contracts.screen.fields import ACTIONS, FIELDS, KEYS, PIXEL_FIELDS

from .rows import Element
from .tab import Tab
from .words import Word, span

Place = tuple[float, float]


@dataclass(frozen=True)
class Screen:
    """What an action refers to.

    Attributes:
        elements: those that have rows.
        instruction: the text of which words are typed.
        words: of the instruction.
        size: width and height, pixels.
    """

    elements: Sequence[Element]
    instruction: str
    words: list[Word]
    size: tuple[int, int]

    def element(self, row: int) -> Element | None:
        """The element of a row."""
        return next((each for each in self.elements if each["row"] == row), None)

    def inside(self, x: float, y: float) -> Place:
        """The nearest place on the screen."""
        return min(max(x, 0.0), self.size[0] - 1.0), min(max(y, 0.0), self.size[1] - 1.0)


@dataclass(frozen=True)
class Act:
    """An action as it is meant.

    Attributes:
        kind: one of `ACTIONS`.
        element: acted on; None: whatever is at `place`.
        place: where, pixels.
        end: where a drag ends, pixels; how far a scroll goes.
        text: typed; None: that of what lies at `end`.
        key: pressed, one of `KEYS`.
        problem: why it cannot be done; empty if it can.
    """

    kind: str
    element: Element | None = None
    place: Place = (0.0, 0.0)
    end: Place = (0.0, 0.0)
    text: str | None = ""
    key: str = ""
    problem: str = ""


def middle(element: Element) -> Place:
    """The middle of what is seen of an element, or where that is covered a place that is not; pixels."""
    return element["aim"][0], element["aim"][1]


def at_elements(action: np.ndarray, screen: Screen) -> Act:
    """What an action with the contract's `FIELDS` means; numbers of choices are rounded."""
    field: dict[str, float] = dict(zip(FIELDS, action.tolist(), strict=True))
    kind = ACTIONS[_choice(field["action"], len(ACTIONS))]
    if kind == "stop":
        return Act(kind)
    row, other_row = round(field["element"]), round(field["target"])
    element, other = screen.element(row), screen.element(other_row)
    if element is None:
        return Act(kind, problem=f"row {row} has no element")
    if other is None and kind in ("copy", "drag"):
        return Act(kind, element, problem=f"row {other_row} has no element")
    x, y = middle(element)
    dx, dy = field["dx"] * screen.size[0], field["dy"] * screen.size[0]
    if kind == "click":
        return Act(kind, element, screen.inside(x + dx, y + dy))
    if kind == "scroll":
        return Act(kind, element, (x, y), (dx, dy))
    if kind == "drag":
        end = middle(other) if other else (x, y)
        return Act(kind, element, (x, y), screen.inside(end[0] + dx, end[1] + dy))
    if kind == "copy":
        text = other["value"] or other["text"] if other else ""
        return Act(kind, element, (x, y), text=text)
    if kind == "type":
        return _typed(kind, element, (x, y), field, screen)
    return Act(kind, element, (x, y), key=KEYS[_choice(field["key"], len(KEYS))])


def at_pixels(action: np.ndarray, screen: Screen) -> Act:
    """What an action with the contract's `PIXEL_FIELDS` means."""
    field: dict[str, float] = dict(zip(PIXEL_FIELDS, action.tolist(), strict=True))
    kind, width = ACTIONS[_choice(field["action"], len(ACTIONS))], screen.size[0]
    if kind == "stop":
        return Act(kind)
    place = screen.inside(field["x"] * width, field["y"] * width)
    end = screen.inside(field["x2"] * width, field["y2"] * width)
    if kind == "scroll":
        return Act(kind, None, place, (end[0] - place[0], end[1] - place[1]))
    if kind == "type":
        return _typed(kind, None, place, field, screen)
    if kind == "key":
        return Act(kind, None, place, key=KEYS[_choice(field["key"], len(KEYS))])
    return Act(kind, None, place, end, text=None if kind == "copy" else "")


def _typed(kind: str, element: Element | None, place: Place, field: dict[str, float], screen: Screen) -> Act:
    first, last = round(field["first"]), round(field["last"])
    text = span(screen.instruction, screen.words, first, last)
    if text is None:
        return Act(kind, element, place, problem=f"the instruction has no word {first}")
    return Act(kind, element, place, text=text)


def _choice(value: float, count: int) -> int:
    """The nearest of the choices 0 to count - 1."""
    return min(max(round(value), 0), count - 1)


def do(act: Act, tab: Tab) -> str:
    """Does it; what kept it from being done, or an empty string."""
    if act.kind == "stop" or act.problem:
        return act.problem
    if act.element is not None and act.element["away"] and act.kind != "scroll":
        x, y = tab.ask(_js("reveal", _id(act)))
        act = replace(act, place=(x, y))
    return _DOING[act.kind](act, tab)


def _js(name: str, *given: Any) -> str:
    return f"__flowhand.{name}({', '.join(json.dumps(each) for each in given)})"


def _id(act: Act) -> int | None:
    return None if act.element is None else act.element["id"]


def _click(act: Act, tab: Tab) -> str:
    if act.element is not None and act.element["tag"] == "option":
        return "" if tab.ask(_js("choose", _id(act))) else "the option cannot be chosen"
    if tab.ask(_js("under", *act.place))["native"]:
        tab.ask(_js("focusAt", *act.place))
    else:
        tab.click(*act.place)
    return ""


def _type(act: Act, tab: Tab) -> str:
    text = act.text
    if text is None:
        text = tab.ask(_js("under", *act.end))["text"]
    how = ""
    if act.element is not None:
        how = tab.ask(_js("prepare", _id(act), text))
    if how not in ("done", "keys", "forbidden"):
        if problem := _click(act, tab):
            return problem
        how = tab.ask(_js("prepare", _id(act), text))
    if how == "keys":
        tab.write(text)
    return "" if how in ("done", "keys", "forbidden") else how  # what is forbidden, the page's guard reports


def _drag(act: Act, tab: Tab) -> str:
    tab.drag(act.place, act.end)
    return ""


def _scroll(act: Act, tab: Tab) -> str:
    moved = tab.ask(_js("scroll", _id(act), *act.place, *act.end))
    return "" if moved else "nothing there scrolls so"


def _key(act: Act, tab: Tab) -> str:
    if act.element is not None:
        if not tab.ask(_js("focus", _id(act))):
            return "the element cannot have the focus"
    elif not tab.ask(_js("under", *act.place))["focused"]:
        _click(act, tab)
    tab.press(act.key)
    return ""


_DOING = {"click": _click, "type": _type, "copy": _type, "drag": _drag, "scroll": _scroll, "key": _key}
