"""Sampled chunks beside the expert's, as plots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import Element

import numpy as np

from .page import paragraph
from .svg import Axes, h


@dataclass
class ChunkComparison:
    """Chunks that the policy sampled at one held-out state, and what the expert did from there."""

    seed: int  # of the episode that the state comes from
    step: int  # control step of the decision
    sampled: np.ndarray  # (S, T, A)
    expert: np.ndarray  # (T, A)
    control_dt_s: float  # seconds between two actions
    action_names: list[str]  # A names

    def __post_init__(self):
        shape = (len(self.expert), len(self.action_names))
        if self.sampled.ndim != 3 or self.sampled.shape[1:] != shape or self.expert.shape != shape:
            raise ValueError(
                f"chunks at seed {self.seed}, step {self.step}: sampled {self.sampled.shape}, expert "
                f"{self.expert.shape}, {len(self.action_names)} names; expected (S, T, A), (T, A), A"
            )


def chunks(comparisons: list[ChunkComparison]) -> Iterator[Element]:
    """What the policy wants to do, and what the expert would do: a panel for each dimension of the action."""
    if not comparisons:
        yield paragraph("No chunks were sampled on held-out states.")
        return
    text = "Actions over time, one panel per dimension of the action:"
    yield legend(text, [("key policy", "sampled"), ("key expert", "expert")])
    values = [np.concatenate([c.sampled.reshape(-1, len(c.action_names)), c.expert]) for c in comparisons]
    ranges = np.concatenate(values).T  # one range per dimension, so that states can be compared
    for c in comparisons:
        seconds = np.arange(len(c.expert)) * c.control_dt_s
        panels = []
        for d, name in enumerate(c.action_names):
            axes = Axes(name, seconds, ranges[d], "time (s)", width=240, height=156, ticks=3)
            axes.line(seconds, c.expert[:, d], "expert thick")
            for sample in c.sampled[:, :, d]:
                axes.line(seconds, sample, "policy thin")
            panels.append(axes.svg)
        distance = np.sqrt(np.mean((c.sampled - c.expert) ** 2))
        spread = np.sqrt(np.mean(c.sampled.var(axis=0)))
        distances = h("small", f"RMS to expert {distance:.3g}, spread {spread:.3g}")
        title = h("h3", f"Seed {c.seed}, step {c.step}", distances)
        yield h("div", title, h("div", *panels, class_="panels"))


def legend(text: str, entries: list[tuple[str, str]]) -> Element:
    """A line of text with the marks of a plot, each a class of the page's style and what it stands for."""
    return h("p", text, *(h("span", h("i", class_=class_), name) for class_, name in entries), class_="legend")
