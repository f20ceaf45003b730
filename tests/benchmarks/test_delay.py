"""The delay table is computed from its cells, and a finished cell is never run again."""

import json

import pytest

from benchmarks import delay, robustness
from benchmarks.delay import ARMS, DELAYS, PLAN, WORLDS, Cell


def keep(folder, cell, solved, n=10):
    outcomes = "1" * solved + "0" * (n - solved)
    told = {**vars(cell), "first_seed": 0, "n": n, "outcomes": outcomes}
    (folder / f"{cell.name}.json").write_text(json.dumps(told))


def test_the_best_mode_at_the_largest_delay_is_compared_with_the_best_without(tmp_path):
    worlds = list(WORLDS)[:2]
    for cell in PLAN:
        if cell.world in worlds:
            arm = list(ARMS).index(cell.arm)
            solved = 10 - arm if cell.delay == 0 else 4 + arm
            keep(tmp_path, cell, solved if cell.world == worlds[0] else 8)
    keep(tmp_path, Cell(list(WORLDS)[2], "naive", 0), 3)  # a world that is not finished counts for nothing
    whole = delay.summarize(tmp_path)["all_worlds"]
    assert whole["worlds"] == worlds
    assert whole["mean_success"]["naive"] == {0: 0.9, **dict.fromkeys(DELAYS[1:], 0.6)}
    assert (whole["best_at_largest_delay"], whole["best_without_delay"]) == ("rtc-trained", "naive")
    assert whole["kept"] == pytest.approx(0.8 / 0.9)
    assert whole["kept_at_least_0.9"] is False
    against = whole["against_naive_at_largest_delay"]["rtc-trained"]
    assert (against["n"], against["a_only"], against["b_only"]) == (20, 4, 0)
    assert against["difference"] == pytest.approx(0.2)
    assert "at d=8 rtc-trained keeps 0.889" in delay.table(delay.summarize(tmp_path))


def test_every_cell_has_a_configuration_and_a_file_of_its_own():
    for plan in (PLAN, robustness.PLAN):
        assert len({cell.name for cell in plan}) == len(plan)
        for cell in plan:
            config = delay.cells.configure(cell.overrides, 5)
            assert config.eval.episodes == 5
    for cell in PLAN:
        config = delay.cells.configure(cell.overrides, 5)
        assert (config.eval.mode, config.eval.delay) == (ARMS[cell.arm][0], cell.delay)
        assert (config.head.prefix_max == 8) == (cell.arm == "rtc-trained") == cell.policy[0].endswith("-prefix")  # pyright: ignore
        assert config.chunk.prediction_horizon == 16


def test_cells_of_one_policy_agree_on_how_it_is_trained():
    trained = {}
    for cell in PLAN:
        name, overrides = cell.policy
        assert trained.setdefault(name, overrides) == overrides
    assert len(trained) == 2 * len({tuple(train) for train, _ in WORLDS.values()})


def test_finished_cells_are_not_run_again(tmp_path, monkeypatch):
    plan = PLAN[:3]
    keep(tmp_path, plan[0], 5)
    asked = []

    def run_cell(cell, *_):
        asked.append(cell)
        return None if len(asked) == 1 else {**vars(cell), "n": 1, "outcomes": "1"}

    monkeypatch.setattr(delay, "run_cell", run_cell)
    delay.sweep(tmp_path, plan, 10, None)
    assert asked == [plan[1], plan[2], plan[1]]  # the first one's policy was being trained elsewhere
    delay.sweep(tmp_path, plan, 10, None)
    assert len(asked) == 3


def test_a_curve_begins_with_the_undisturbed_world(tmp_path):
    for strength, solved in ((2.0, 7), (5.0, 4)):
        keep(tmp_path, robustness.Cell("detour", "flow", "push", strength), solved)
    keep(tmp_path, robustness.Cell("detour", "flow"), 9)
    (curve,) = robustness.summarize(tmp_path)["curves"]
    assert (curve["world"], curve["agent"], curve["perturbation"]) == ("detour", "flow", "push")
    assert [(p["strength"], p["successes"]) for p in curve["points"]] == [(0.0, 9), (2.0, 7), (5.0, 4)]
    assert "none: 90 (60-98)  2: 70 (40-89)  5: 40 (17-69)" in robustness.table({"curves": [curve]})
