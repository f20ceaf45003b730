"""Experts for the pages of this package."""

from __future__ import annotations

import random
import re

from ..screen import Screen
from .miniwob import check, checkboxes, fill, login, option, submit
from .moves import Move, click, said, seen

Plan = list[Move]


def any_order(screen: Screen) -> Plan:
    """Mark what is named, in an order that says nothing: every one is as good, and each look draws anew."""
    (names,) = said(screen, r"Mark (.*)\.")
    left = [each for name in names.split(", ") for each in seen(screen, text=name) if "marked" not in each.name]
    # Drawn from what is seen, so that an episode follows from its seed.
    return [click(each) for each in random.Random(f"{names} {len(left)}").sample(left, len(left))]


def login_then_option(screen: Screen) -> Plan:
    """login-option."""
    return login(screen) if seen(screen, name="username") else option(screen)


def text_and_checkboxes(screen: Screen) -> Plan:
    """text-checkboxes."""
    (wanted,) = said(screen, r'"(.*)"')
    return fill(screen, {seen(screen, name="tt")[0]: wanted}) + checkboxes(screen)
