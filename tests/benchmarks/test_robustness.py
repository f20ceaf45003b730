"""The curves of robustness are computed from their cells, and every cell is a configuration that exists."""

from __future__ import annotations

import json

import pytest

from benchmarks import cells, robustness
from benchmarks.robustness import PLAN, STRENGTHS, WORLDS, Cell


def keep(folder, cell, solved, n=10):
    told = {**vars(cell), "first_seed": 0, "n": n, "outcomes": "1" * solved + "0" * (n - solved)}
    (folder / f"{cell.name}.json").write_text(json.dumps(told))


def test_a_curve_begins_with_the_undisturbed_world(tmp_path):
    for strength, solved in ((5.0, 7), (10.0, 4)):
        keep(tmp_path, Cell("detour", "flow", "push", strength), solved)
    keep(tmp_path, Cell("detour", "flow"), 9)
    keep(tmp_path, Cell("detour", "expert"), 9)  # nothing disturbed: no curve
    (curve,) = robustness.summarize(tmp_path)["curves"]
    assert (curve["world"], curve["agent"], curve["perturbation"]) == ("detour", "flow", "push")
    assert [(p["strength"], p["successes"]) for p in curve["points"]] == [(0.0, 9), (5.0, 7), (10.0, 4)]
    assert "none: 90 (60-98)  5: 70 (40-89)  10: 40 (17-69)" in robustness.table({"curves": [curve]})


def test_the_expert_meets_only_what_it_can_see():
    assert len({cell.name for cell in PLAN}) == len(PLAN)
    of_expert = {cell.perturbation for cell in PLAN if cell.agent == "expert"}
    assert of_expert == {"none", *STRENGTHS} - {"observation_delay", "observation_noise_relative", "frame_drop"}


@pytest.mark.parametrize("perturbation", STRENGTHS)
def test_every_cell_disturbs_as_it_says(perturbation):
    strength = STRENGTHS[perturbation][-1]
    world = list(WORLDS)[list(STRENGTHS).index(perturbation) % len(WORLDS)]
    agent = "expert" if robustness.sees("expert", perturbation) else "flow"
    config = cells.configure(Cell(world, agent, perturbation, strength).overrides, 5)
    assert config.eval.perturb.describe() == f"{perturbation}={strength}"
    assert config.eval.episodes == 5


def test_the_expert_needs_no_policy_and_an_agent_waits_for_its_own(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(cells, "trained", lambda folder, name, config: asked.append((folder, name)))
    told = robustness.run_cell(Cell("detour", "expert", "action_noise", 0.1), tmp_path, 2, None)
    assert told is not None
    assert (told["n"], told["agent"], told["strength"]) == (2, "expert", 0.1)
    assert not asked
    assert robustness.run_cell(Cell("detour", "flow"), tmp_path, 2, None) is None
    assert asked == [(tmp_path, "detour-flow")]
