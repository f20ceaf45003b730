"""A data set as one page: what is wrong with it, what it looks like, and pictures of its cameras."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from flowhand.contracts.durable import write_whole
from flowhand.demos.health.examine import labels_of, numeric, rows_of
from flowhand.demos.health.finding import Health
from flowhand.demos.native import Store
from flowhand.demos.reader import Reader

from .page import page, paragraph, table
from .svg import Axes, h

SHOWN_EPISODES = 8  # whose trajectories are drawn
MOST_PANELS = 28  # dimensions that are drawn of the action, and of the states
POINTS = 120  # of a line; more are not seen in a small panel
STILLS = 6  # pictures of each camera
MOST_CAMERAS = 4
STILL_WIDTH = 240  # points of a picture at most


def write_data_page(data: Store | Reader, health: Health, where: str, path: Path) -> None:
    """Writes the page, whole or not at all.

    Args:
        data: the data set.
        health: what was found in it.
        where: what the page calls it.
        path: of the page.
    """
    write_whole(path, render(data, health, where).encode("utf-8", "replace"))


def render(data: Store | Reader, health: Health, where: str) -> str:
    """The page as HTML."""
    sections = {
        "What was found": [_findings(health)],
        "Episodes": list(_episodes(data, health)),
        "Trajectories": list(_trajectories(data, health)),
        "Cameras": list(_cameras(data)),
    }
    head = [h("p", data.format if isinstance(data, Reader) else "store of flowhand", class_="task"), h("h1", where)]
    head.append(paragraph(_summary(data, health)))
    body = [*head, *(h("section", h("h2", title), *content) for title, content in sections.items() if content)]
    return page(where, body)


def _summary(data: Store | Reader, health: Health) -> str:
    steps, dt_s = sum(data.lengths), data.spec.control_dt_s
    rate = f"{1 / dt_s:g} Hz, {steps * dt_s / 60:.1f} minutes" if dt_s else "one step at each event"
    texts = len({text for text in data.tasks if text})
    return f"{len(data)} episodes, {steps} steps, {rate}, {texts} task texts. {health.line()}."


def _findings(health: Health) -> Element:
    if not health.findings:
        return paragraph("Nothing is wrong, as far as was looked.")
    rows = []
    for found in health.findings:
        what = f"{found.dimension}: {found.text}" if found.dimension else found.text
        rows.append((found.severity, found.check, what, found.place, found.advice))
    return table(("severity", "check", "what", "first", "what to do"), rows)


def _episodes(data: Store | Reader, health: Health) -> Iterator[Element]:
    """How long episodes are, and where they start."""
    lengths = np.array(data.lengths)
    plots = [_histogram("episodes by length", lengths, "steps")]
    if len(health.starts) > 1:
        extent = np.where(health.high > health.low, health.high - health.low, 1)
        spread = (health.starts.max(0) - health.starts.min(0)) / extent
        plots.append(_histogram("dimensions by spread of the starts", spread, "share of the range"))
    yield h("div", *plots, class_="plots")


def _histogram(title: str, values: np.ndarray, label: str) -> Element:
    counts, edges = np.histogram(values, bins=min(30, max(5, len(values) // 3)))
    axes = Axes(title, edges, [0, *counts], label)
    axes.stairs(edges, counts, "policy")
    return axes.svg


def _trajectories(data: Store | Reader, health: Health) -> Iterator[Element]:
    """Some episodes, dimension by dimension."""
    names, drawn = numeric(data), {}
    for episode in _spread(len(data), SHOWN_EPISODES):
        try:
            drawn[episode] = rows_of(data, episode, names)
        except ValueError:
            continue  # it is among the findings
    if not drawn:
        return
    yield paragraph(f"Episodes {', '.join(map(str, drawn))}, one line each, over the steps.")
    action = data.spec.action
    width = sum(health.sizes.values())
    parts = {"Action": (width - action.size, labels_of("action", action)), "States": (0, health.labels[: -action.size])}
    for title, (begin, labels) in parts.items():
        panels = [_panel(label, [rows[:, begin + i] for rows in drawn.values()]) for i, label in enumerate(labels)]
        yield h("h3", title)
        yield h("div", *panels[:MOST_PANELS], class_="panels")
        if len(panels) > MOST_PANELS:
            yield paragraph(f"{len(panels) - MOST_PANELS} more dimensions are not drawn.", "caption")


def _panel(label: str, lines: Sequence[np.ndarray]) -> Element:
    longest = max(map(len, lines))
    axes = Axes(label, [0, longest], np.concatenate(lines), width=220, height=120, ticks=3)
    for values in lines:
        at = np.unique(np.linspace(0, len(values) - 1, min(len(values), POINTS)).astype(int))
        axes.line(at, values[at], "policy thin")
    return axes.svg


def _cameras(data: Store | Reader) -> Iterator[Element]:
    """The middle frame of some episodes."""
    names = [name for name, feature in data.spec.observation.items() if feature.kind == "image"]
    for name in names[:MOST_CAMERAS]:
        pictures = []
        for episode in _spread(len(data), 2 * STILLS):
            step = data.lengths[episode] // 2
            try:
                part = data.only([name]) if isinstance(data, Reader) else data
                frame = part.read(episode, step, step + 1).observation[name][0]
            except ValueError:
                continue  # it is among the findings
            caption = h("figcaption", f"episode {episode}, step {step}", class_="caption")
            pictures.append(h("figure", h("img", src=_as_link(frame), alt=f"{name}, episode {episode}"), caption))
        if pictures:
            yield h("h3", f"{name}, {data.spec.observation[name].shape[1]} x {data.spec.observation[name].shape[0]}")
            yield h("div", *pictures[:STILLS], class_="panels")
    if len(names) > MOST_CAMERAS:
        yield paragraph(f"{len(names) - MOST_CAMERAS} more cameras are not shown.", "caption")


def _as_link(frame: np.ndarray) -> str:
    """A picture that the page carries itself."""
    from PIL import Image

    step, file = max(1, -(-frame.shape[1] // STILL_WIDTH)), io.BytesIO()
    small = np.ascontiguousarray(frame[::step, ::step])
    Image.fromarray(small[..., 0] if small.shape[2] != 3 else small).save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _spread(count: int, most: int) -> list[int]:
    """At most so many numbers below `count`, evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)).tolist()
