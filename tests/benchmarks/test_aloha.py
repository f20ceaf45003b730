"""The benchmark of ALOHA: a cell from the demonstrations to its outcomes, in small, and the expert's."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from benchmarks import aloha, cells
from benchmarks.aloha import ARMS, EXPERT, Cell
from conf.cli import compose

pytest.importorskip("gym_aloha", reason="the extra is not installed: pip install 'flowhand[aloha]'")

CELL = Cell("transfer_cube", "default", 0, 5_000_000, 2)


def test_every_arm_is_a_configuration_of_the_world():
    for arm in ARMS:
        config = compose(replace(CELL, arm=arm, task="insertion").overrides)
        assert (config.env.kind, config.env.task, config.eval.seed) == ("aloha", "insertion", 5_000_000)
        assert arm == EXPERT or config.data.noise <= 0.01


def test_a_cell_runs_from_the_demonstrations_to_the_outcomes_and_only_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["env.max_steps=130", "data.episodes=1", "train.steps=2", "net.width=16"]
    monkeypatch.setitem(ARMS, "default", [*ARMS["default"], *small])
    monkeypatch.setitem(ARMS, EXPERT, small)
    folder, plan = tmp_path / "cells", [CELL, replace(CELL, arm=EXPERT)]
    cells.sweep(folder, plan, partial(aloha.run, folder))
    learned, expert = cells.finished(folder, plan).values()
    assert (learned["outcomes"], expert["outcomes"]) == ("00", "11")
    assert sum(learned["failures"].values()) == 2
    assert (learned["collected"], learned["attempts"], learned["noise"]) == (1, 1, 0.01)
    assert 80 < expert["median_steps"] < 130

    def again(cell: Cell) -> None:
        raise AssertionError(f"{cell} ran again")

    cells.sweep(folder, plan, again)


def test_a_step_of_the_world_and_of_the_expert_cost_something():
    cost = aloha.cost("transfer_cube", steps=3)
    assert 0 < cost["world"] < 1000
    assert 0 < cost["expert"] < 1000
