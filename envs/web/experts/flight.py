"""The expert for book-flight-nodelay."""

from __future__ import annotations

import re
from datetime import datetime

from .moves import Move, click, enter, said, seen
from .screen import Element, Screen


def flight(screen: Screen) -> list[Move]:
    """Fill the form, search, and book the cheapest or the shortest flight."""
    kind, origin, destination, day = said(screen, r"Book the (\w+) one-way flight from: (.*) to: (.*) on (\S+?)\.?$")
    if offers := seen(screen, name="flight-price"):
        right = all(any(part in each.text for each in screen.elements) for part in (origin, destination, day))
        return [click(_best(screen, offers, kind) if right else seen(screen, name="menu-back")[0])]
    for name, place in (("flight-from", origin), ("flight-to", destination)):
        field = seen(screen, name=name)[0]
        if place in field.value and field.value.endswith(")"):
            continue
        items = [each for each in seen(screen, name="ui-menu-item") if place in each.text]
        return [click(items[0])] if items and field.value == place else [enter(screen, field, place)]
    field = seen(screen, name="datepicker")[0]
    if field.value != day:
        return _pick_date(screen, field, datetime.strptime(day, "%m/%d/%Y"))
    return [click(seen(screen, tag="button", text="Search")[0])]


def _pick_date(screen: Screen, field: Element, day: datetime) -> list[Move]:
    month = seen(screen, name="ui-datepicker-month")
    if not month:
        return [click(field)]
    shown = datetime.strptime(month[0].text, "%B").month
    if shown == day.month:
        return [click(seen(screen, tag="a", name="ui-state-default", text=str(day.day))[0])]
    return [click(seen(screen, name="ui-datepicker-prev" if shown > day.month else "ui-datepicker-next")[0])]


def _best(screen: Screen, offers: list[Element], kind: str) -> Element:
    if kind == "cheapest":
        return min(offers, key=lambda offer: int(offer.text.rpartition("$")[2]))
    times = [re.fullmatch(r"(\d+)h (\d+)m", each.text) for each in seen(screen, name="time-duration")]
    minutes = [int(each[1]) * 60 + int(each[2]) for each in times if each]
    return offers[minutes.index(min(minutes))]
