import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from flowhand.evaluation.records import EpisodeRecord
from flowhand.pages.evaluation import ChunkComparison, Clip, ReportData, render_report, write_report

FIRST = 1_000_000
HOSTILE = "</style></script><script>alert(1)</script><img src='http://evil.example/x' onerror=\"alert(2)\">&amp; \udc80"


def record(i: int, first: int | None, steps: int, final: bool | None = None) -> EpisodeRecord:
    success = first is not None
    final = success if final is None else final
    failure = "" if success else "object never moved"
    return EpisodeRecord("reach", FIRST + i, success, final, failure, "", first, steps, 10.5 + i, 0.25)


def comparison(step: int = 8) -> ChunkComparison:
    expert = np.stack([np.linspace(-1, 1, 5), np.zeros(5)], axis=-1)
    sampled = expert + np.array([-0.1, 0.0, 0.1])[:, None, None]
    return ChunkComparison(FIRST, step, sampled, expert, 0.05, ["x", "gripper"])


@pytest.fixture
def full() -> ReportData:
    """Twelve episodes: nine succeed, one of them does not last; the expert fails at the last seed only."""
    records = [record(i, 20 + i, 20 + i) for i in range(8)]
    records += [record(8, 30, 100, final=False), *(record(i, None, 100) for i in range(9, 12))]
    history = [{"step": s, "loss": 10.0 ** (-s / 100), "lr": 1e-3, "samples_per_s": 500.0} for s in range(0, 201, 10)]
    history[-1]["success"] = {"n": 20, "successes": 13}
    return ReportData(
        title="Reach",
        task="move the hand to the goal",
        records=records[::-1],
        expert_records=[record(i, 15, 15) for i in range(11)] + [record(11, None, 100)],
        goal_visible=False,
        control_dt_s=0.05,
        history=history,
        chunks=[comparison(8), comparison(16)],
        clips=[Clip(FIRST, "success", b"\x00mp4 bytes"), Clip(FIRST + 9, "missed the goal", b"other bytes")],
        checkpoint="runs/7/checkpoint",
        dataset_hash="sha256:0123abcd",
        hardware="2 cores",
        timings={"train": 61.25, "total": 180.0},
        versions={"torch": "2.13.0"},
        config={"policy": {"head": {"kind": "flow", "steps": 4}}, "seed": 3, "tags": []},
        notes=["An episode stops at success."],
    )


class Page(HTMLParser):
    """Elements and text of a page; fails where tags do not balance."""

    VOID = frozenset(("meta", "br", "img", "input", "link", "hr", "source"))

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.css = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str):
        assert self.open.pop() == tag

    def handle_data(self, data: str):
        if self.open[-1:] == ["style"]:
            self.css += data
        else:
            self.text += data

    def find(self, tag: str, class_: str | None = None) -> list[dict[str, str]]:
        return [a for t, a in self.elements if t == tag and (class_ is None or class_ in a.get("class", "").split())]

    def lines(self, class_: str) -> list[np.ndarray]:
        """Points in SVG units of every line of a class."""
        return [
            np.array([[float(v) for v in pair.split(",")] for pair in a["points"].split()])
            for a in self.find("polyline", class_)
        ]


def wilson_by_hand(k: int, n: int) -> tuple[float, float]:
    z, p = 1.959964, k / n
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def test_headline_has_the_exact_numbers(full: ReportData):
    page = Page(render_report(full))
    for text in ("75 %", "9 of 12 episodes succeeded", "Goal hidden from the policy", full.task, full.notes[0]):
        assert text in page.text
    bars = [a["style"] for a in page.find("i", "bar")]
    dots = [a["style"] for a in page.find("i", "dot")]
    for k, bar, dot in zip((9, 8, 11, 11), bars, dots, strict=True):  # policy any-time, final; expert any-time, final
        low, high = wilson_by_hand(k, 12)
        assert f"{k}/12{100 * low:.1f} to {100 * high:.1f} %" in page.text
        np.testing.assert_allclose(
            [float(v) for v in re.findall(r"[\d.]+", bar)], [100 * low, 100 * (high - low)], atol=0.01
        )
        assert dot == f"left:{100 * k / 12:.2f}%"


def test_strip_shows_every_episode_in_seed_order(full: ReportData):
    page = Page(render_report(full))
    tips = [a["title"] for a in page.find("li") if "title" in a]
    assert [int(re.findall(r"seed (\d+)", tip)[0]) for tip in tips] == list(range(FIRST, FIRST + 12))
    assert tips[3] == f"seed {FIRST + 3}: success after 23 of 23 steps\nexpert: success after 15 of 15 steps"
    assert "success after 30 of 100 steps, lost by the end" in tips[8]
    told = "object never moved, 100 steps"
    assert tips[11] == f"seed {FIRST + 11}: {told}\nexpert: {told}"
    cells = [a["class"].split()[1] for a in page.find("i", "cell")][len(full.clips) :][:12]  # after those of the videos
    assert cells == ["success"] * 8 + ["lost"] + ["failure"] * 3
    assert "success (8)" in page.text
    assert "failure (3)" in page.text
    assert "Both succeeded on 9 seeds, only the policy on 0, only the expert on 2, neither on 1." in page.text
    assert "median 24 (1.20 s), middle half 22 to 26" in page.text
    for i in range(12):
        assert f"{FIRST + i}" in page.text  # the table


def test_histogram_has_one_unit_of_area_per_success(full: ReportData):
    (outline,) = Page(render_report(full)).lines("fill")
    bars = outline[1:-1].reshape(-1, 2, 2)  # left and right end of every top
    heights = outline[0, 1] - bars[:, 0, 1]
    unit = heights[heights > 0].min()  # bins of one or two steps, so one bin may hold two episodes
    assert heights.sum() / unit == pytest.approx(9, abs=0.1)


def test_exponential_decay_is_straight_on_the_loss_plot(full: ReportData):
    raw, interval = Page(render_report(full)).lines("faint")
    slopes = np.diff(raw[:, 1]) / np.diff(raw[:, 0])
    assert len(raw) == 21
    np.testing.assert_allclose(slopes, slopes.mean(), rtol=0.02)
    assert len(interval) == 2


def test_chunks_are_drawn_once_each(full: ReportData):
    page = Page(render_report(full))
    sampled, expert = page.lines("thin"), page.lines("thick")
    assert (len(sampled), len(expert)) == (2 * 2 * 3, 2 * 2)
    x, y = expert[0].T
    np.testing.assert_allclose(np.diff(x), np.diff(x).mean(), atol=0.11)  # equal times, rounded to a tenth
    np.testing.assert_allclose(np.diff(y), np.diff(y).mean(), atol=0.11)  # the ramp
    assert y[0] > y[-1]  # up is positive
    np.testing.assert_allclose(sampled[1], expert[0])  # the middle sample is the expert's chunk
    assert f"Seed {FIRST}, step 16RMS to expert 0.0816, spread 0.0816" in page.text


def test_clips_are_inlined_byte_for_byte(full: ReportData):
    page = Page(render_report(full))
    sources = [a["src"] for a in page.find("video")]
    prefix = "data:video/mp4;base64,"
    assert [base64.b64decode(s.removeprefix(prefix)) for s in sources] == [clip.mp4 for clip in full.clips]
    assert "missed the goal" in page.text
    assert f"seed {FIRST + 9}, 100 steps" in page.text


def test_the_command_and_the_seeds_stand_on_top_and_the_videos_come_first(full: ReportData):
    page = render_report(replace(full, command="flowhand eval checkpoint='a <b>'"))
    assert "<code>flowhand eval checkpoint='a &lt;b&gt;'</code> Start states of the seeds" in page
    assert f"seeds {FIRST} to {FIRST + 11}, 12 episodes." in page
    assert re.findall("<h2>(.*?)</h2>", page) == [
        "Videos",
        "Episodes",
        "Sampled action chunks",
        "Learning curve",
        "What was run",
    ]
    assert page.index("<code>") < page.index("<h2>")
    assert page.count("time (s)") == sum(len(c.action_names) for c in full.chunks)


def test_what_was_run_is_told(full: ReportData):
    text = Page(render_report(full)).text
    for part in ("runs/7/checkpoint", "sha256:0123abcd", "2 cores", "train61.2 s", "total3.0 min", "torch2.13.0"):
        assert part in text
    for part in ('policy.head.kind"flow"', "policy.head.steps4", "seed3", "tags[]"):
        assert part in text


def test_nothing_is_loaded_from_elsewhere(full: ReportData):
    html = render_report(full)
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert name not in ("href", "xlink:href", "srcset", "poster", "data")
            assert not name.startswith("on")
            assert name != "src" or value.startswith("data:video/mp4;base64,")
    assert page.css
    assert "url(" not in page.css
    assert "@import" not in page.css
    assert "//" not in re.sub(r'src="data:[^"]*"', "", html)  # no address of any scheme; base64 may hold slashes
    policy = next(a["content"] for a in page.find("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")


def test_hostile_text_stays_text(full: ReportData):
    hostile = replace(
        full,
        title=HOSTILE,
        task=HOSTILE,
        chunks=[replace(comparison(), action_names=[HOSTILE, "y"])],
        clips=[Clip(FIRST, HOSTILE, b"")],
        clip_note=HOSTILE,
        checkpoint=HOSTILE,
        versions={HOSTILE: HOSTILE},
        config={HOSTILE: {HOSTILE: HOSTILE}},
        timings={HOSTILE: 1.0},
        notes=[HOSTILE],
    )
    page = Page(render_report(hostile))
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in Page(render_report(full)).elements}
    assert page.text.count("</style></script><script>alert(1)</script>") >= 12


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"records": [], "expert_records": None}, "No episode was run, so there is no success rate."),
        ({"expert_records": None}, "No expert was run on these seeds"),
        ({"expert_records": []}, "No expert was run on these seeds"),
        ({"history": []}, "No training history was recorded."),
        ({"chunks": []}, "No chunks were sampled"),
        ({"clips": []}, "No episode was filmed."),
        ({"clips": [], "clip_note": "Rendering needs libegl1."}, "Rendering needs libegl1."),
        ({"config": {}}, "No configuration was recorded."),
        ({"versions": {}, "timings": {}}, "Not recorded."),
        ({"records": [record(i, None, 100) for i in range(12)]}, "No episode succeeded, so there is no time"),
        ({"records": [record(0, 1, 1)], "expert_records": None}, "1 of 1 episodes succeeded"),
        ({"records": [record(0, None, 1)], "expert_records": None}, "0 of 1 episodes succeeded"),
        ({"history": [{"step": 1, "loss": 0.5, "lr": 0.0, "samples_per_s": 9.0}]}, "the last logged loss is 0.5."),
        ({"history": [{"step": 1, "loss": 0.0, "lr": 0.0, "samples_per_s": 9.0}]}, "Loss"),
        ({"history": [{"step": 1, "loss": float("nan"), "lr": 0.0, "samples_per_s": 9.0}]}, "1 of 1 logged losses"),
    ],
)
def test_missing_parts_are_said(full: ReportData, changes: dict, sentence: str):
    html = render_report(replace(full, **changes))
    assert sentence in Page(html).text
    assert "nan," not in html
    assert ",nan" not in html


def test_one_not_finite_loss_leaves_a_gap(full: ReportData):
    full.history[5]["loss"] = float("inf")
    page = Page(render_report(full))
    assert len(page.lines("faint")[0]) == 20
    assert "1 of 21 logged losses are not finite" in page.text


def test_a_long_history_stays_small(full: ReportData):
    rows = [{"step": s, "loss": 1.0 + s % 7, "lr": 1e-3, "samples_per_s": 1.0} for s in range(50_000)]
    assert len(render_report(replace(full, history=rows))) < len(render_report(full)) + 40_000


def test_file_is_deterministic_and_replaced_whole(full: ReportData, tmp_path: Path):
    path = tmp_path / "new" / "report.html"
    write_report(full, path)
    first = path.read_bytes()
    write_report(full, path)
    assert path.read_bytes() == first
    with pytest.raises(TypeError):
        write_report(replace(full, notes=[None]), path)  # breaks while the page is made
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(OSError, match=r"folder\.html"):
        write_report(full, tmp_path / "folder.html")
    assert path.read_bytes() == first
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["folder.html", "new", "report.html"]


def test_refusals(full: ReportData):
    with pytest.raises(ValueError, match=r"different seeds \(\[1000011\]"):
        replace(full, expert_records=(full.expert_records or [])[:-1])
    with pytest.raises(ValueError, match="seeds occur twice"):
        replace(full, records=full.records[:1] * 12, expert_records=None)
    with pytest.raises(ValueError, match=r"lacks \['lr', 'samples_per_s'\]"):
        replace(full, history=[{"step": 1, "loss": 2.0}])
    with pytest.raises(ValueError, match="same names at every state"):
        replace(full, chunks=[comparison(), replace(comparison(), action_names=["y", "gripper"])])
    with pytest.raises(ValueError, match=r"sampled \(3, 5, 2\), expert \(4, 2\), 2 names"):
        replace(comparison(), expert=np.zeros((4, 2)))
