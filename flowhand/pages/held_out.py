"""The page of held-out episodes: errors of predicted chunks per dimension, and the chunks over what was recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from flowhand.contracts.durable import write_whole

from .page import page, paragraph, table
from .svg import Axes, h

POLICY = "policy"


@dataclass
class Drawn:
    """One held-out episode and the chunks that the policy sampled along it."""

    episode: int  # its number in the set
    recorded: np.ndarray  # (N, A)
    steps: np.ndarray  # (n,) control steps of the decisions
    chunks: np.ndarray  # (n, T, A)
    dimensions: list[int] = field(default_factory=list)  # that are drawn
    control_dt_s: float | None = None  # seconds between two actions; None: the axis counts steps


def write_page(content: Mapping[str, Any], drawn: Sequence[Drawn], path: Path) -> None:
    """Writes the page, whole or not at all.

    Args:
        content: what held_out.json holds.
        drawn: the episodes to draw.
        path: of the page.
    """
    sections = {
        "Error of each dimension": _dimensions(content),
        "Predicted chunks over recorded ones": _drawn(drawn, content["dimensions"], content["unit"]),
        "What was run": _facts(content),
    }
    body = [_headline(content), *(h("section", h("h2", title), *parts) for title, parts in sections.items())]
    title = f"{content['data']['name']}: {content['policy']} on held-out episodes"
    write_whole(path, page(title, body).encode("utf-8", "replace"))


def _headline(content: Mapping[str, Any]) -> Element:
    data, methods, count = content["data"], content["methods"], len(content["episodes"])
    unit = content["unit"] or "units of the action"
    rows = [[name, f"{row['mean']:.5g}", _range(row["mean_95"]), *_against(row)] for name, row in methods.items()]
    head = ("", f"mean absolute error ({unit})", "95 % interval", "policy minus this, 95 % interval")
    return h(
        "header",
        h("p", f"{data['name']}, {data['format']}", class_="task"),
        h("h1", f"{content['policy']}: {count} held-out episodes"),
        h("p", h("code", content["command"]), class_="lead"),
        paragraph(f"Held out: episodes {data['held_out']}; trained on {data['trained_on']}."),
        table(head, rows),
        paragraph(
            f"Mean over the dimensions of the action. Judged at {content['judged_at']}; {content['interval']}, paired.",
            "caption",
        ),
    )


def _against(row: Mapping[str, Any]) -> list[str]:
    if "policy_minus_this" not in row:
        return [""]
    mean, low, high = row["policy_minus_this"][POLICY]["mean"]
    return [f"{mean:+.3g} ({_range((low, high))})"]


def _range(ends: Sequence[float]) -> str:
    return f"{ends[0]:.3g} to {ends[1]:.3g}"


def _dimensions(content: Mapping[str, Any]) -> Iterator[Element]:
    methods = content["methods"]
    baselines = [name for name in methods if not name.startswith(POLICY)]
    head = ["dimension", "moves", *methods, "policy below"]
    rows = []
    for i, name in enumerate(content["dimensions"]):
        gaps = {each: methods[each]["policy_minus_this"][POLICY]["dimensions"][i] for each in baselines}
        below = [each for each, (mean, _, _) in gaps.items() if mean < 0]
        sure = [each for each in below if gaps[each][2] < 0]
        told = "all" if len(below) == len(gaps) else ", ".join(below) or "none"
        told += "" if len(sure) == len(below) else f" (sure: {', '.join(sure) or 'none'})"
        values = [f"{methods[each]['dimensions'][i]:.4g}" for each in methods]
        rows.append([name, f"{content['moves'][i]:.4g}", *values, told])
    yield paragraph(
        "Moves: how far the recorded action moves from the first of a chunk at most, mean over the decisions. "
        "Sure: the interval of the paired difference lies below zero."
    )
    yield table(head, rows)


def _drawn(drawn: Sequence[Drawn], names: Sequence[str], unit: str) -> Iterator[Element]:
    yield paragraph("Grey: the recorded action. Blue: one sampled chunk after the other, each from its own decision.")
    for each in drawn:
        yield h("h3", f"episode {each.episode}")
        yield h(
            "div", *(_plot(each, dimension, names[dimension], unit) for dimension in each.dimensions), class_="plots"
        )


def _plot(drawn: Drawn, dimension: int, name: str, unit: str) -> Element:
    scale, label = (1, "control step") if drawn.control_dt_s is None else (drawn.control_dt_s, "s")
    recorded, length = drawn.recorded[:, dimension], drawn.chunks.shape[1]
    chosen, end = [], 0
    for i, step in enumerate(drawn.steps):
        if step >= end:
            chosen.append(i)
            end = step + length
    chunks = [(drawn.steps[i], drawn.chunks[i, : len(recorded) - drawn.steps[i], dimension]) for i in chosen]
    values = np.concatenate([recorded, *(chunk for _, chunk in chunks)])
    axes = Axes(f"{name} ({unit})" if unit else name, [0, len(recorded) * scale], values, label)
    axes.line(np.arange(len(recorded)) * scale, recorded, "expert thick")
    for start, chunk in chunks:
        axes.line((start + np.arange(len(chunk))) * scale, chunk, "policy")
    return axes.svg


def _facts(content: Mapping[str, Any]) -> Iterator[Element]:
    data = {f"data.{name}": str(value) for name, value in content["data"].items() if value}
    more = {name: str(content[name]) for name in ("samples", "baselines_see", "hardware")}
    yield table([], [[name, value] for name, value in {**data, **more, **content["versions"]}.items()])
    yield paragraph(" ".join(content["what"].split()), "caption")
