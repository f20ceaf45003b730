"""The page of a shadow: what the policy would have done, over what was done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from flowhand.contracts.durable import write_whole

from .page import page, paragraph, table
from .svg import Axes, h

MOST_PLOTS = 24


def write_shadow_page(
    path: Path,
    policy_name: str,
    names: Sequence[str],
    steps: Sequence[tuple[int, int]],
    policy: Sequence[np.ndarray],
    person: Sequence[np.ndarray],
    chunks: Sequence[tuple[int, int, np.ndarray]],
    compared: Sequence[Any],
    flipped: Sequence[str],
    control_dt_s: float,
) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: of the page.
        policy_name: where the policy lies.
        names: of the dimensions.
        steps: (episode, step) of each comparison.
        policy: what it would have done, each (A,).
        person: what was done, each (A,).
        chunks: (episode, step, chunk (T, A)) of each decision.
        compared: of all of it, by dimension: name, moved, correlation, error, spread, flipped.
        flipped: dimensions in which the policy did the opposite at some time.
        control_dt_s: seconds between two steps.
    """
    verdict = f"does the opposite in {', '.join(flipped)}" if flipped else "goes the same way in every dimension"
    rows = [
        [one.name, f"{one.spread:.4g}", f"{one.error:.4g}", f"{one.correlation:+.2f}", _verdict(one, flipped)]
        for one in compared
    ]
    body = [
        h("header", h("h1", f"Shadow: {policy_name}"), paragraph(f"{len(steps)} control steps. The policy {verdict}.")),
        h(
            "section",
            h("h2", "Each dimension"),
            paragraph("Moved: standard deviation of what was done. Error: root mean square of the difference."),
            table(["dimension", "moved", "error", "correlation", ""], rows),
        ),
        h("section", h("h2", "Over time"), *_plots(names, steps, policy, person, chunks, control_dt_s)),
    ]
    write_whole(path, page(f"Shadow of {policy_name}", body).encode("utf-8", "replace"))


def _verdict(one: Any, flipped: Sequence[str]) -> str:
    if one.flipped or one.name in flipped:
        return "flipped sign"
    return "" if one.moved else "not moved: nothing to compare"


def _plots(
    names: Sequence[str], steps: Sequence[tuple[int, int]], policy: Sequence[np.ndarray],
    person: Sequence[np.ndarray], chunks: Sequence[tuple[int, int, np.ndarray]], dt: float,
) -> Iterator[Element]:  # fmt: skip
    yield paragraph("Grey: what was done. Blue: the chunks of the policy, each from its own decision.")
    plots = 0
    for episode in dict.fromkeys(number for number, _ in steps):
        rows = [i for i, (number, _) in enumerate(steps) if number == episode]
        if plots + len(names) > MOST_PLOTS:
            yield paragraph("Further episodes are not drawn.", "caption")
            return
        plots += len(names)
        yield h("h3", f"episode {episode}")
        times = np.array([steps[i][1] for i in rows]) * dt
        own = [(step, chunk) for number, step, chunk in chunks if number == episode]
        drawn = []
        for i, name in enumerate(names):
            values = np.array([[person[row][i], policy[row][i]] for row in rows])
            axes = Axes(name, times, np.concatenate([values.ravel(), *(c[:, i] for _, c in own)]), "s")
            axes.line(times, values[:, 0], "expert thick")
            for step, chunk in own:
                axes.line((step + np.arange(len(chunk))) * dt, chunk[:, i], "policy")
            drawn.append(axes.svg)
        yield h("div", *drawn, class_="plots")
