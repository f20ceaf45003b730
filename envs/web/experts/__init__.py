"""Scripted experts for pages: functions from what is on the screen to all that is left to do there.

A task's expert is a few lines (`miniwob`, `flight`, `own`). It has no memory, sees all of the elements with their whole
strings, and may read in the page what no element shows. Its plan points only at what is there now, and ends where the
page must be looked at again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from flowhand.contracts.screen.fields import FIELDS, PIXEL_FIELDS

from ..tasks import VARIANTS
from . import flight, miniwob, own
from .moves import Move, actions
from .screen import Screen, read


class Expert(NamedTuple):
    """How a task is done."""

    plan: Callable[[Screen], list[Move]]
    look: str = "null"  # JavaScript for what is read in the page beside the elements


EXPERTS = {
    "any-order": Expert(own.any_order),
    **dict.fromkeys(VARIANTS, Expert(own.any_order)),
    "book-flight-nodelay": Expert(flight.flight),
    "choose-list": Expert(miniwob.chosen, miniwob.SEVERAL),
    "click-button": Expert(miniwob.quoted_button),
    "click-button-sequence": Expert(miniwob.one_then_two),
    "click-checkboxes": Expert(miniwob.checkboxes),
    "click-checkboxes-large": Expert(miniwob.checkboxes),
    "click-checkboxes-transfer": Expert(miniwob.checkboxes),
    "click-collapsible-2-nodelay": Expert(miniwob.link_in_sections, miniwob.OPEN_SECTION),
    "click-dialog-2": Expert(miniwob.dialog_button),
    "click-link": Expert(miniwob.link),
    "click-option": Expert(miniwob.option),
    "click-scroll-list": Expert(miniwob.chosen, miniwob.SEVERAL),
    "click-tab-2-hard": Expert(miniwob.link_behind_tabs, miniwob.ACTIVE_TAB),
    "click-test-2": Expert(miniwob.one),
    "count-sides": Expert(miniwob.sides, miniwob.SIDES),
    "drag-box": Expert(miniwob.boxed),
    "drag-sort-numbers": Expert(miniwob.sort_numbers),
    "email-inbox-forward": Expert(miniwob.forwarded),
    "enter-date": Expert(miniwob.date),
    "enter-password": Expert(miniwob.password),
    "enter-text": Expert(miniwob.text),
    "login-option": Expert(own.login_then_option),
    "login-user": Expert(miniwob.login),
    "multi-orderings": Expert(miniwob.movies),
    "search-engine": Expert(miniwob.search_result, miniwob.RESULT_PAGE),
    "settings": Expert(own.settings, own.GOAL),
    "shop": Expert(own.shop, own.GOAL),
    "text-checkboxes": Expert(own.text_and_checkboxes),
    "use-autocomplete-nodelay": Expert(miniwob.completed),
    "use-slider": Expert(miniwob.slider, miniwob.SLIDER),
}


def look_of(task: str) -> str:
    """JavaScript for what the task's expert reads in the page; what cannot be read is null."""
    look = EXPERTS[task].look if task in EXPERTS else "null"
    return f"(() => {{ try {{ return {look}; }} catch {{ return null; }} }})()"


def expert_of(task: str, width: int, pixels: bool) -> Callable[[Any], np.ndarray] | None:
    """What gives the plan for `info["expert_observation"]` of a task, float32 (T, A); None where there is no expert.

    A plan (0, A) says that the expert knows no way on from there.

    Args:
        task: its name.
        width: of the screen, pixels.
        pixels: whether actions are at places instead of at elements.
    """
    return partial(_plan, EXPERTS[task].plan, width, pixels) if task in EXPERTS else None


def _plan(plan: Callable[[Screen], list[Move]], width: int, pixels: bool, seen: Mapping[str, Any]) -> np.ndarray:
    try:
        moves = plan(read(seen, width))
    except (IndexError, KeyError, StopIteration, ValueError):  # an element or a word that the expert needs is not there
        return np.zeros((0, len(PIXEL_FIELDS if pixels else FIELDS)), np.float32)
    return actions(moves, pixels=pixels)


__all__ = ["EXPERTS", "Expert", "expert_of", "look_of"]
