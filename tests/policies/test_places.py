"""Numbers in strings and places among one's like: against Python's reading and counting."""

import random
import re

import numpy as np
import pytest
import torch

from flowhand.contracts.screen.fields import NUMBERS, STRINGS
from policies.encoders.places import NEAR, NUMBER_FEATURES, ORDERS, PLACES, Numbers, away, equal, near, numbers, places
from tests.policies.screens import text

READ = {
    "": None,
    "Okay": None,
    "7": (7, 0),
    "-7": (-7, 0),
    "Book flight for $785": (785, 0),
    "5h 12m": (5, 12),
    "10/25/2016": (10, 25),
    "a-3": (3, 0),
    "at -3 C": (-3, 0),
    "$12.50": (12.5, 0),
    "$1,200": (1200, 0),
    "$1,200.5 or 3": (1200.5, 0),
    "1,20": (1, 20),
    "007": (7, 0),
    "0": (0, 0),
    "9999999": (9999999, 0),
    "3 . 4": (3, 4),
    "v2beta10": (2, 10),
    "December": (12, 0),
    "jan": (1, 0),
    "May": (5, 0),
    "Mayor": None,
}


def read(*strings: str) -> Numbers:
    return numbers(torch.from_numpy(text(*strings)))


@pytest.mark.parametrize("string", READ)
def test_a_number_is_read_as_a_person_reads_it(string):
    found, expected = read(string), READ[string]
    assert bool(found.there[0]) == (expected is not None)
    if expected is not None:
        assert (float(found.first[0]), float(found.second[0])) == pytest.approx(expected, rel=1e-6)
    else:
        assert not found.features.any()
        assert found.features.shape == (1, NUMBER_FEATURES)


def test_random_strings_of_digits_and_letters_give_what_a_regular_expression_finds():
    chance = random.Random(0)
    strings = ["".join(chance.choice("0123456789ab /:") for _ in range(chance.randint(1, 20))) for _ in range(500)]
    strings = [s for s in strings if all(len(run) <= 7 for run in re.findall(r"\d+", s))]
    found = read(*strings)
    for i, string in enumerate(strings):
        runs = [int(run) for run in re.findall(r"\d+", string)] + [0, 0]
        assert [float(found.first[i]), float(found.second[i])] == runs[:2], string
        assert bool(found.there[i]) == bool(re.search(r"\d", string))


def test_strings_with_numbers_are_put_in_order_by_both():
    strings = ["-5", "-4", "0", "1h 50m", "2h 5m", "2h 30m", "2.5", "3", "$785", "$1,102"]
    assert read(*strings).rank.diff().gt(0).all()


def test_numbers_are_told_equal_and_how_far_apart():
    elements, words = (Numbers(*(field[None] for field in read(*each))) for each in (["25", "x", "10"], ["10/25", "a"]))
    assert equal(elements, words)[0].tolist() == [[[0, 1], [0, 0]], [[0, 0], [0, 0]], [[1, 0], [0, 0]]]
    assert away(elements, words)[0].tolist() == [pytest.approx([-1, -1, -0.3, -0.03]), [0] * 4, [0] * 4]


def counted(rows: list[dict], one: dict) -> list[int | None]:
    """Places of an element, counted in Python."""
    like = [r for r in rows if r["there"] and r["tag"] == one["tag"] and r["named"] == one["named"]]

    def before(a: dict, first: str, then: str) -> bool:
        gap = one[first] - a[first]
        return gap > NEAR or (abs(gap) <= NEAR and one[then] - a[then] > NEAR)

    valued = [
        r for r in rows if r["there"] and r["value"] is not None and (r["tag"], r["name"]) == (one["tag"], one["name"])
    ]
    smaller = None if one["value"] is None else sum(r["value"] < one["value"] for r in valued)
    named = [r for r in rows if r["there"] and (r["tag"], r["name"]) == (one["tag"], one["name"])]
    by_rows = [sum(before(r, "y", "x") for r in each) for each in (like, named)]
    return [by_rows[0], sum(before(r, "x", "y") for r in like), by_rows[1], smaller]


def test_places_are_those_counted_in_python():
    chance = random.Random(1)
    rows = [
        {
            "tag": chance.choice(["li", "button"]),
            "name": chance.choice(["a", "b c"]),
            "value": chance.choice([None, *range(6)]),
            "named": chance.random() < 0.5,
            "x": chance.randrange(4) / 10,
            "y": chance.randrange(8) / 10,
            "there": chance.random() < 0.8,
        }
        for _ in range(40)
    ]
    strings = np.stack([text(row["tag"], row["name"]) for row in rows])
    value = read(*("" if row["value"] is None or not row["there"] else str(row["value"]) for row in rows))
    column = lambda *keys: torch.tensor([[row[key] for key in keys] for row in rows])[None]  # noqa: E731
    found = places(
        torch.from_numpy(strings)[None],
        column("x", "y"),
        column("there")[..., 0],
        column("named")[..., 0],
        Numbers(*(field[None] for field in value)),
    )[0].unflatten(-1, (ORDERS, PLACES))
    for row, got in zip(rows, found, strict=True):
        if not row["there"]:
            assert not got.any()
            continue
        for place, expected in zip(got, counted(rows, row), strict=True):
            assert place.sum() == (expected is not None)
            assert expected is None or place.argmax() == min(expected, PLACES - 1)


def test_beside_is_one_and_far_away_nothing():
    found = near(torch.tensor([[[0.1, 0.2], [0.9, 0.2], [0.1, 0.5]]]))[0]
    assert found[0, 0].tolist() == [1, 1, 1]
    assert found[0, 1].tolist() == pytest.approx([1, 1, 0], abs=1e-6)  # as high, and far to the right
    assert found[0, 2].tolist() == pytest.approx([np.exp(-9), np.exp(-1), np.exp(-2.25)], abs=1e-6)
    assert torch.equal(found, found.transpose(0, 1))


def test_the_screen_has_the_strings_and_numbers_that_are_read():
    assert {"tag", "text", "value", "name"} <= set(STRINGS)
    assert {"x", "y"} <= set(NUMBERS)
