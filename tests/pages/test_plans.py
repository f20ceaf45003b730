"""Plans over a screen: where they act, what they say, and that their picture is whole."""

from __future__ import annotations

import base64
import io
import re
from xml.etree.ElementTree import tostring

import numpy as np
import pytest

from flowhand.contracts.screen.fields import (
    ACTIONS,
    ELEMENTS,
    FIELDS,
    KEYS,
    LETTERS,
    NUMBERS,
    PIXEL_FIELDS,
    STRINGS,
    WORDS,
)
from flowhand.evaluation.records import EpisodeRecord
from flowhand.pages.evaluation import ReportData, render_report
from flowhand.pages.plans import PlanComparison, plans

PICTURE = np.random.default_rng(0).integers(0, 256, (42, 32, 3), dtype=np.uint8)


def observation() -> dict[str, np.ndarray]:
    """Two elements: a field "Name" at (0.5, 0.25), and a button "Send" at (0.25, 0.75)."""
    numbers = np.zeros((ELEMENTS, len(NUMBERS)), np.float32)
    strings = np.zeros((ELEMENTS, len(STRINGS), LETTERS), np.uint8)
    for row, (x, y, which, text) in enumerate([(0.5, 0.25, "label", b"Name"), (0.25, 0.75, "text", b"Send")]):
        numbers[row, :3] = 1.0, x, y
        strings[row, STRINGS.index(which), : len(text)] = list(text)
    return {"elements": numbers, "element_strings": strings, "words": np.zeros((WORDS, LETTERS), np.uint8)}


def plan(names, *actions) -> np.ndarray:
    rows = np.zeros((4, len(names)), np.float32)
    for row, (kind, fields) in zip(rows, actions, strict=False):
        row[0] = ACTIONS.index(kind)
        for name, value in fields.items():
            row[names.index(name)] = value
    return rows


TYPED = ("type", {"element": 0, "first": 1, "last": 2})
SENT = ("click", {"element": 1, "dx": 0.125})


def comparison(sampled: list[np.ndarray], expert: np.ndarray, seen: dict[str, np.ndarray]) -> PlanComparison:
    words = ["Send", "Ida", "Costa"]
    return PlanComparison(3, 2, "Send Ida Costa.", PICTURE, seen, words, np.stack(sampled), expert, {1: sampled[0]})


def written(each: PlanComparison) -> str:
    return "".join(tostring(part, encoding="unicode") for part in plans([each]))


def test_a_plan_goes_from_place_to_place_and_says_what_it_does():
    right, wrong = plan(FIELDS, TYPED, SENT), plan(FIELDS, SENT)
    text = written(comparison([right, wrong, wrong], right, observation()))
    assert "1 of 3 sampled plans say what the expert's says" in text
    assert "type 'Ida Costa' into Name, click Send" in text
    # The expert's, with the screen 320 wide: the middle of the field, and an eighth to the right of the button's.
    assert 'points="160.0,80.0 120.0,240.0"' in text


def test_the_picture_is_whole():
    from PIL import Image

    text = written(comparison([plan(FIELDS, SENT)], plan(FIELDS, SENT), observation()))
    found = re.search(r"data:image/png;base64,([\w+/=]+)", text)
    assert found is not None
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1])))), PICTURE)


def test_a_plan_at_places():
    dragged = ("drag", {"x": 0.25, "y": 0.5, "x2": 0.75, "y2": 1.0})
    expert = plan(PIXEL_FIELDS, dragged, ("key", {"x": 0.5, "y": 0.5, "key": KEYS.index("Tab")}))
    text = written(comparison([expert], expert, {"words": np.zeros((WORDS, LETTERS), np.uint8)}))
    assert "drag (0.25, 0.50) to (0.75, 1.00), press Tab in (0.50, 0.50)" in text
    assert 'points="80.0,160.0 240.0,320.0 160.0,160.0"' in text


def test_a_plan_that_stops_at_once_looks_again():
    stops = plan(FIELDS)
    assert "The expert: look again." in written(comparison([stops], stops, observation()))


def record(seed: int, failure: str) -> EpisodeRecord:
    won = not failure
    return EpisodeRecord("shop", seed, won, won, failure, "", 3 if won else None, 3, 0.0, 0.1)


@pytest.mark.parametrize(
    ("failures", "rows"), [(["b", "a", "b", ""], ["b", "a"]), (["a", "a"], []), (["", ""], [])], ids=str
)
def test_failures_are_counted_by_kind(failures, rows):
    page = render_report(ReportData("t", "shop", [record(seed, kind) for seed, kind in enumerate(failures)]))
    part = page.partition("kind of failure")[2].partition("</table>")[0]
    assert re.findall(r"<td[^>]*>(a|b)</td>", part) == rows
