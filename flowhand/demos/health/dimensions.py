"""Findings on single dimensions, judged by the measures of all rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from .finding import Finding
from .rows import Quaternions, RowMeasures

CLIPPED = 0.05  # share of the rows at the smallest or largest value
ABRUPT = 0.3  # times the usual step, of the last one before a clipped value; what comes to rest is slower
JERKY = 1.45  # spread of the differences of steps over that of the steps; white noise has sqrt(3) = 1.73
MOVING = 0.5  # share of the steps that change the value, of what can be jerky at all
JUMP, SPIKE = 0.5, 0.3  # of the range of a dimension
UNUSUAL = 20.0  # times the usual step, of a jump or a spike
UNUSUAL_TOGETHER, MOST_JUMP = 8.0, 0.5  # the same, and the share of the dimensions, where many jump at once
GLITCH = 0.7  # of the range, of a spike that is no motion
RETURNED = 0.25  # of a spike's height, that the values beside it may differ by
MOST_NAMED = 6  # dimensions in a line
MOST_ALONE = 3  # findings of one kind that have a line each


def findings(
    rows: RowMeasures, rotations: Quaternions, labels: Sequence[str], is_action: np.ndarray
) -> Iterator[Finding]:
    """All findings on dimensions.

    Args:
        rows: the measures.
        rotations: four dimensions each that may be a rotation.
        labels: name of each dimension.
        is_action: which of them are of the action, bool (D,).
    """
    if not rows.count:
        return
    yield from _constant(rows, labels, is_action)
    yield from _outside(rows, labels)
    yield from _turning(rotations, labels)
    moving = ~rows.is_switch & (rows.high > rows.low)
    yield from _joined(rows, np.flatnonzero(moving))
    moving[rotations.places[rotations.turning].reshape(-1)] = False  # their jumps are told above
    found: list[Finding] = []
    for dimension in np.flatnonzero(moving).tolist():
        if is_action[dimension]:
            found += _clipped(rows, labels[dimension], dimension)
            found += _jerky(rows, labels[dimension], dimension)
        found += _sudden(rows, labels[dimension], dimension)
    yield from _grouped(found)


def _grouped(found: Sequence[Finding]) -> Iterator[Finding]:
    """The same findings, those of one kind in many dimensions as one."""
    kinds: dict[tuple[str, str], list[Finding]] = {}
    for each in found:
        kinds.setdefault((each.severity, each.check), []).append(each)
    for same in kinds.values():
        if len(same) <= MOST_ALONE:
            yield from same
            continue
        names = ", ".join(each.dimension for each in same[:MOST_NAMED]) + (" ..." if len(same) > MOST_NAMED else "")
        yield replace(same[0], text=f"{same[0].text}; and so in {len(same)} dimensions: {names}")


def _turning(rotations: Quaternions, labels: Sequence[str]) -> Iterator[Finding]:
    for number in rotations.turning.tolist():
        text = (
            f"a rotation becomes its negative {rotations.flips[number]} times: the same rotation, and a jump of numbers"
        )
        advice = "Continue the sign from step to step, or use another form, such as 6-D."
        episode, step = map(int, rotations.first[number])
        yield Finding("note", "wraps", text, advice, episode, step, labels[int(rotations.places[number, 0])])


def _joined(rows: RowMeasures, moving: np.ndarray) -> Iterator[Finding]:
    """Steps at which most dimensions jump at once: rows are missing, or two recordings were joined."""
    together: Counter[tuple[int, int]] = Counter()
    for dimension in moving.tolist():
        sizes = rows.jumps.values[dimension]
        far = sizes > UNUSUAL_TOGETHER * _without(float(rows.step_size[dimension]), rows, dimension, sizes)
        together.update({(int(e), int(s)) for e, s in rows.jumps.places[dimension][far]})
    places = sorted(place for place, count in together.items() if count >= max(MOST_JUMP * len(moving), 2))
    if places:
        text = f"most dimensions jump at once in {len(places)} steps"
        advice = "Rows are missing, or two recordings were joined there: cut the episode, or leave it out."
        yield Finding("warning", "joined", text, advice, *places[0])


def _constant(rows: RowMeasures, labels: Sequence[str], is_action: np.ndarray) -> Iterator[Finding]:
    for what, chosen in (("the action", is_action), ("the states", ~is_action)):
        same = np.flatnonzero((rows.high == rows.low) & chosen).tolist()
        if len(same) and rows.count > 1:
            some = ", ".join(labels[i] for i in same[:MOST_NAMED]) + (" ..." if len(same) > MOST_NAMED else "")
            text = f"{len(same)} of {int(chosen.sum())} dimensions of {what} never change: {some}"
            advice = "Harmless; a policy cannot learn to move them."
            yield Finding("note", "constant", text, advice)


def _outside(rows: RowMeasures, labels: Sequence[str]) -> Iterator[Finding]:
    for dimension in np.flatnonzero(rows.outside).tolist():
        low, high = (bound[dimension] for bound in rows.bounds)
        ends = f"{rows.low[dimension]:.6g} to {rows.high[dimension]:.6g}"
        text = f"{rows.outside[dimension]} rows are outside {low:g} to {high:g}; values go from {ends}"
        advice = "Correct the bounds, or leave these episodes out: a controller clips to the bounds."
        episode, step = map(int, rows.outside_place[dimension])
        yield Finding("warning", "out of range", text, advice, episode, step, labels[dimension])


def _clipped(rows: RowMeasures, label: str, dimension: int) -> Iterator[Finding]:
    """A value that is cut off stays at the end of its range, and reaches it at full speed."""
    for extreme, value in ((rows.smallest, rows.low[dimension]), (rows.largest, rows.high[dimension])):
        share, entries = extreme.count[dimension] / rows.count, int(extreme.entries[dimension])
        usual = rows.step_size[dimension]
        if share < CLIPPED or entries < 3 or extreme.entering[dimension] < ABRUPT * usual * entries:
            continue
        text = f"{share:.0%} of the rows are at {value:.6g} exactly, reached in {entries} sudden steps"
        advice = "The command was cut off there; what was meant is lost. Record it before it is clipped."
        episode, step = map(int, extreme.place[dimension])
        yield Finding("warning", "clipped", text, advice, episode, step, label)


def _jerky(rows: RowMeasures, label: str, dimension: int) -> Iterator[Finding]:
    if rows.moved[dimension] >= MOVING * rows.steps and rows.jerk[dimension] > JERKY:
        text = f"steps change like noise: their differences spread {rows.jerk[dimension]:.2f} times as wide as they do"
        advice = "Smooth the recording, or look for noise of the input device."
        yield Finding("warning", "jerky", text, advice, dimension=label)


def _sudden(rows: RowMeasures, label: str, dimension: int) -> Iterator[Finding]:
    """Single values that stick out, angles that wrap, and jumps."""
    extent, usual = rows.high[dimension] - rows.low[dimension], rows.step_size[dimension]
    heights, beside = rows.spikes.values[dimension], rows.spikes.beside[dimension]
    spiky = (heights > SPIKE * extent) & (heights > UNUSUAL * _without(usual, rows, dimension, heights))
    spiky &= beside < RETURNED * heights
    if spiky.any():
        episode, step = map(int, rows.spikes.places[dimension, int(np.argmax(spiky))])
        more = "at least " if spiky.all() else ""
        text = f"{more}{spiky.sum()} single values stick out, by up to {heights[spiky].max():.4g}"
        advice = "A glitch of the sensor: leave the episode out, or correct the value."
        severity = "warning" if heights[spiky].max() > GLITCH * extent else "note"
        yield Finding(severity, "spike", text, advice, episode, step, label)
        return
    if rows.wraps[dimension] and extent < 1.1 * 2 * np.pi:
        episode, step = map(int, rows.jumps.places[dimension, 0])
        text = f"jumps by a full turn {rows.wraps[dimension]} times: an angle that wraps"
        advice = "Say so in the feature (wraps), or record sine and cosine."
        yield Finding("note", "wraps", text, advice, episode, step, label)
        return
    sizes = rows.jumps.values[dimension]
    far = (sizes > JUMP * extent) & (sizes > UNUSUAL * _without(usual, rows, dimension, sizes))
    if far.any():
        episode, step = map(int, rows.jumps.places[dimension, 0])
        more = "at least " if far.all() else ""
        text = f"{more}{far.sum()} steps jump by more than half the range, up to {sizes.max():.4g} of {extent:.4g}"
        yield Finding("note", "jump", text, "Look at it: a contact, or a fault?", episode, step, label)


def _without(usual: float, rows: RowMeasures, dimension: int, found: np.ndarray) -> float:
    """The usual step of a dimension when its largest are left out, so that they do not hide themselves."""
    finite = found[np.isfinite(found)]
    left = max(0.0, float(usual**2 * rows.moved[dimension] - (finite**2).sum() * (2 if finite.size else 0)))
    return float(np.sqrt(left / max(1, int(rows.moved[dimension]))))
