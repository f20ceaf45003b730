"""The sweep of heads on Push-T: its plan and its summary; no simulator and no training."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict

import numpy as np
import pytest

from benchmarks.pusht import ARMS, COST, REPORTED, STEPS, Cell, plan, summarize
from conf.cli import compose
from policies.heads import HEADS


def asked(**options) -> Namespace:
    return Namespace(**{"arms": list(REPORTED), "seeds": None, "first_seed": 1_000_000, "episodes": 500, **options})


def test_flow_comes_first_with_three_seeds_and_every_head_is_there():
    cells = plan(asked())
    assert [(cell.arm, cell.seed) for cell in cells[:6]] == [(a, s) for a in ("flow", "regression") for s in range(3)]
    assert {cell.arm for cell in cells} == set(HEADS) - {"classification", "tokens"}  # which are for choices
    assert len({cell.name for cell in cells}) == len(cells) == 6 + len(HEADS) - 4
    assert [cell.seed for cell in plan(asked(arms=["edm"], seeds=[4, 5]))] == [4, 5]


def test_a_cell_is_the_experiment_with_one_head():
    flow, drift = (compose(Cell(arm, 2, 5_000_000, 9).overrides) for arm in ("flow", "drift"))
    assert (flow.env.kind, flow.train.steps, flow.train.threads) == ("pusht", STEPS, 1)
    assert (drift.head.kind, drift.train.steps) == ("drift", int(STEPS / COST["drift"]))
    assert (drift.seed, drift.eval.seed, drift.net) == (2, 5_000_000, flow.net)
    other = {arm: compose(Cell(arm, 2, 5_000_000, 9).overrides) for arm in ARMS if arm not in REPORTED}
    assert all(config != flow for config in other.values())


def test_a_summary_has_means_over_training_seeds(tmp_path):
    rng, cells = np.random.default_rng(0), plan(asked(arms=["flow", "edm"], episodes=40))
    scores = {cell: rng.uniform(0.5, 1, 40).round(3).tolist() for cell in cells[:3]}
    for cell, each in scores.items():
        kept = {"outcomes": "1" * (20 + cell.seed) + "0" * (20 - cell.seed), "n": 40, "scores": each}
        told = {**asdict(cell), **kept, "train_cpu_seconds": 500.0 + cell.seed}
        (tmp_path / f"{cell.name}.json").write_text(json.dumps(told))
    result = summarize(tmp_path, cells)
    (row,) = result["rows"]
    assert (row["arm"], row["seeds"], row["most_cpu_s"]) == ("flow", 3, 502.0)
    assert row["success"] == pytest.approx((20 + 21 + 22) / 120)
    assert row["score"] == pytest.approx(np.mean(list(scores.values())))
    first = result["cells"][0]
    assert first["wilson"][0] < 0.5 < first["wilson"][1]
    assert first["score_bootstrap"][0] < first["score_mean"] < first["score_bootstrap"][1]
