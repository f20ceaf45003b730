"""Policies of lerobot, ACT and Diffusion, decide here what they decide there, and `flowhand eval` judges them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import envs
from flowhand.commands.lerobot.planner import LeRobotPlanner, is_lerobot
from flowhand.contracts.planner import require_drives
from flowhand.evaluation.records import read_records

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("FLOWHAND_LEROBOT", "")
WORLD = envs.SO101Config(pixels=96, max_steps=6)
needs_lerobot = pytest.mark.skipif(not PYTHON, reason="FLOWHAND_LEROBOT names no Python with lerobot==0.6.1")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    environment = {**os.environ, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    words = [PYTHON, str(ROOT / "tests/real/lerobot_policies.py"), str(folder), str(folder / "given.npz")]
    subprocess.run(words, env=environment, check=True)
    return folder, dict(np.load(folder / "given.npz"))


@needs_lerobot
@pytest.mark.parametrize(("kind", "predicted", "history"), [("act", 8, 1), ("diffusion", 6, 2)])
def test_a_policy_decides_what_lerobot_lets_it_do(made, kind, predicted, history):
    folder, given = made
    with closing(envs.make(WORLD)) as world:
        planner = LeRobotPlanner(folder / kind, world.features)
        require_drives(planner.spec, world.features, "so101")
    try:
        assert planner.chunk.history == history
        observation = {name: np.stack([given[name]] * history)[None] for name in ("state", "front")}
        noise = np.array([[7]], np.uint32).view(np.float32)
        chunk = planner.plan(observation, noise)
        assert chunk.shape == (1, predicted, 6)
        np.testing.assert_allclose(chunk[0, : len(given[kind])], given[kind], atol=1e-5)
        two = planner.plan(
            {n: np.concatenate([v, v]) for n, v in observation.items()}, np.concatenate([noise + 1, noise])
        )
        assert np.array_equal(two[1], chunk[0])  # whatever stands beside it
        with pytest.raises(ValueError, match="lerobot says of"):
            planner.plan({**observation, "state": observation["state"][..., :3]}, noise)
        assert np.array_equal(planner.plan(observation, noise), chunk)
    finally:
        planner.close()


@needs_lerobot
def test_flowhand_eval_judges_it_on_the_same_seeds_whatever_the_number_of_lanes(made, tmp_path):
    folder, _ = made
    records = []
    for lanes in (1, 2):
        out = tmp_path / f"eval{lanes}"
        words = [
            "-m",
            "flowhand",
            "eval",
            f"checkpoint={folder / 'act'}",
            f"lerobot={PYTHON}",
            "env=so101",
            f"out={out}",
        ]
        more = ["env.pixels=96", "env.max_steps=6", "eval.episodes=2", f"eval.n_envs={lanes}", "eval.videos=0"]
        run = subprocess.run(
            [sys.executable, *words, *more, "eval.expert=false"], cwd=ROOT, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        records.append(read_records(out / "episodes.jsonl"))
        metrics = json.loads((out / "metrics.json").read_text())
        assert metrics["export"]["lerobot"] == "act"
    alike = [[(r.seed, r.steps, r.return_, r.success) for r in each] for each in records]
    assert alike[0] == alike[1]


def test_a_policy_of_lerobot_is_told_from_ours_and_needs_its_python(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"type": "act"}')
    assert is_lerobot(tmp_path)
    assert not is_lerobot(next((ROOT / "tests/golden/v2").rglob("config.json")).parent)
    assert not is_lerobot(tmp_path / "none")
    monkeypatch.delenv("FLOWHAND_LEROBOT", raising=False)
    spec = envs.make(envs.DetourConfig()).features
    with pytest.raises(ValueError, match="decides in lerobot's own Python: name it by lerobot=PYTHON"):
        LeRobotPlanner(tmp_path, spec)
    with pytest.raises(ValueError, match="cannot be started"):
        LeRobotPlanner(tmp_path, spec, str(tmp_path / "python"))
    with pytest.raises(ValueError, match="lerobot says of"):
        LeRobotPlanner(tmp_path, spec, sys.executable)  # which has no lerobot
