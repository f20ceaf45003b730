"""A robot before its first policy, on one page: what is wrong with it, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from flowhand.contracts.durable import write_whole

from .page import page, paragraph, table
from .svg import Axes, h

Curves = Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]  # name -> seconds, command, state


def write_check_page(
    path: Path,
    where: str,
    summary: str,
    faults: Sequence[Sequence[str]],
    notes: Sequence[str],
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]],
    curves: Curves,
) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: of the page.
        where: which robot.
        summary: in one sentence.
        faults: kind, place and text of each.
        notes: what could not be measured.
        tables: title -> names of the columns, and rows.
        curves: what each dimension was told, and where it was.
    """
    found = [table(("what", "where", "seen"), faults)] if faults else [paragraph("Nothing is wrong.", "note")]
    sections = {"What was found": [*found, *(paragraph(note, "note") for note in notes)]}
    sections |= {title: [table(head, rows)] for title, (head, rows) in tables.items() if rows}
    if curves:
        key = paragraph("Thin: what was commanded. Thick: where the robot was. Seconds along the bottom.", "note")
        sections["Motions"] = [key, h("div", *(_panel(name, *curve) for name, curve in curves.items()), class_="plots")]
    body = [h("p", "check of a robot", class_="task"), h("h1", where), paragraph(summary)]
    body += [h("section", h("h2", title), *content) for title, content in sections.items()]
    write_whole(path, page(where, body).encode("utf-8", "replace"))


def _panel(name: str, seconds: np.ndarray, command: np.ndarray, state: np.ndarray) -> Element:
    axes = Axes(name, seconds, np.concatenate([command, state]), width=240, height=130, ticks=3)
    axes.line(seconds, command, "expert thin")
    axes.line(seconds, state, "policy")
    return axes.svg
