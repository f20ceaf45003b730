"""What an expert sees of a screen: all of the elements and the instruction, strings whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Element:
    """A visible element. Places and sizes are in widths of the screen."""

    row: int  # of the observation
    tag: str  # with its type or role: "input:checkbox"
    text: str
    value: str
    label: str
    name: str  # id and classes
    x: float  # of the middle
    y: float
    width: float
    height: float
    aim: tuple[float, float]  # where it is clicked: in the middle, or where that is covered at a place that is not
    checked: bool
    acted: bool  # whether it was acted on in this episode


@dataclass(frozen=True)
class Screen:
    """What is there to act on, and to be done."""

    instruction: str
    words: Sequence[str]  # of the instruction, as the observation has them
    elements: Sequence[Element]  # in their order on the page
    hidden: Any = None  # what the expert reads in the page beside the elements


def read(seen: Mapping[str, Any], width: int) -> Screen:
    """The screen in `info["expert_observation"]` of the world, which is `width` pixels wide."""
    words = [word["text"] for word in seen["words"]]
    return Screen(seen["instruction"], words, [_element(each, width) for each in seen["elements"]], seen["hidden"])


def _element(each: Mapping[str, Any], width: int) -> Element:
    return Element(
        row=each["row"],
        tag=f"{each['tag']}:{each['kind']}" if each["kind"] else each["tag"],
        text=each["text"],
        value=each["value"],
        label=each["label"],
        name=each["name"],
        x=(each["left"] + each["width"] / 2) / width,
        y=(each["top"] + each["height"] / 2) / width,
        width=each["width"] / width,
        height=each["height"] / width,
        aim=(each["aim"][0] / width, each["aim"][1] / width),
        checked=each["checked"],
        acted=each["acted"],
    )
