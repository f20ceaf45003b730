"""A score: the largest of an episode, its mean with a bootstrap interval, told where the success rate is told."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from flowhand.evaluation.records import EpisodeRecord, read_records, write_records
from flowhand.evaluation.statistics import bootstrap_mean, summarize
from flowhand.pages.evaluation import ReportData, closing_line, render_report


def record(seed: int, score: float | None) -> EpisodeRecord:
    return EpisodeRecord("push", seed, False, False, "time limit", "", None, 9, 1.5, 0.25, score=score)


def told(records: list[EpisodeRecord]) -> str:
    metrics = {"task": "push", "conditions": "", "expert_rate": None, "expert_asked": True}
    return closing_line(metrics | dataclasses.asdict(summarize(records)), Path("out"))


def test_the_bootstrap_interval_is_the_normal_one_where_that_holds():
    values = np.random.default_rng(1).normal(0.5, 0.1, size=400)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert bootstrap_mean(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=half / 10)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_mean(np.empty(0))


def test_mean_and_interval_stand_where_the_success_rate_stands():
    records = [record(seed, seed / 10) for seed in range(10)]
    summary = summarize(records)
    assert summary.score_mean == pytest.approx(0.45)
    expected = f"mean score 0.450 [{summary.score_low:.3f}, {summary.score_high:.3f}] (95 % bootstrap)"
    assert expected in told(records)
    page = render_report(ReportData("title", "push", records))
    assert expected in page.replace("Mean", "mean")
    assert "<td>0.300</td>" in page


def test_a_world_without_scores_shows_none(tmp_path):
    records = [record(0, None)]
    assert summarize(records).score_mean is None
    assert "score" not in told(records)
    assert "score" not in render_report(ReportData("title", "push", records)).lower().replace("wilson score", "")
    write_records(tmp_path / "episodes.jsonl", [record(0, None), record(1, 0.25)])
    assert [r.score for r in read_records(tmp_path / "episodes.jsonl")] == [None, 0.25]
    with pytest.raises(ValueError, match="1 of 2 episode records have a score; expected all or none"):
        summarize([record(0, None), record(1, 0.25)])


def test_a_score_that_is_no_number_is_refused(tmp_path):
    path = tmp_path / "episodes.jsonl"
    write_records(path, [record(0, 0.5)])
    path.write_text(path.read_text().replace("0.5}", "NaN}"))
    with pytest.raises(ValueError, match="line 1: score must be finite or null, got nan"):
        read_records(path)
