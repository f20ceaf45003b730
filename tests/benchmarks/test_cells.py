"""A sweep runs every cell once, whoever else is at it, and goes on from a committed result."""

from __future__ import annotations

import fcntl
import json
from dataclasses import dataclass

import pytest

from benchmarks import cells


@dataclass(frozen=True)
class Cell:
    world: str
    strength: int = 0

    @property
    def name(self) -> str:
        return f"{self.world}-{self.strength}"


PLAN = [Cell("a"), Cell("a", 1), Cell("b")]


@pytest.fixture
def waits(monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr(cells.time, "sleep", waited.append)
    return waited


def ran(cell: Cell) -> dict:
    return {**vars(cell), "outcomes": "101", "n": 3}


def test_a_finished_cell_is_not_run_again(tmp_path, capsys, waits):
    asked = []
    for _ in range(2):
        cells.sweep(tmp_path, PLAN, lambda cell: asked.append(cell) or ran(cell))
    assert asked == PLAN
    assert json.loads((tmp_path / "a-1.json").read_text()) == ran(PLAN[1])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1].split()[:2] == ["a-1", "2/3"]
    assert not waits


def test_what_another_process_is_preparing_is_waited_for(tmp_path, waits):
    asked = []

    def run(cell):
        asked.append(cell)
        return ran(cell) if cell == PLAN[0] or len(waits) == 2 else None

    cells.sweep(tmp_path, PLAN, run)
    assert waits == [cells.WAIT_S] * 2  # after a pass with a finished cell there is another at once
    assert asked == [*PLAN, *PLAN[1:] * 3]


def test_a_cell_that_another_process_is_at_is_left_to_it(tmp_path):
    asked = []
    with (tmp_path / "a-1.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cells.sweep(tmp_path, PLAN, lambda cell: asked.append(cell) or ran(cell))
    assert asked == [PLAN[0], PLAN[2]]


def test_a_sweep_goes_on_from_a_result_file(tmp_path):
    result = tmp_path / "result.json"
    result.write_text(json.dumps({"cells": [ran(PLAN[1]), ran(PLAN[2])]}))
    newer = {**ran(PLAN[2]), "outcomes": "000"}
    folder = tmp_path / "cells"
    folder.mkdir()
    (folder / "b-0.json").write_text(json.dumps(newer))
    cells.restore(result, folder, Cell)
    asked = []
    cells.sweep(folder, PLAN, lambda cell: asked.append(cell) or ran(cell))
    assert asked == [PLAN[0]]
    assert json.loads((folder / "a-1.json").read_text()) == ran(PLAN[1])
    assert json.loads((folder / "b-0.json").read_text()) == newer
