"""What every page has: one head, one style sheet, nothing loaded from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, tostring

from flowhand.pages.svg import h

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"


def page(title: str, body: Sequence[Element]) -> str:
    """A whole page as HTML."""
    head = h(
        "head",
        h("meta", charset="utf-8"),
        h("meta", http_equiv="Content-Security-Policy", content=POLICY),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("meta", name="color-scheme", content="light dark"),
        h("title", title),
        h("style", Path(__file__).with_name("report.css").read_text("utf-8")),
    )
    page = h("html", head, h("body", h("main", *body)), lang="en")
    return "<!doctype html>\n" + tostring(page, encoding="unicode", method="html") + "\n"


def paragraph(text: str, class_: str = "lead") -> Element:
    """Running text."""
    return h("p", text, class_=class_)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Element:
    """A table of texts."""
    lines = [h("tr", *(h("td", cell) for cell in row)) for row in rows]
    header = [h("thead", h("tr", *(h("th", name) for name in head)))] if head else []
    return h("div", h("table", *header, h("tbody", *lines)), class_="scroll")


def _duration(seconds: float) -> str:
    amount, unit = (
        (seconds, "s") if seconds < 120 else (seconds / 60, "min") if seconds < 7200 else (seconds / 3600, "h")
    )
    return f"{amount:.1f} {unit}"


def _flat(config: dict, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted names and values, written as they would be overridden on the command line."""
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(value, default=str)
