"""Sampled plans drawn over the screen that they were made for, and how a plan forms from step to step."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from xml.etree.ElementTree import Element

import numpy as np

from flowhand.contracts.screen.fields import ACTIONS, FIELDS, KEYS, NUMBERS, PIXEL_FIELDS, STRINGS

from .chunks import legend
from .page import paragraph, table
from .svg import h

ALIKE = 0.02  # widths of the screen by which plans are drawn apart, so that equal ones are seen


@dataclass
class PlanComparison:
    """Plans that the policy sampled at one held-out state, and what the expert would do there."""

    seed: int  # of the episode that the state comes from
    step: int  # actions before it
    instruction: str
    picture: np.ndarray  # (H, W, 3) uint8
    observation: Mapping[str, np.ndarray]  # the state's, each (*shape)
    words: list[str]  # of the instruction
    sampled: np.ndarray  # (S, T, A)
    expert: np.ndarray  # (T, A)
    forming: dict[int, np.ndarray]  # a plan (T, A) by the number of refinement steps, all from the same noise


def plans(comparisons: list[PlanComparison]) -> Iterator[Element]:
    """Each state with its screen, the fan of plans over it, and the plan in words as it forms."""
    text = "Where the actions of a plan act, in their order, until it stops to look again:"
    yield legend(text, [("key policy", "sampled"), ("key expert", "expert")])
    for each in comparisons:
        same = sum(_said(plan, each) == _said(each.expert, each) for plan in each.sampled)
        detail = h("small", f"{same} of {len(each.sampled)} sampled plans say what the expert's says")
        head = h("h3", f"Seed {each.seed}, after {each.step} actions: {each.instruction}", detail)
        rows = [
            [f"{steps} steps" if steps > 1 else "1 step", _said(plan, each)] for steps, plan in each.forming.items()
        ]
        forming = [table(["refinement", "plan from the same noise"], rows)] if rows else []
        expert = paragraph(f"The expert: {_said(each.expert, each)}.")
        yield h("div", head, h("div", _screen(each), h("div", expert, *forming, class_="beside"), class_="plots"))


def _screen(each: PlanComparison) -> Element:
    """The picture with the fan of plans, as SVG in which the screen is 1 wide."""
    height, width = each.picture.shape[:2]
    tall = height / width
    svg = h("svg", viewBox=f"0 0 320 {320 * tall:.0f}", role="img", aria_label="plans over the screen", class_="plot")
    picture = "data:image/png;base64," + base64.b64encode(_png(each.picture)).decode()
    svg.append(h("image", href=picture, x=0, y=0, width=320, height=f"{320 * tall:.0f}"))
    count = len(each.sampled)
    for number, plan in enumerate(each.sampled):
        apart = ALIKE * (number - (count - 1) / 2) / max(1, count - 1)
        _path(svg, _places(plan, each) + apart, "policy thin")
    _path(svg, _places(each.expert, each), "expert thick")
    return svg


def _path(svg: Element, places: np.ndarray, class_: str) -> None:
    """A line through places (n, 2), and a dot at each."""
    if not len(places):
        return
    svg.append(h("polyline", points=" ".join(f"{320 * x:.1f},{320 * y:.1f}" for x, y in places), class_=class_))
    for x, y in places:
        svg.append(h("circle", cx=f"{320 * x:.1f}", cy=f"{320 * y:.1f}", r=3, class_=class_.split()[0]))


def _until_stop(plan: np.ndarray, each: PlanComparison) -> list[dict[str, float]]:
    """The actions of a plan (T, A) before its first stop, each by the names of its fields."""
    names = FIELDS if "elements" in each.observation else PIXEL_FIELDS
    kinds = np.round(plan[:, 0])
    stops = np.flatnonzero(kinds == ACTIONS.index("stop"))
    return [dict(zip(names, row.tolist(), strict=True)) for row in plan[: stops[0] if len(stops) else len(plan)]]


def _places(plan: np.ndarray, each: PlanComparison) -> np.ndarray:
    """Where the actions of a plan act (n, 2), in widths of the screen; a drag has two places."""
    places = []
    for action in _until_stop(plan, each):
        kind = ACTIONS[round(action["action"])]
        if "elements" not in each.observation:
            places.append((action["x"], action["y"]))
            if kind == "drag":
                places.append((action["x2"], action["y2"]))
            continue
        shift = np.array([action["dx"], action["dy"]])
        place = _middle(each, action["element"])
        places.append(place + shift * (kind == "click"))
        if kind == "drag":
            places.append(_middle(each, action["target"]) + shift)
    return np.array(places, float).reshape(-1, 2)


def _middle(each: PlanComparison, row: float) -> np.ndarray:
    return each.observation["elements"][round(row), [NUMBERS.index("x"), NUMBERS.index("y")]]


def _said(plan: np.ndarray, each: PlanComparison) -> str:
    """A plan in words."""
    return ", ".join(_action(action, each) for action in _until_stop(plan, each)) or "look again"


def _action(action: Mapping[str, float], each: PlanComparison) -> str:
    kind = ACTIONS[round(action["action"])]
    if "elements" in each.observation:
        where = _named(each, action["element"])
        to = _named(each, action["target"])
    else:
        where = f"({action['x']:.2f}, {action['y']:.2f})"
        to = f"({action['x2']:.2f}, {action['y2']:.2f})"
    if kind == "type":
        first, last = round(action["first"]), round(action["last"])
        return f"type '{' '.join(each.words[first : max(first, last) + 1])}' into {where}"
    if kind in ("drag", "copy"):
        return f"{kind} {where} to {to}" if kind == "drag" else f"copy {to} into {where}"
    return f"press {KEYS[round(action['key'])]} in {where}" if kind == "key" else f"{kind} {where}"


def _named(each: PlanComparison, row: float) -> str:
    """The first string of an element that says something to a reader."""
    said = dict(zip(STRINGS, each.observation["element_strings"][round(row)], strict=True))
    words = [bytes(said[name]).rstrip(b"\0").decode("utf-8", "replace") for name in ("text", "label", "name", "tag")]
    return next((word for word in words if word), "nothing")


def _png(picture: np.ndarray) -> bytes:
    """A picture (H, W, 3) uint8 as a PNG file (W3C, Portable Network Graphics)."""
    height, width = picture.shape[:2]
    rows = np.concatenate([np.zeros((height, 1), np.uint8), picture.reshape(height, -1)], axis=1)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    ]
    chunks = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
