"""The delay table is computed from its cells, and every cell compares what it says it does."""

from __future__ import annotations

import json

import pytest
import torch

import envs
import policies
from benchmarks import cells, delay
from benchmarks.delay import ARMS, CLOSED_LOOP, DELAYS, EXPERT, HORIZON, LENGTH, PLAN, WORLDS, Cell
from flowhand.control.controller import prepare

FIRST, SECOND, *OTHERS = WORLDS


def keep(folder, cell, solved, n=10):
    outcomes = "1" * solved + "0" * (n - solved)
    told = {**vars(cell), "first_seed": 0, "n": n, "outcomes": outcomes}
    (folder / f"{cell.name}.json").write_text(json.dumps(told))


def fill(folder):
    """Two worlds: in the first one modes differ, in the second none does."""
    for cell in PLAN:
        if cell.world not in (FIRST, SECOND):
            continue
        arm = list(ARMS).index(cell.arm) if cell.arm in ARMS else 0
        solved = 10 - arm if cell.delay == 0 else 4 + arm
        keep(folder, cell, solved if cell.world == FIRST else 8)
    keep(folder, Cell(FIRST, CLOSED_LOOP[0], 0), 10)
    keep(folder, Cell(SECOND, CLOSED_LOOP[0], 0), 10)
    keep(folder, Cell(OTHERS[0], "naive", 0), 3)  # a world that is not finished counts for nothing


def test_the_best_mode_at_the_largest_delay_is_compared_with_the_best_without(tmp_path):
    fill(tmp_path)
    whole = delay.summarize(tmp_path)["all_worlds"]
    assert whole["worlds"] == [FIRST, SECOND]
    assert whole["mean_success"]["naive"] == pytest.approx({0: 0.9, **dict.fromkeys(DELAYS[1:], 0.6)})
    assert (whole["best_at_largest_delay"], whole["best_without_delay"]) == ("rtc-trained", "naive")
    assert whole["kept"] == pytest.approx({"naive": 0.8 / 0.9, "every-2": 0.8})
    assert whole["kept_at_least_0.9"] is False
    assert whole["expert_kept"] == pytest.approx(0.6 / 0.9)
    against = whole["against_naive_at_largest_delay"]["rtc-trained"]
    assert (against["n"], against["a_only"], against["b_only"]) == (20, 4, 0)
    assert against["difference"] == pytest.approx(0.2)


def test_the_table_tells_what_there_is(tmp_path):
    fill(tmp_path)
    lines = delay.table(delay.summarize(tmp_path)).splitlines()
    assert "| mean | rtc-trained | 70.0 | 80.0 | 80.0 | 80.0 | 80.0 |" in lines
    assert f"| {OTHERS[0]} | naive | 30.0 |  |  |  |  |" in lines
    assert f"| {FIRST} | every-2 | 100.0 |  |  |  |  |" in lines
    assert lines[-3] == "at d=8 rtc-trained keeps 0.889 of the success that naive has without delay"
    assert delay.table(delay.summarize(tmp_path / "empty")).count("\n") == 1


@pytest.mark.parametrize("arm", [*ARMS, CLOSED_LOOP[0]])
def test_modes_differ_in_nothing_but_the_mode(arm):
    last = 0 if arm == CLOSED_LOOP[0] else DELAYS[-1]
    config = cells.configure([*Cell("detour-noisy", arm, last).overrides, "net.width=16", "net.blocks=1"], 3)
    policy, execution = config.policy, config.execution
    assert (execution.mode, execution.delay) == (ARMS.get(arm, ("receding_horizon", False))[0], last)
    assert policy.head.prefix_max == (8 if arm == "rtc-trained" else 0)  # pyright: ignore[reportAttributeAccessIssue]
    assert policy.chunk.prediction_horizon == LENGTH
    spec = envs.make(config.env).features
    interval, longest, _ = prepare(policies.Policy(policy, spec), execution, 0, last)  # every mode can be executed
    assert interval == (2 if arm == CLOSED_LOOP[0] else HORIZON)
    assert longest >= last
    assert config.eval.perturb.describe() == WORLDS["detour-noisy"][1][0].removeprefix("eval.perturb.")


@pytest.mark.parametrize("world", WORLDS)
def test_every_world_has_a_configuration(world):
    config = cells.configure(Cell(world, "rtc-trained", 8).overrides, 3)
    train, _ = WORLDS[world]
    assert getattr(config.env, "task", "detour") == train[0].split("=")[1]


def test_cells_of_one_policy_agree_on_how_it_is_trained():
    assert len({cell.name for cell in PLAN}) == len(PLAN) == len(WORLDS) * (1 + (len(ARMS) + 1) * len(DELAYS))
    trained = {}
    for cell in PLAN:
        name, overrides = cell.policy
        assert trained.setdefault(name, overrides) == overrides
    assert len(trained) == 2 * len({tuple(train) for train, _ in WORLDS.values()})
    assert len({tuple(train) for train, _ in WORLDS.values()}) >= 4


def test_a_cell_runs_its_world_in_its_mode(tmp_path, monkeypatch):
    """With random weights, which are moved by what is continued: the modes take different ways."""
    monkeypatch.setitem(
        WORLDS, "detour-noisy", (["env=detour", "env.max_steps=20", "net.width=16"], ["eval.perturb.push=1"])
    )
    asked = []

    def trained(folder, name, config):
        asked.append((folder, name, config.train.steps))
        torch.manual_seed(0)
        policy = policies.Policy(config.policy, envs.make(config.env).features)
        for p in policy.parameters():
            torch.nn.init.normal_(p, std=p.shape[-1] ** -0.5)
        policy.fit_normalizers({"state": torch.randn(50, 4), "goal": torch.randn(50, 2)}, torch.randn(50, 2))
        return policy.eval().requires_grad_(False)

    monkeypatch.setattr(cells, "trained", trained)
    seen = []
    for name in ("evaluate", "evaluate_expert"):
        own = getattr(delay.evaluation, name)
        monkeypatch.setattr(delay.evaluation, name, lambda *a, own=own: seen.append(own(*a)) or seen[-1])
    for arm in ARMS:
        told = delay.run_cell(Cell("detour-noisy", arm, 4), tmp_path, 2, 7)
        assert told is not None
        assert (told["n"], told["first_seed"], told["arm"], told["delay"]) == (2, 1_000_000, arm, 4)
        assert asked[-1] == (tmp_path, "detour-prefix" if arm == "rtc-trained" else "detour-plain", 7)
    assert all(record.perturbation == "push=1.0" for records in seen for record in records)
    assert len({records[0].return_ for records in seen}) == len(ARMS)
    monkeypatch.setattr(cells, "trained", lambda *_: None)  # what another process is at; the expert needs none
    late = delay.run_cell(Cell("detour-noisy", EXPERT, 4), tmp_path, 2, 7)
    assert late is not None
    assert (late["n"], late["policy"]) == (2, None)
    assert seen[-1][0].perturbation == "action_delay=4 push=1.0"
    assert delay.run_cell(Cell("detour-noisy", "naive", 4), tmp_path, 2, 7) is None
