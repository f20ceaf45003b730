"""Experts, and the pages of this package: what a plan says, and that it does the task."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import envs
from envs.web import WebConfig
from envs.web.experts import EXPERTS, expert_of
from envs.web.experts.moves import PLAN, actions, click, drag, enter, press, span
from envs.web.experts.screen import Element, Screen
from envs.web.tasks import own_tasks
from flowhand.contracts.screen.fields import ACTIONS, FIELDS, KEYS, PIXEL_FIELDS
from flowhand.evaluation.rollout import rollout
from tests.envs.web.browsers import require_browser

SAID = 'Enter the username "vanda" and the password "x7,K" into 12 Oak Street, Riverton (90210).'
WORDS = ["Enter", "the", "username", "vanda", "and", "the", "password", "x7,K", "into", "12", "Oak", "Street"]
WORDS += ["Riverton", "90210"]


def element(row: int, x: float = 0.5, y: float = 0.25, **more) -> Element:
    told = {"tag": "button", "text": "", "value": "", "label": "", "name": "", "checked": False, "acted": False}
    return Element(row=row, x=x, y=y, width=0.2, height=0.1, aim=(x, y), **{**told, **more})


@pytest.mark.parametrize(
    ("text", "expected"),
    [("vanda", (3, 3)), ("x7,K", (7, 7)), ("12 Oak Street", (9, 11)), ("the", (1, 1)), ("the password", (5, 6))],
)
def test_a_span_is_the_first_that_says_the_text(text, expected):
    assert span(WORDS, text) == expected


def test_a_text_that_is_not_said_is_no_span():
    with pytest.raises(ValueError, match=r"the instruction does not say 'Oak Lane'"):
        span(WORDS, "Oak Lane")


def test_a_plan_points_at_rows_and_words():
    screen = Screen(SAID, WORDS, [])
    field, box = element(7), element(9, x=0.8)
    plan = actions([enter(screen, field, "12 Oak Street"), drag(field, box, dy=-0.5), *press(box, "ArrowLeft", 2)])
    assert plan.shape == (PLAN, len(FIELDS))
    assert plan.dtype == np.float32
    kinds = [ACTIONS[int(row[0])] for row in plan]
    assert kinds == ["type", "drag", "key", "key", *["stop"] * (PLAN - 4)]
    read = [dict(zip(FIELDS, row, strict=True)) for row in plan]
    assert (read[0]["element"], read[0]["first"], read[0]["last"]) == (7, 9, 11)
    assert (read[1]["element"], read[1]["target"], read[1]["dy"]) == (7, 9, -0.5)
    assert (read[2]["element"], KEYS[int(read[2]["key"])]) == (9, "ArrowLeft")
    assert not plan[4:].any()


def test_the_same_plan_at_places():
    field, box = element(7), element(9, x=0.75)
    plan = actions([click(field, dx=0.125), drag(field, box, dx=0.25, dy=-0.5)], pixels=True)
    read = [dict(zip(PIXEL_FIELDS, row, strict=True)) for row in plan]
    assert (read[0]["x"], read[0]["y"]) == (0.625, 0.25)
    assert [read[1][name] for name in ("x", "y", "x2", "y2")] == [0.5, 0.25, 1.0, -0.25]


def test_a_covered_middle_is_avoided_at_places():
    covered = replace(element(7), aim=(0.4375, 0.25))
    plan = actions([click(covered)], pixels=True)
    assert plan[0, PIXEL_FIELDS.index("x")] == 0.4375


def test_what_does_not_fit_is_left_to_the_next_look():
    plan = actions([click(element(row)) for row in range(PLAN + 3)])
    assert plan[:, FIELDS.index("element")].tolist() == list(range(PLAN))


def test_an_expert_that_misses_an_element_knows_no_way():
    seen = {"instruction": "Click button ONE.", "words": [], "elements": [], "hidden": None}
    expert = expert_of("click-test-2", 160, False)
    assert expert is not None
    assert expert(seen).shape == (0, len(FIELDS))
    assert expert_of("guess-number", 160, False) is None


@pytest.fixture(scope="module")
def _browser():
    require_browser()


@pytest.mark.usefixtures("_browser")
@pytest.mark.parametrize("task", ["shop", "settings", "any-order-6", "login-option", "text-checkboxes"])
def test_the_pages_of_this_package_are_done(task):
    seeds = [0, 1_000_000]  # of which the second says it in other words
    assert all(record.success for record in rollout(partial(envs.make, WebConfig(task=task)), "expert", seeds))


@pytest.mark.usefixtures("_browser")
@pytest.mark.parametrize("task", ["count-sides", "drag-box"])
def test_tasks_are_done_at_places(task):
    make = partial(envs.make, WebConfig(task=task, observes="pixels"))
    assert rollout(make, "expert", [1_000_001])[0].success


@pytest.mark.usefixtures("_browser")
def test_an_episode_of_our_pages_follows_from_its_seed():
    with closing(envs.make(WebConfig(task="shop"))) as env:
        first, _ = env.reset(seed=3)
        said = env.task_text
        env.reset(seed=4)
        other = env.task_text
        again, _ = env.reset(seed=3)
        assert env.task_text == said != other
        for name, values in first.items():
            np.testing.assert_array_equal(values, again[name])


@pytest.mark.usefixtures("_browser")
@pytest.mark.parametrize(
    ("choice", "failure"),
    [("product", "ordered a wrong item"), ("size", "ordered a wrong size"), ("number", "ordered a wrong number")],
)
def test_the_shop_tells_what_was_wrong(choice, failure):
    with closing(envs.make(WebConfig(task="shop"))) as env:
        info = env.reset(seed=5)[1]
        for _ in range(20):
            seen = info["expert_observation"]
            wanted = seen["hidden"]["wanted"]  # is made wrong for the expert
            if choice == "product":
                text = {each["tag"]: each["text"] for each in seen["elements"]}
                wanted["name"] = text.get("a") or text.get("h1") or text["header"]
            elif choice == "size":
                wanted["size"] = "M" if wanted["size"] != "M" else "S"
            else:
                wanted["number"] = wanted["number"] % 5 + 1
            assert env.expert is not None
            *_, ended, _, info = env.step(env.expert(seen)[0])
            if ended:
                break
        assert (info["success"], info["failure"]) == (False, failure)


@pytest.mark.usefixtures("_browser")
def test_a_wrong_mark_ends_the_episode():
    with closing(envs.make(WebConfig(task="any-order-3"))) as env:
        seen = env.reset(seed=0)[1]["expert_observation"]
        other = next(each["row"] for each in seen["elements"] if each["text"] not in seen["instruction"])
        *_, ended, _, info = env.step(np.array([1, other, 0, 0, 0, 0, 0, 0], np.float32))
        assert ended
        assert info["failure"] == "marked a wrong item"


@pytest.mark.slow
@pytest.mark.usefixtures("_browser")
@pytest.mark.parametrize("task", sorted(EXPERTS))
def test_every_expert_does_its_task(task):
    records = rollout(partial(envs.make, WebConfig(task=task)), "expert", range(1_000_000, 1_000_005))
    assert sum(record.success for record in records) >= 4


def test_every_page_of_ours_has_an_expert():
    assert set(own_tasks()) <= set(EXPERTS)
