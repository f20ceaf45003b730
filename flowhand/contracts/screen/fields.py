"""What an agent sees of a screen and does there: rows of elements, words of the instruction, fields of an action.

An element keeps its row as long as it is on the screen, and a row that becomes free is taken again only when no other
is free: so a plan made of several actions can point at what it saw. `stale` tells when it no longer can.

A plan is a chunk of actions. Its actions after the first `stop` mean nothing: "stop" is to look again.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..features import Feature

ELEMENTS, WORDS, LETTERS = 64, 40, 24  # rows of elements and of words; bytes of each string, zero where it has ended
# Strings of an element, UTF-8: the tag with its type or role, its visible text, its value, the nearest text that
# labels it (or its placeholder), and its id with its classes.
STRINGS = ("tag", "text", "value", "label", "name")
# Numbers of an element. Places and sizes in widths of the screen, colours from 0 to 1, the rest 0 or 1.
NUMBERS = (
    "present", "x", "y", "width", "height", "enabled", "checked", "focused", "scrollable", "acted",
    "red", "green", "blue",
)  # fmt: skip
# What an action can be. "copy" types the text of one element into another; "type" a span of the instruction.
ACTIONS = ("stop", "click", "type", "copy", "drag", "scroll", "key")
KEYS = ("Enter", "Tab", "Escape", "Backspace", "ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "Control+A", "Delete")
# The fields of an action: what it is; the element acted on; a second one, from which text is copied or to which is
# dragged; first and last word of the span that is typed; from the middle of the element (click, scroll: how far) or of
# the second one (drag), in widths of the screen; the key.
FIELDS = ("action", "element", "target", "first", "last", "dx", "dy", "key")
_USES = {
    "stop": (),
    "click": ("element", "dx", "dy"),
    "type": ("element", "first", "last"),
    "copy": ("element", "target"),
    "drag": ("element", "target", "dx", "dy"),
    "scroll": ("element", "dx", "dy"),
    "key": ("element", "key"),
}
# The same where there are no elements: places in widths of the screen, from its upper left corner.
PIXEL_FIELDS = ("action", "x", "y", "x2", "y2", "first", "last", "key")
_PIXEL_USES = {
    "stop": (),
    "click": ("x", "y"),
    "type": ("x", "y", "first", "last"),
    "copy": ("x", "y", "x2", "y2"),
    "drag": ("x", "y", "x2", "y2"),
    "scroll": ("x", "y", "x2", "y2"),
    "key": ("x", "y", "key"),
}
STOP = ACTIONS.index("stop")


def observation_features() -> dict[str, Feature]:
    """Strings and numbers of each element, and the words of the instruction."""
    return {
        "element_strings": Feature((ELEMENTS, len(STRINGS), LETTERS), "uint8", "", kind="elements"),
        "elements": Feature((ELEMENTS, len(NUMBERS)), "float32", "", kind="elements", names=NUMBERS),
        "words": Feature((WORDS, LETTERS), "uint8", "", kind="elements"),
    }


def action_feature() -> Feature:
    """An action that points at elements and words."""
    choices = {"action": len(ACTIONS), "element": ELEMENTS, "target": ELEMENTS, "first": WORDS, "last": WORDS}
    choices["key"] = len(KEYS)
    points = {"element": "elements", "target": "elements", "first": "words", "last": "words"}
    return _action(FIELDS, choices, points, _USES)


def pixel_action_feature() -> Feature:
    """An action at places of the screen; typed text is still a span of the words."""
    choices = {"action": len(ACTIONS), "first": WORDS, "last": WORDS, "key": len(KEYS)}
    return _action(PIXEL_FIELDS, choices, {"first": "words", "last": "words"}, _PIXEL_USES)


def _action(
    names: tuple[str, ...], choices: Mapping[str, int], points: Mapping[str, str], uses: Mapping[str, tuple[str, ...]]
) -> Feature:
    place = {name: i for i, name in enumerate(names)}
    return Feature(
        (len(names),),
        "float32",
        "",
        choices=tuple(choices.get(name, 0) for name in names),
        kind="action",
        names=names,
        pointers=tuple((place[name], where) for name, where in points.items()),
        uses=tuple(tuple(place[name] for name in uses[action]) for action in ACTIONS),
    )


def stale(action: np.ndarray, seen: Mapping[str, np.ndarray], now: Mapping[str, np.ndarray]) -> bool:
    """Whether an action (len(FIELDS),) that was planned on what was seen points at what is no longer there.

    An element is the same while its row is present and has the same tag, text and id; its value and place may change.
    """
    if not int(action[0]) or "elements" not in seen:
        return False
    used = _USES[ACTIONS[int(action[0])]]
    present, same = NUMBERS.index("present"), [STRINGS.index(name) for name in ("tag", "text", "name")]
    for name in ("element", "target"):
        if name in used:
            row = int(action[FIELDS.index(name)])
            before, after = (each["element_strings"][row, same] for each in (seen, now))
            if not now["elements"][row, present] or not np.array_equal(before, after):
                return True
    return False
