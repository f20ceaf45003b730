"""What the monitor benchmark tells, from made-up episodes of which every number is known."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import beta

from benchmarks import cells, monitor, monitor_alarms
from benchmarks.monitor import CONDITIONS, Cell, Plan
from benchmarks.monitor_alarms import detectors, judge, pool, promise, table
from flowhand.control.alarm import Trace
from flowhand.evaluation.records import EpisodeRecord
from policies.monitor.scores import SCORES

DISTURBED = [name for name in CONDITIONS if CONDITIONS[name]]


def episode(scores, success=True, length=None, every=8):
    """One that decides every 8 control steps; its scores are numbers of one detector."""
    steps = list(range(0, every * len(scores), every))
    length = every * len(scores) if length is None else length
    return {"seed": 0, "success": success, "length": length, "steps": steps, "scores": [[s] for s in scores]}


def calibration(n=200):
    """Every score in (0, 1), so that whatever is 5 or more is an alarm."""
    random = np.random.default_rng(0)
    good = [episode(random.random(4).tolist()) for _ in range(n)]
    return {
        "episodes": [*good, episode([90.0] * 4, success=False)],
        "names": ["logpzo"],
        "head": "flow",
        "seconds": 1.0,
    }


def test_a_detector_is_calibrated_on_successes_alone():
    alarms = dict(detectors(calibration(), 0.05, 0.9))
    assert list(alarms) == ["logpzo", "all", "duration"]
    assert (
        alarms["logpzo"](episode([0.5, 5.0, 0.5, 9.0])) == 8
    )  # the control step of the first decision out of the band
    assert alarms["logpzo"](episode([0.5] * 9)) == np.inf
    assert alarms["all"](episode([0.5, 5.0])) == alarms["logpzo"](episode([0.5, 5.0]))
    assert (alarms["duration"](episode([0.0] * 4)), alarms["duration"](episode([0.0] * 5))) == (np.inf, 33)


def test_lead_detection_and_balanced_accuracy_are_counted():
    def alarm(e):
        return {1: 8, 2: 48, 3: np.inf}[e["seed"]]

    def made(seed, success, length):
        return {**episode([0.0], success, length), "seed": seed}

    failed = [made(1, False, 100), made(2, False, 120), made(3, False, 100), made(3, False, 100)]
    solved = [made(1, True, 40), *[made(3, True, 40)] * 4]
    told = judge(alarm, [*failed, *solved], until=40, dt=0.5)
    assert (told["detected"]["count"], told["detected"]["n"]) == (2, 4)
    assert (told["false_alarms"]["count"], told["false_alarms"]["n"]) == (1, 5)
    assert told["lead_s"] == [(46 + 36) / 2, 38.5, 43.5]  # 92 and 72 control steps before the end
    assert told["alarm_s"][0] == 14.0
    assert told["balanced_accuracy_whole"] == pytest.approx((0.5 + 0.8) / 2)
    assert told["balanced_accuracy_matched"] == pytest.approx((0.25 + 0.8) / 2)  # the alarm at step 48 is too late
    assert "lead_s" not in judge(lambda _: np.inf, failed, 40, 0.5)
    assert "balanced_accuracy_whole" not in judge(alarm, failed, 40, 0.5)


@pytest.mark.parametrize(("count", "kept"), [(20, True), (29, True), (30, False), (0, True)])
def test_a_promise_is_kept_unless_the_exact_interval_lies_above_it(count, kept):
    told = promise(count, 400, 0.05)
    low = beta.ppf(0.025, count, 401 - count) if count else 0.0
    assert told["exact"] == pytest.approx([low, beta.ppf(0.975, count + 1, 400 - count)], abs=1e-4)
    assert told["kept"] is kept


def fill(folder, world, false_alarms=2):
    """A world with 40 nominal episodes, and 2 failures, of which one is told, in each perturbation."""
    nominal = [episode([9.0 if i < false_alarms else 0.5] * 4) for i in range(40)]
    found, missed = (episode([0.5, score] + [0.5] * 6, success=False) for score in (9.0, 0.5))
    done = {"calibration": calibration(), "nominal": {"episodes": nominal, "control_dt_s": 0.5, "seconds": 1.0}}
    done |= {name: {"episodes": [found, missed, nominal[-1]], "seconds": 1.0} for name in DISTURBED}
    for name, told in done.items():
        (folder / f"{world}-{name}.json").write_text(json.dumps(told))


def row_of(rows, score="logpzo", confidence=0.9):
    return next(r for r in rows if (r["score"], r["confidence"]) == (score, confidence))


def test_the_summary_pools_the_worlds_that_are_finished(tmp_path):
    fill(tmp_path, "push", 2)
    fill(tmp_path, "hammer", 4)
    fill(tmp_path, "assembly", 0)
    fill(tmp_path, "detour", 40)
    (tmp_path / f"detour-{DISTURBED[0]}.json").unlink()
    result = monitor.summarize(tmp_path, 0.05)
    assert result["pooled"]["benchmark"]["worlds"] == ["push", "hammer"]
    assert result["pooled"]["development"]["worlds"] == ["assembly"]
    row = row_of(result["pooled"]["benchmark"]["detectors"])
    assert (row["nominal"]["count"], row["nominal"]["n"], row["nominal"]["kept"]) == (6, 80, True)
    each = len(DISTURBED)
    assert (row["perturbed"]["detected"]["count"], row["perturbed"]["detected"]["n"]) == (2 * each, 4 * each)
    assert row["perturbed"]["lead_s"] == [0.5 * 56]
    assert row["perturbed"]["balanced_accuracy_whole"] == pytest.approx(0.75)
    one = row_of(result["worlds"]["push"]["detectors"])
    assert set(one["failures_detected"].values()) == {"1/2"}
    assert set(one["solved_with_alarm"].values()) == {"0/1"}
    shown = table(result)
    assert "benchmark: push, hammer" in shown
    assert "| logpzo | 0.9 | 7.5 % (2.8 to 15.6; n=80) | 50.0 %" in shown
    assert "| logpzo | 0.9 | 100.0 % (91.2 to 100.0; n=40, BROKEN)" in shown


def test_a_world_that_a_result_file_has_finished_is_told_as_it_was(tmp_path):
    fill(tmp_path, "push")
    fill(tmp_path, "detour")
    (tmp_path / f"detour-{DISTURBED[0]}.json").unlink()
    before = monitor.summarize(tmp_path, 0.05)
    (tmp_path / "result.json").write_text(json.dumps(before))
    monitor.restore(tmp_path / "result.json", tmp_path / "new")
    after = json.loads(json.dumps(monitor.summarize(tmp_path / "new", 0.05)))
    assert list(after["worlds"]) == ["push"]  # the other one was not finished
    assert after["pooled"] == json.loads(json.dumps(before["pooled"]))
    assert after["worlds"]["push"] == json.loads(json.dumps(before["worlds"]["push"]))


def test_the_best_score_is_a_single_one_under_the_default_promise():
    def row(score, confidence, accuracy):
        return {"score": score, "confidence": confidence, "perturbed": {"balanced_accuracy_matched": accuracy}}

    rows = [row("stac", 0.9, 0.6), row("logpz", 0.9, 0.7), row("all", 0.9, 0.8), row("entropy", 0.0, 0.9)]
    assert monitor_alarms.best([*rows, {"score": "logpzo", "confidence": 0.9, "perturbed": {}}]) == "logpz"
    assert monitor_alarms.best([]) is None


def test_a_row_needs_every_world():
    rows = [{"detectors": []}, {"detectors": [{"score": "stac", "confidence": 0.9}]}]
    assert pool(rows, 0.05) == []


@pytest.mark.parametrize("condition", CONDITIONS)
def test_every_condition_disturbs_as_it_says(condition, tmp_path):
    told = " ".join(f"{name}={value}" for name, value in CONDITIONS[condition].items())
    config = monitor.configure("detour", condition, Plan(tmp_path, 2, 2, 3, 0.05, 7))
    assert config.eval.perturb.describe() == told
    assert (config.eval.episodes, config.train.steps) == (3, 7)


class Watched:
    names, interval = ("logpzo",), 8


@pytest.fixture
def made_up(monkeypatch):
    """No world and no policy: every third episode fails; what is asked and kept is noted."""
    told = SimpleNamespace(seeds=[], saved=[])
    policy = SimpleNamespace(
        normalizers=lambda: [("action", None)],
        spec=SimpleNamespace(control_dt_s=0.1),
        config=SimpleNamespace(head=SimpleNamespace(kind="flow")),
    )

    def episodes(watch, world, execution, seeds, n_envs):
        told.seeds.append(seeds)
        return [
            (
                EpisodeRecord("t", seed, seed % 3 != 0, True, "", "", 1, 8, 0.0, 0.0),
                Trace(seed, ["logpzo"], [0], [[0.123456789]]),
            )
            for seed in seeds
        ]

    monkeypatch.setattr(cells, "trained", lambda *_: policy)
    monkeypatch.setattr(monitor, "watched_episodes", episodes)
    monkeypatch.setattr(monitor, "possible", lambda *_: ["logpzo"])
    monkeypatch.setattr(monitor, "demonstrations", lambda *_: None)
    monkeypatch.setattr(monitor, "learn", lambda *_: None)
    monkeypatch.setattr(monitor, "WatchedPolicy", lambda *_: Watched())
    monkeypatch.setattr(monitor, "load_monitor", lambda *_: SimpleNamespace(watch=lambda *_: Watched()))
    monkeypatch.setattr(monitor, "save_monitor", lambda path, calibrated: told.saved.append((path, calibrated)))
    return told


def test_a_calibration_is_stored_and_the_rest_waits_for_it(tmp_path, made_up):
    plan = Plan(tmp_path, 90, 40, 10, 0.05, None)
    assert monitor.run_cell(Cell("detour", "nominal"), plan) is None
    told = monitor.run_cell(Cell("detour", "calibration"), plan)
    assert told is not None
    assert (told["n"], told["outcomes"].count("1"), told["first_seed"]) == (90, 60, 3_000_000)
    ((path, calibrated),) = made_up.saved
    assert path == tmp_path / "detour"
    assert (calibrated.about.interval, calibrated.about.successes, calibrated.about.first_seed) == (8, 40, 3_000_000)
    assert told["episodes"][1]["scores"] == [[0.12346]]


def test_nominal_episodes_go_on_until_there_are_enough_successes(tmp_path, made_up):
    plan = Plan(tmp_path, 90, 40, 10, 0.05, None)
    (tmp_path / "detour-calibration.json").write_text("{}")
    told = monitor.run_cell(Cell("detour", "nominal"), plan)
    assert told is not None
    assert told["outcomes"].count("1") == 40
    assert [e["seed"] for e in told["episodes"]] == list(range(1_000_000, 1_000_000 + told["n"]))  # none twice
    made_up.seeds.clear()
    told = monitor.run_cell(Cell("detour", DISTURBED[0]), plan)
    assert made_up.seeds == [range(1_000_000, 1_000_010)]


def test_the_scores_judged_are_those_that_are_shown():
    assert set(monitor_alarms.SINGLE) == set(SCORES)
