"""What is on the screen as the rows of the contract: every element keeps its row as long as it is there."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from flowhand.contracts.screen.fields import ELEMENTS, LETTERS, NUMBERS, STRINGS, WORDS
from flowhand.contracts.world import Observation

from .words import Word

Element = dict[str, Any]  # as page/elements.js writes it, with its `row`


class Rows:
    """Which row each element has; one for each episode."""

    def __init__(self) -> None:
        self._row: dict[Hashable, int] = {}
        self._free = deque(range(ELEMENTS))

    def place(self, page: float, elements: Sequence[Element]) -> tuple[list[Element], int]:
        """Gives the elements their rows: those first that are in view, and of them those that can be acted on.

        Args:
            page: what tells the page from the others of the episode.
            elements: in their order on the page.

        Returns:
            The elements that have rows, each with its `row`, and how many have none.
        """
        chosen = sorted(elements, key=lambda each: (each["away"], not each["active"]))[:ELEMENTS]
        keys = {(page, each["id"]) for each in chosen}
        for gone in [key for key in self._row if key not in keys]:
            self._free.append(self._row.pop(gone))
        shown = {each["id"] for each in chosen}
        for each in elements:  # new ones in their order on the page
            if each["id"] in shown:
                key = page, each["id"]
                each["row"] = self._row[key] if key in self._row else self._row.setdefault(key, self._free.popleft())
        return [each for each in elements if each["id"] in shown], len(elements) - len(chosen)


def letters(text: str) -> np.ndarray:
    """The first bytes of a text in UTF-8, uint8 (LETTERS,), no character cut in two."""
    data = text.encode("utf-8", "replace")
    if len(data) > LETTERS:
        data = data[:LETTERS].decode("utf-8", "ignore").encode()
    return np.frombuffer(data.ljust(LETTERS, b"\0"), np.uint8)


def strings(element: Mapping[str, Any]) -> dict[str, str]:
    """The strings of an element, whole."""
    tag = f"{element['tag']}:{element['kind']}" if element["kind"] else element["tag"]
    return {"tag": tag, **{name: element[name] for name in STRINGS if name != "tag"}}


def numbers(element: Mapping[str, Any], acted: bool, width: int) -> dict[str, float]:
    """The numbers of an element: x and y are the middle of what is seen of it."""
    red, green, blue = (value / 255 for value in element["color"])
    return {
        "present": 1.0,
        "x": (element["left"] + element["width"] / 2) / width,
        "y": (element["top"] + element["height"] / 2) / width,
        "width": element["width"] / width,
        "height": element["height"] / width,
        "acted": float(acted),
        **{name: float(element[name]) for name in ("enabled", "checked", "focused", "scrollable")},
        "red": red,
        "green": green,
        "blue": blue,
    }


def element_arrays(elements: Sequence[Element], acted: set[int], width: int) -> Observation:
    """The elements as the contract has them; `acted`: the rows of those acted on."""
    text = np.zeros((ELEMENTS, len(STRINGS), LETTERS), np.uint8)
    values = np.zeros((ELEMENTS, len(NUMBERS)), np.float32)
    for each in elements:
        row = each["row"]
        text[row] = [letters(part) for part in strings(each).values()]
        told = numbers(each, row in acted, width)
        values[row] = [told[name] for name in NUMBERS]
    return {"element_strings": text, "elements": values}


def word_array(words: Sequence[Word]) -> np.ndarray:
    """The words as the contract has them, uint8 (WORDS, LETTERS)."""
    array = np.zeros((WORDS, LETTERS), np.uint8)
    for row, word in enumerate(words[:WORDS]):
        array[row] = letters(word.text)
    return array
