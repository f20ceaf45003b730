"""An evaluation as one self-contained HTML page: no script, nothing loaded from anywhere, the same bytes every time.

The page is a tree of `xml.etree` elements, so text is escaped where it is written and tags always balance. Colours
and sizes live in report.css, which the page carries inside itself; plots are SVG that takes its colours from there.
"""

import base64
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from matplotlib.ticker import MaxNLocator

from flowhand.contracts.durable import write_whole
from flowhand.evaluation.records import EpisodeRecord
from flowhand.evaluation.statistics import summarize, wilson

from .chunks import ChunkComparison, chunks, legend
from .page import _duration, _flat, page, paragraph, table
from .plans import PlanComparison, plans
from .svg import Axes, h

# A browser that opens the page must not fetch anything, whatever text went into it.


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
    command: str = ""  # that wrote the page
    expert_records: list[EpisodeRecord] | None = None  # on the same seeds as `records`
    goal_visible: bool | None = None  # could the policy observe the goal; None: the question does not arise
    control_dt_s: float | None = None  # seconds per control step, to tell times as well as steps
    history: list[dict] = field(default_factory=list)  # step, loss, lr, samples_per_s, sometimes success {n, successes}
    chunks: list[ChunkComparison] = field(default_factory=list)
    plans: list[PlanComparison] = field(default_factory=list)  # of a screen, in place of chunks
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
    write_whole(Path(path), render_report(data).encode("utf-8", "replace"))


def closing_line(metrics: dict[str, Any], out: Path) -> str:
    """One line with all that matters."""
    rate = metrics["expert_rate"]
    without = "no scripted expert" if metrics["expert_asked"] else "expert not asked (eval.expert=false)"
    expert = without if rate is None else f"expert {rate:.1%} on the same seeds"
    return (
        f"{metrics['task']}{metrics['conditions']}: {metrics['successes']}/{metrics['n']} = {metrics['rate']:.1%} "
        f"[{metrics['wilson_low']:.1%}, {metrics['wilson_high']:.1%}] (95 % Wilson), {_score(metrics)}{expert}; "
        f"report: {out / 'report.html'}"
    )


def _score(metrics: dict[str, Any]) -> str:
    """The mean score with its interval, where the world gives one."""
    if metrics["score_mean"] is None:
        return ""
    interval = f"[{metrics['score_low']:.3f}, {metrics['score_high']:.3f}] (95 % bootstrap)"
    return f"mean score {metrics['score_mean']:.3f} {interval}, "


def render_report(data: ReportData) -> str:
    """Return the page as HTML."""
    sections = {
        "Videos": _clips(data),
        "Episodes": _episodes(data),
        **({"Sampled plans": plans(data.plans)} if data.plans else {"Sampled action chunks": chunks(data.chunks)}),
        "Learning curve": _learning_curve(data.history),
        "What was run": _provenance(data),
    }
    body = [_headline(data), *(h("section", h("h2", title), *content) for title, content in sections.items())]
    return page(data.title, body)


# 1. How often does it work?
def _headline(data: ReportData) -> Element:
    goal = {True: "Goal visible to the policy", False: "Goal hidden from the policy", None: ""}[data.goal_visible]
    parts = [h("p", data.task, class_="task"), h("h1", data.title)]
    if data.command or data.records:
        seeds = sorted(r.seed for r in data.records)
        ran = [f"Start states of the seeds {seeds[0]} to {seeds[-1]}, {len(seeds)} episodes."] if seeds else []
        parts.append(h("p", *([h("code", data.command), " "] if data.command else []), *ran, class_="command"))
    if goal:
        parts.append(h("p", goal, class_="chip"))
    if data.records:
        r = summarize(data.records)
        caption = h("span", f"{r.successes} of {r.n} episodes succeeded")
        big = h("p", h("b", f"{100 * r.rate:.3g} %"), caption, class_="big")
        parts.append(h("div", big, _rates(data), class_="headline"))
        if told := _score(asdict(r)):
            parts.append(paragraph(f"{told.capitalize().rstrip(', ')}: of each episode the best step counts."))
        if not data.expert_records:
            parts.append(paragraph("No expert was run on these seeds, so nothing says how hard they are."))
    else:
        parts.append(paragraph("No episode was run, so there is no success rate."))
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
    return h("div", *rows, paragraph(f"Dot: success rate in percent. Bar: 95 % Wilson interval.{seeds}", "caption"))


# 5. Did it learn?
def _learning_curve(history: list[dict]) -> Iterator[Element]:
    if not history:
        yield paragraph("No training history was recorded.")
        return
    step, loss, lr = (np.array([row[key] for row in history], float) for key in ("step", "loss", "lr"))
    speed = np.median([row["samples_per_s"] for row in history])
    lost = int((~np.isfinite(loss)).sum())
    gaps = f" {lost} of {len(loss)} logged losses are not finite and not drawn." if lost else ""
    last = f"the last logged loss is {loss[-1]:.4g}"
    yield paragraph(f"{step.max():,.0f} steps at a median of {speed:,.0f} samples/s; {last}.{gaps}")
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
        yield paragraph("No episode was run.")
        return
    records = sorted(data.records, key=lambda r: r.seed)
    experts = {r.seed: r for r in data.expert_records or []}
    cells = []
    for r in records:
        tip, line = f"seed {r.seed}: {_outcome_text(r)}", []
        if r.seed in experts:
            tip += f"\nexpert: {_outcome_text(experts[r.seed])}"
            line = [h("i", class_="under " + ("yes" if experts[r.seed].success else "no"))]
        cells.append(h("li", h("i", class_=f"cell {_outcome(r)}"), *line, title=tip))
    yield h("ol", *cells, class_="strip")
    yield _legend(records, bool(experts))
    yield from _failures(records)
    plot, summary = _times_to_success(records, list(experts.values()), data.control_dt_s)
    if experts:
        pairs = [(r.success, experts[r.seed].success) for r in records]
        a, b, c, d = (pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False)))
        summary.append(
            paragraph(f"Both succeeded on {a} seeds, only the policy on {b}, only the expert on {c}, neither on {d}.")
        )
    yield h("div", *plot, h("div", *summary, class_="beside"), class_="plots")
    yield h("details", h("summary", f"Every episode as a table ({len(records)})"), _episode_table(records, experts))


def _outcome(r: EpisodeRecord) -> str:
    return "success" if r.final_success else "lost" if r.success else "failure"


def _outcome_text(r: EpisodeRecord) -> str:
    if not r.success:
        return f"{r.failure}, {r.steps} steps"
    return f"success after {r.first_success_step} of {r.steps} steps" + ("" if r.final_success else ", lost by the end")


def _legend(records: list[EpisodeRecord], with_expert: bool) -> Element:
    outcomes = [_outcome(r) for r in records]
    kinds = {"success": "success", "lost": "success, lost by the end", "failure": "failure"}
    keys = [(f"cell {kind}", f"{name} ({outcomes.count(kind)})") for kind, name in kinds.items() if kind in outcomes]
    if with_expert:
        keys += [("under yes", "expert succeeded"), ("under no", "expert failed")]
    return legend(f"Seeds {records[0].seed} to {records[-1].seed} in order:", keys)


def _failures(records: list[EpisodeRecord]) -> Iterator[Element]:
    """How the episodes failed, where they did so in several ways: the most frequent first."""
    kinds: dict[str, list[int]] = {}
    for record in records:
        if not record.success:
            kinds.setdefault(record.failure, []).append(record.seed)
    if len(kinds) < 2:
        return
    ordered = sorted(kinds.items(), key=lambda item: -len(item[1]))
    rows = [
        [kind, str(len(seeds)), ", ".join(map(str, seeds[:8])) + " ..." * (len(seeds) > 8)] for kind, seeds in ordered
    ]
    yield table(["kind of failure", "episodes", "seeds"], rows)


def _times_to_success(
    records: list[EpisodeRecord], experts: list[EpisodeRecord], dt: float | None
) -> tuple[list[Element], list[Element]]:
    """Return a histogram and what it says, in words."""
    policy, expert = ([r.first_success_step for r in group if r.first_success_step] for group in (records, experts))
    if not policy:
        return [], [paragraph("No episode succeeded, so there is no time to success to show.")]
    # A little wider than the data, so that few or equal values still get an axis of whole numbers.
    edges = MaxNLocator(16, integer=True).tick_values(min(policy + expert) - 2, max(policy + expert) + 3)
    counts, expert_counts = (np.histogram(steps, edges)[0] for steps in (policy, expert))
    heights = [0, 4, *counts, *expert_counts]
    axes = Axes("Episodes by control steps to first success", edges, heights, "control steps")
    axes.stairs(edges, counts, "fill")
    low, middle, high = np.percentile(policy, [25, 50, 75])
    seconds = f" ({middle * dt:.2f} s)" if dt else ""
    summary = [paragraph(f"Steps to success: median {middle:g}{seconds}, middle half {low:g} to {high:g}.")]
    if expert:
        axes.stairs(edges, expert_counts, "expert")
        summary.append(paragraph(f"The expert's median is {np.median(expert):g} steps (outline)."))
    return [axes.svg], summary


def _episode_table(records: list[EpisodeRecord], experts: dict[int, EpisodeRecord]) -> Element:
    score = ["score"] if any(r.score is not None for r in records) else []
    head = ["seed", "outcome", "steps", "return", *score, "wall time [s]", *(["expert"] if experts else [])]
    rows = []
    for r in records:
        expert = [_outcome_text(experts[r.seed])] if experts else []
        scores = [] if r.score is None else [f"{r.score:.3f}"]
        times = [f"{r.return_:.4g}", *scores, f"{r.wall_s:.3g}"]
        rows.append([str(r.seed), _outcome_text(r), str(r.steps), *times, *expert])
    return table(head, rows)


# 2. What does it look like?
def _clips(data: ReportData) -> Iterator[Element]:
    if data.clip_note or not data.clips:
        yield paragraph(data.clip_note or "No episode was filmed.")
    records = {r.seed: r for r in data.records}
    figures = []
    for clip in data.clips:
        source = "data:video/mp4;base64," + base64.b64encode(clip.mp4).decode("ascii")
        video = h("video", src=source, controls="", muted="", loop="", playsinline="", preload="auto")
        kind = [h("i", class_=f"cell {_outcome(records[clip.seed])}")] if clip.seed in records else []
        detail = h("small", f"seed {clip.seed}" + (f", {records[clip.seed].steps} steps" if kind else ""))
        figures.append(h("figure", video, h("figcaption", *kind, h("span", clip.label, detail))))
    yield h("div", *figures, class_="clips")


# 6. What exactly was run?
def _provenance(data: ReportData) -> Iterator[Element]:
    run = {"checkpoint": data.checkpoint, "dataset hash": data.dataset_hash, "hardware": data.hardware}
    timings = {name: _duration(seconds) for name, seconds in data.timings.items()}
    tables = []
    for title, content in (("Run", run), ("Time", timings), ("Versions", data.versions)):
        rows = [(name, str(value)) for name, value in content.items() if value]
        body = table([], rows) if rows else paragraph("Not recorded.")
        tables.append(h("div", h("h3", title), body))
    yield h("div", *tables, class_="facts")
    if data.config:
        rows = list(_flat(data.config))
        yield h("details", h("summary", f"Configuration, {len(rows)} values"), table([], rows))
    else:
        yield paragraph("No configuration was recorded.")
