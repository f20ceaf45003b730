"""An evaluation as one self-contained HTML page: no script, nothing loaded from anywhere, the same bytes every time.

The page is a tree of `xml.etree` elements, so text is escaped where it is written and tags always balance. Colours
and sizes live in report.css, which the page carries inside itself; plots are SVG that takes its colours from there.
"""

import base64
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element, tostring

import numpy as np
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator
from numpy.typing import ArrayLike

from .records import EpisodeRecord, summarize, wilson

MAX_POINTS = 600  # per line of the learning curve; more are not seen and make the page heavy
# A browser that opens the page must not fetch anything, whatever text went into it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"


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


@dataclass
class Clip:
    """One episode as a video."""

    seed: int
    label: str  # outcome in words, for example "success" or "dropped the puck"
    mp4: bytes


@dataclass
class ReportData:
    """Everything the page shows; a part that was not measured stays empty and the page says so."""

    title: str
    task: str
    records: list[EpisodeRecord]
    expert_records: list[EpisodeRecord] | None = None  # on the same seeds as `records`
    goal_visible: bool | None = None  # could the policy observe the goal; None: the question does not arise
    control_dt_s: float | None = None  # seconds per control step, to tell times as well as steps
    history: list[dict] = field(default_factory=list)  # step, loss, lr, samples_per_s, sometimes success {n, successes}
    chunks: list[ChunkComparison] = field(default_factory=list)
    clips: list[Clip] = field(default_factory=list)
    clip_note: str | None = None  # why clips are missing, or how they were chosen
    checkpoint: str = ""
    dataset_hash: str = ""
    hardware: str = ""
    timings: dict[str, float] = field(default_factory=dict)  # seconds
    versions: dict[str, str] = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self):
        seeds, expert = (sorted(r.seed for r in records or []) for records in (self.records, self.expert_records))
        if len(set(seeds)) < len(seeds) or len(set(expert)) < len(expert):
            raise ValueError("some seeds occur twice in the records; expected one episode per seed")
        if expert and expert != seeds:
            odd = sorted({*seeds} ^ {*expert})[:5]
            raise ValueError(f"policy and expert ran different seeds ({odd} ...); expected the same seeds for both")
        for row in self.history:
            if missing := {"step", "loss", "lr", "samples_per_s"} - row.keys():
                raise ValueError(f"history row {row} lacks {sorted(missing)}; each needs step, loss, lr, samples_per_s")
        if len({tuple(c.action_names) for c in self.chunks}) > 1:
            raise ValueError("chunks name different actions; expected the same names at every state")


def write_report(data: ReportData, path: str | Path) -> None:
    """Write the page to `path`, whole or not at all; folders on the way are made.

    Raises:
        OSError: The place cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(render_report(data).encode("utf-8", "replace"))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def render_report(data: ReportData) -> str:
    """Return the page as HTML."""
    sections = {
        "Learning curve": _learning_curve(data.history),
        "Episodes": _episodes(data),
        "Sampled action chunks": _chunks(data.chunks),
        "Videos": _clips(data),
        "What was run": _provenance(data),
    }
    body = [_headline(data), *(h("section", h("h2", title), *content) for title, content in sections.items())]
    head = h(
        "head",
        h("meta", charset="utf-8"),
        h("meta", http_equiv="Content-Security-Policy", content=POLICY),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("meta", name="color-scheme", content="light dark"),
        h("title", data.title),
        h("style", Path(__file__).with_name("report.css").read_text("utf-8")),
    )
    page = h("html", head, h("body", h("main", *body)), lang="en")
    return "<!doctype html>\n" + tostring(page, encoding="unicode", method="html") + "\n"


def h(tag: str, *children: Element | str, **attributes: object) -> Element:
    """Return an element; in attribute names a trailing underscore is dropped and others become hyphens."""
    element = Element(tag, {name.rstrip("_").replace("_", "-"): str(value) for name, value in attributes.items()})
    for child in children:
        if isinstance(child, Element):
            element.append(child)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + child
        else:
            element.text = (element.text or "") + child
    return element


def _p(text: str, class_: str = "lead") -> Element:
    return h("p", text, class_=class_)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Element:
    lines = [h("tr", *(h("td", cell) for cell in row)) for row in rows]
    header = [h("thead", h("tr", *(h("th", name) for name in head)))] if head else []
    return h("div", h("table", *header, h("tbody", *lines)), class_="scroll")


# 1. How often does it work?
def _headline(data: ReportData) -> Element:
    goal = {True: "Goal visible to the policy", False: "Goal hidden from the policy", None: ""}[data.goal_visible]
    parts = [h("p", data.task, class_="task"), h("h1", data.title)]
    if goal:
        parts.append(h("p", goal, class_="chip"))
    if data.records:
        r = summarize(data.records)
        told = h("span", f"{r.successes} of {r.n} episodes succeeded")
        big = h("p", h("b", f"{100 * r.rate:.3g} %"), told, class_="big")
        parts.append(h("div", big, _rates(data), class_="headline"))
        if not data.expert_records:
            parts.append(_p("No expert was run on these seeds, so nothing says how hard they are."))
    else:
        parts.append(_p("No episode was run, so there is no success rate."))
    if data.notes:
        parts.append(h("ul", *(h("li", note) for note in data.notes), class_="notes"))
    return h("header", *parts)


def _rates(data: ReportData) -> Element:
    """Success rates as dots with their 95 % Wilson intervals as bars, on one axis from 0 to 100 %."""
    rows = []
    for who, records in (("policy", data.records), ("expert", data.expert_records)):
        if not records:
            continue
        r = summarize(records)
        for when, successes, rate, low, high in (
            ("at any time", r.successes, r.rate, r.wilson_low, r.wilson_high),
            ("at the end", r.final_successes, r.final_rate, r.final_wilson_low, r.final_wilson_high),
        ):
            bar = h("i", class_="bar", style=f"left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%")
            track = h("div", bar, h("i", class_="dot", style=f"left:{100 * rate:.2f}%"), class_=f"track {who}")
            numbers = h("span", f"{successes}/{r.n}", h("small", f"{100 * low:.1f} to {100 * high:.1f} %"))
            rows.append(h("div", h("span", f"{who.capitalize()}, {when}"), track, numbers, class_="rate"))
    ticks = h("div", *(h("i", f"{t}", style=f"left:{t}%") for t in range(0, 101, 25)), class_="ticks")
    rows.append(h("div", h("span"), ticks, class_="rate"))
    seeds = " Policy and expert had the same seeds." if data.expert_records else ""
    return h("div", *rows, _p(f"Dot: success rate in percent. Bar: 95 % Wilson interval.{seeds}", "caption"))


# 2. Did it learn?
def _learning_curve(history: list[dict]) -> Iterator[Element]:
    if not history:
        yield _p("No training history was recorded.")
        return
    step, loss, lr = (np.array([row[key] for row in history], float) for key in ("step", "loss", "lr"))
    speed = np.median([row["samples_per_s"] for row in history])
    lost = int((~np.isfinite(loss)).sum())
    gaps = f" {lost} of {len(loss)} logged losses are not finite and not drawn." if lost else ""
    last = f"the last logged loss is {loss[-1]:.4g}"
    yield _p(f"{step.max():,.0f} steps at a median of {speed:,.0f} samples/s; {last}.{gaps}")
    window = max(1, len(loss) // 40)
    log = bool(np.all(loss[np.isfinite(loss)] > 0))
    title = ("Loss, log scale" if log else "Loss") + (f"; bold: mean of {window}" if window > 1 else "")
    plot = Axes(title, step, loss, "training step", log=log)
    plot.line(step, loss, "faint")
    mean_step, mean_loss = (np.convolve(values, np.full(window, 1 / window), "valid") for values in (step, loss))
    plot.line(mean_step, mean_loss, "policy")
    rate = Axes("Learning rate", step, np.append(lr, 0), "training step")
    rate.line(step, lr, "policy")
    yield h("div", plot.svg, rate.svg, *_success_curve(history, step), class_="plots")


def _success_curve(history: list[dict], step: np.ndarray) -> Iterator[Element]:
    points = [(row["step"], row["success"]["successes"], row["success"]["n"]) for row in history if row.get("success")]
    if not points:
        return
    axes = Axes("Success rate in percent, 95 % Wilson interval", [0, *step], [0, 100], "training step")
    axes.line([p[0] for p in points], [100 * k / n for _, k, n in points], "policy")
    for x, k, n in points:
        axes.line([x, x], 100 * np.array(wilson(k, n)), "faint wide")
        axes.dot(x, 100 * k / n, f"step {x}: {k} of {n}")
    yield axes.svg


# 3. Which episodes failed, and how long did the others take?
def _episodes(data: ReportData) -> Iterator[Element]:
    if not data.records:
        yield _p("No episode was run.")
        return
    records = sorted(data.records, key=lambda r: r.seed)
    experts = {r.seed: r for r in data.expert_records or []}
    cells = []
    for r in records:
        tip, line = f"seed {r.seed}: {_told(r)}", []
        if r.seed in experts:
            tip += f"\nexpert: {_told(experts[r.seed])}"
            line = [h("i", class_="under " + ("yes" if experts[r.seed].success else "no"))]
        cells.append(h("li", h("i", class_=f"cell {_outcome(r)}"), *line, title=tip))
    yield h("ol", *cells, class_="strip")
    yield _legend(records, bool(experts))
    plot, told = _times_to_success(records, list(experts.values()), data.control_dt_s)
    if experts:
        pairs = [(r.success, experts[r.seed].success) for r in records]
        a, b, c, d = (pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False)))
        told.append(_p(f"Both succeeded on {a} seeds, only the policy on {b}, only the expert on {c}, neither on {d}."))
    yield h("div", *plot, h("div", *told, class_="beside"), class_="plots")
    yield h("details", h("summary", f"Every episode as a table ({len(records)})"), _episode_table(records, experts))


def _outcome(r: EpisodeRecord) -> str:
    return "success" if r.final_success else "lost" if r.success else "failure"


def _told(r: EpisodeRecord) -> str:
    if not r.success:
        return f"{r.failure}, {r.steps} steps"
    return f"success after {r.first_success_step} of {r.steps} steps" + ("" if r.final_success else ", lost by the end")


def _legend(records: list[EpisodeRecord], with_expert: bool) -> Element:
    outcomes = [_outcome(r) for r in records]
    kinds = {"success": "success", "lost": "success, lost by the end", "failure": "failure"}
    keys = [(f"cell {kind}", f"{name} ({outcomes.count(kind)})") for kind, name in kinds.items() if kind in outcomes]
    if with_expert:
        keys += [("under yes", "expert succeeded"), ("under no", "expert failed")]
    return _keys(f"Seeds {records[0].seed} to {records[-1].seed} in order:", keys)


def _keys(text: str, keys: list[tuple[str, str]]) -> Element:
    return h("p", text, *(h("span", h("i", class_=class_), name) for class_, name in keys), class_="legend")


def _times_to_success(
    records: list[EpisodeRecord], experts: list[EpisodeRecord], dt: float | None
) -> tuple[list[Element], list[Element]]:
    """Return a histogram and what it says, in words."""
    policy, expert = ([r.first_success_step for r in group if r.first_success_step] for group in (records, experts))
    if not policy:
        return [], [_p("No episode succeeded, so there is no time to success to show.")]
    # A little wider than the data, so that few or equal values still get an axis of whole numbers.
    edges = MaxNLocator(16, integer=True).tick_values(min(policy + expert) - 2, max(policy + expert) + 3)
    counts, expert_counts = (np.histogram(steps, edges)[0] for steps in (policy, expert))
    heights = [0, 4, *counts, *expert_counts]
    axes = Axes("Episodes by control steps to first success", edges, heights, "control steps")
    axes.stairs(edges, counts, "fill")
    low, middle, high = np.percentile(policy, [25, 50, 75])
    seconds = f" ({middle * dt:.2f} s)" if dt else ""
    told = [_p(f"Steps to success: median {middle:g}{seconds}, middle half {low:g} to {high:g}.")]
    if expert:
        axes.stairs(edges, expert_counts, "expert")
        told.append(_p(f"The expert's median is {np.median(expert):g} steps (outline)."))
    return [axes.svg], told


def _episode_table(records: list[EpisodeRecord], experts: dict[int, EpisodeRecord]) -> Element:
    head = ["seed", "outcome", "steps", "return", "wall time [s]", *(["expert"] if experts else [])]
    rows = []
    for r in records:
        expert = [_told(experts[r.seed])] if experts else []
        rows.append([str(r.seed), _told(r), str(r.steps), f"{r.return_:.4g}", f"{r.wall_s:.3g}", *expert])
    return _table(head, rows)


# 4. What does it want to do, and what would the expert do?
def _chunks(chunks: list[ChunkComparison]) -> Iterator[Element]:
    if not chunks:
        yield _p("No chunks were sampled on held-out states.")
        return
    text = "Actions over time in seconds, one panel per action dimension:"
    yield _keys(text, [("key policy", "sampled"), ("key expert", "expert")])
    values = [np.concatenate([c.sampled.reshape(-1, len(c.action_names)), c.expert]) for c in chunks]
    ranges = np.concatenate(values).T  # one range per dimension, so that states can be compared
    for c in chunks:
        seconds = np.arange(len(c.expert)) * c.control_dt_s
        panels = []
        for d, name in enumerate(c.action_names):
            axes = Axes(name, seconds, ranges[d], width=240, height=140, ticks=3)
            axes.line(seconds, c.expert[:, d], "expert thick")
            for sample in c.sampled[:, :, d]:
                axes.line(seconds, sample, "policy thin")
            panels.append(axes.svg)
        distance = np.sqrt(np.mean((c.sampled - c.expert) ** 2))
        spread = np.sqrt(np.mean(c.sampled.var(axis=0)))
        told = h("small", f"RMS to expert {distance:.3g}, spread {spread:.3g}")
        title = h("h3", f"Seed {c.seed}, step {c.step}", told)
        yield h("div", title, h("div", *panels, class_="panels"))


# 5. What does it look like?
def _clips(data: ReportData) -> Iterator[Element]:
    if data.clip_note or not data.clips:
        yield _p(data.clip_note or "No episode was filmed.")
    told = {r.seed: r for r in data.records}
    figures = []
    for clip in data.clips:
        source = "data:video/mp4;base64," + base64.b64encode(clip.mp4).decode("ascii")
        video = h("video", src=source, controls="", muted="", loop="", playsinline="", preload="auto")
        kind = [h("i", class_=f"cell {_outcome(told[clip.seed])}")] if clip.seed in told else []
        detail = h("small", f"seed {clip.seed}" + (f", {told[clip.seed].steps} steps" if kind else ""))
        figures.append(h("figure", video, h("figcaption", *kind, h("span", clip.label, detail))))
    yield h("div", *figures, class_="clips")


# 6. What exactly was run?
def _provenance(data: ReportData) -> Iterator[Element]:
    run = {"checkpoint": data.checkpoint, "dataset hash": data.dataset_hash, "hardware": data.hardware}
    timings = {name: _duration(seconds) for name, seconds in data.timings.items()}
    tables = []
    for title, content in (("Run", run), ("Time", timings), ("Versions", data.versions)):
        rows = [(name, str(value)) for name, value in content.items() if value]
        body = _table([], rows) if rows else _p("Not recorded.")
        tables.append(h("div", h("h3", title), body))
    yield h("div", *tables, class_="facts")
    if data.config:
        rows = list(_flat(data.config))
        yield h("details", h("summary", f"Configuration, {len(rows)} values"), _table([], rows))
    else:
        yield _p("No configuration was recorded.")


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


class Axes:
    """One plot: data in, `svg` out.

    Args:
        title: Stands above, in place of a label along the y axis.
        x: Values whose range the x axis covers; likewise y.
        x_label: Below the axis, at the right.
        log: Logarithmic y axis; y must be positive.
        width, height: In SVG units; the page scales the picture.
        ticks: About how many labels an axis gets.
    """

    def __init__(self, title: str, x: ArrayLike, y: ArrayLike, x_label="", log=False, width=360, height=200, ticks=5):
        self._log = log
        self._x_range, self._y_range = _limits(np.asarray(x, float)), _limits(self._scale(y), margin=0.04)
        self._left, self._right, self._top, self._bottom = 46, width - 12, 26, height - (36 if x_label else 20)
        self.svg = h("svg", viewBox=f"0 0 {width} {height}", role="img", aria_label=title, class_="plot")
        self._text(title, 0, 12, "title")
        self._text(x_label, self._right, height - 4, "end")
        for value in _ticks(*self._y_range, ticks, log):
            _, y_px = self._pixels(0, value)
            self.svg.append(h("path", d=f"M{self._left} {y_px:.1f}H{self._right}", class_="grid"))
            self._text(_label(value), self._left - 6, y_px + 4, "end")
        for value in _ticks(*self._x_range, ticks):
            x_px, _ = self._pixels(value, 1)
            self._text(_label(value), x_px, self._bottom + 15, "middle")

    def line(self, x: ArrayLike, y: ArrayLike, class_: str) -> None:
        """Draw y over x; what is not finite is left out."""
        keep = np.flatnonzero(np.isfinite(y))
        keep = keep[:: 1 + len(keep) // MAX_POINTS]
        self._draw(np.asarray(x)[keep], np.asarray(y)[keep], class_)

    def stairs(self, edges: ArrayLike, counts: ArrayLike, class_: str) -> None:
        """Draw a histogram with B counts between B + 1 edges."""
        self._draw(np.repeat(edges, 2), np.concatenate([[0], np.repeat(counts, 2), [0]]), class_)

    def dot(self, x: float, y: float, tip: str) -> None:
        """Mark one point, with a text that appears over it."""
        x_px, y_px = self._pixels(x, y)
        self.svg.append(h("circle", h("title", tip), cx=f"{x_px:.1f}", cy=f"{y_px:.1f}", r=4, class_="policy"))

    def _draw(self, x: np.ndarray, y: np.ndarray, class_: str) -> None:
        points = np.stack(self._pixels(x, y), axis=-1)
        if len(points) == 1:
            points = points.repeat(2, axis=0)  # a line without length shows as a dot
        self.svg.append(h("polyline", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in points), class_=class_))

    def _scale(self, y: ArrayLike) -> np.ndarray:
        return np.log10(y) if self._log else np.asarray(y, float)

    def _pixels(self, x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        (x_low, x_high), (y_low, y_high) = self._x_range, self._y_range
        right = (np.asarray(x) - x_low) / (x_high - x_low)
        up = (self._scale(y) - y_low) / (y_high - y_low)
        return self._left + right * (self._right - self._left), self._bottom - up * (self._bottom - self._top)

    def _text(self, text: str, x: float | np.ndarray, y: float | np.ndarray, class_: str) -> None:
        self.svg.append(h("text", text, x=f"{x:.1f}", y=f"{y:.1f}", class_=class_))


def _limits(values: np.ndarray, margin: float = 0.0) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    space = margin * (high - low)
    return (low - space if low else 0.0), high + space  # bars stand on zero


def _ticks(low: float, high: float, n: int, log: bool = False) -> list[float]:
    locator = MaxNLocator(n, steps=[1, 2, 2.5, 5, 10])
    if log:
        low, high = 10**low, 10**high
        if high / low > 5:  # on a shorter range even ticks are easier to read
            locator = LogLocator(subs=(1.0,) if high / low > 300 else (1.0, 2.0, 5.0), numticks=8)
    return [t for t in locator.tick_values(low, high) if low <= t <= high]


def _label(value: float) -> str:
    text = EngFormatter(sep="")(value) if abs(value) >= 1000 else f"{round(value, 12) + 0:g}"
    return text.replace("-", "\N{MINUS SIGN}")
