"""A recorded set trains a policy with one command, and nothing else is needed."""

from __future__ import annotations

import json

import numpy as np
import pytest

import policies
from conf.cli import compose
from flowhand.commands import train
from flowhand.demos.lerobot.dataset import LeRobotDataset
from flowhand.demos.states import StateEpisodes
from flowhand.demos.zarr_files.replay_zarr import ReplayZarrDataset
from tests.demos.recorded import Set3
from tests.demos.test_replay_zarr import make

TINY = ("net.width=16", "encoder.width=16", "net.blocks=1", "train.batch_size=32", "train.threads=1", "train.steps=20")
ALONE = (*TINY, "env=none", "eval.episodes=0", "wandb.mode=disabled", "chunk.prediction_horizon=4")


@pytest.fixture
def recorded(tmp_path):
    made = Set3(tmp_path / "set", (30, 20, 25), ((0,), (1, 2)), {"front": ((0, 1, 2),)})
    for rows in made.rows:
        rows["observation.state"] = rows["observation.state"].astype(np.float64)
    made.features["observation.state"]["dtype"] = "float64"
    return made.write()


def test_a_lerobot_set_trains_and_its_policy_acts(tmp_path, recorded, capsys):
    config = compose([*ALONE, f"data.path={recorded}", f"out={tmp_path}/run"])
    assert train.train(config, [], None) == 0
    said = capsys.readouterr().out
    assert "no policy reads images yet: front left unused" in said
    assert "3 episodes, 2 to train on, 1 held out" in said
    assert "2 demonstrations, 50 windows" in said
    assert "mean absolute error on 1 held-out episodes: policy" in said
    policy = policies.load(tmp_path / "run" / "checkpoint")
    assert policy.spec.control_dt_s == 0.1
    assert policy.spec.observation["state"].dtype == "float32"
    written = json.loads((tmp_path / "run/checkpoint/config.json").read_text())["provenance"]
    assert written["demonstrations"] == LeRobotDataset(recorded).fingerprint
    named = {"format": "LeRobot v3.0", "name": "set", "revision": "", "trained_on": "0-1", "held_out": "2"}
    assert written["recorded"] == [{**named, "fingerprint": LeRobotDataset(recorded).fingerprint}]
    assert written["env_version"] == "LeRobot v3.0"


def test_what_is_taken_of_a_set(recorded, tmp_path):
    data = LeRobotDataset(recorded)
    states = StateEpisodes(data, [0, 1])
    assert [len(episode) for episode in states] == states.lengths == [30, 20]
    for got, expected in zip(states, data.select(["state"]), strict=False):
        assert got.observation["state"].dtype == np.float32
        np.testing.assert_array_equal(got.observation["state"], expected.observation["state"].astype(np.float32))
    flat = StateEpisodes(ReplayZarrDataset(make(tmp_path / "set.zarr")))
    assert flat.spec.observation["keypoint"].shape == (18,)
    assert next(iter(flat)).observation["keypoint"].shape == (7, 18)
    with pytest.raises(ValueError, match="has no states, and no policy reads front yet"):
        StateEpisodes(data.select(["front"]))
