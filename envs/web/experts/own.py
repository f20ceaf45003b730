"""Experts for the pages of this package."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

from .miniwob import checkboxes, fill, login, option
from .moves import Move, click, press, said, seen
from .screen import Screen

Plan = list[Move]
GOAL = "flowhand.goal"  # what the page wants, beside the instruction


def any_order(screen: Screen) -> Plan:
    """Any-order: marks what is named, in an order that says nothing; every look draws another one."""
    (names,) = said(screen, r"Mark (.*)\.")
    left = [each for name in names.split(", ") for each in seen(screen, text=name) if "marked" not in each.name]
    # Drawn from what is seen, so that an episode follows from its seed.
    return [click(each) for each in random.Random(f"{names} {len(left)}").sample(left, len(left))]


def login_then_option(screen: Screen) -> Plan:
    """Login-option."""
    return login(screen) if seen(screen, name="username") else option(screen)


def text_and_checkboxes(screen: Screen) -> Plan:
    """Text-checkboxes."""
    (wanted,) = said(screen, r'"(.*)"')
    return fill(screen, {seen(screen, name="tt")[0]: wanted}) + checkboxes(screen)


def shop(screen: Screen) -> Plan:
    """Shop: turns the pages until the product is there; what has gone wrong is taken back."""
    wanted, address = screen.hidden["wanted"], screen.hidden["address"]
    button = {each.text: each for each in seen(screen, tag="button")}
    if "Place order" in button:
        labels = {"Name": "name", "Street": "street", "Town": "town", "Code": "code"}
        fields = {seen(screen, tag="input", label=label)[0]: address[key] for label, key in labels.items()}
        return [*fill(screen, fields), click(button["Place order"])]
    named = [each for each in seen(screen, text=wanted["name"]) if each.tag in ("a", "h1", "header")]
    if "Check out" in button:
        right = (
            named and seen(screen, text=f"Size: {wanted['size']}") and seen(screen, text=f"Number: {wanted['number']}")
        )
        return [click(button["Check out" if right else "Empty the basket"])]
    if "Add to basket" not in button:
        return [click(named[0] if named else button["Next"])]
    if not named:
        return [click(button["Back"])]
    size = seen(screen, tag="radio", label=wanted["size"])[0]
    number = seen(screen, tag="option", text=str(wanted["number"]))[0]
    return [*(click(each) for each in (size, number) if not each.checked), click(button["Add to basket"])]


THUMB = 16 / 160  # width of a slider's


def settings(screen: Screen) -> Plan:
    """Settings: goes to the menu of what is left to change, changes it, and takes back what nobody asked for."""
    orders, menu = screen.hidden["orders"], screen.hidden["menu"]
    changed = {}
    for each in screen.elements:
        if found := re.fullmatch(r"(.*): (.*) > (.*)", each.text):
            changed[found[1]] = found[2], found[3]
    wanted = {name: before for name, (before, _) in changed.items() if name not in orders}
    wanted |= {name: value for name, value in orders.items() if changed.get(name, ("", ""))[1] != value}
    button = {each.text: each for each in seen(screen, tag="button")}
    if not wanted:
        return [click(button["Done"])]
    here = {name: value for name, value in wanted.items() if seen(screen, tag="label", text=name)}
    if here:
        return [_change(screen, name, value) for name, value in here.items()]
    title = seen(screen, tag="header")[0].text
    way = ["Settings", *_way(menu, next(iter(wanted)))]
    return [click(button[way[way.index(title) + 1]] if title in way else button["Back"])]


def _change(screen: Screen, name: str, value: str) -> Move:
    control = next(each for each in screen.elements if each.tag.startswith(("input", "select")) and each.label == name)
    if control.tag == "select":
        return click(seen(screen, tag="option", text=value)[0])
    if control.tag == "input:checkbox":
        return click(control)
    missing = int(value) - int(control.value)
    if abs(missing) == 1:  # a click there would only take hold of the thumb
        return press(control, "ArrowRight" if missing > 0 else "ArrowLeft")[0]
    return click(control, dx=(int(value) / 10 - 0.5) * (control.width - THUMB))


def _way(menu: Mapping[str, Any], setting: str) -> list[str]:
    """The menus that lead to a setting; without the outermost."""
    for name, entry in menu.items():
        if isinstance(entry, Mapping) and setting in entry:
            return [name]
        if isinstance(entry, Mapping) and (way := _way(entry, setting)):
            return [name, *way]
    return []
