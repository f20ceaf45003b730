"""A recorded set trains a policy with one command, and nothing else is needed."""

from __future__ import annotations

import json
import re
import shlex

import numpy as np
import pytest
import torch

import policies
from conf.cli import compose
from flowhand.commands import held_out as held_out_command
from flowhand.commands import train
from flowhand.demos.lerobot.dataset import LeRobotDataset
from flowhand.demos.states import StateEpisodes, held_out, numbers, ranges
from flowhand.demos.zarr_files.replay_zarr import ReplayZarrDataset
from tests.cases import some
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
    assert "front left unused: images are read with vision=conv, resnet18 or vit" in said
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
    with pytest.raises(ValueError, match="has no states; front left unused: images are read with vision=conv"):
        StateEpisodes(data.select(["front"]))


def test_what_is_held_out_never_reaches_the_training(tmp_path):
    """Two sets that differ in their held-out episodes alone, one of them absurd, give the same weights."""
    found = []
    for name, poison in (("honest", 0.0), ("poisoned", 1e6)):
        made = Set3(tmp_path / name, (30, 20, 25, 22), ((0,), (1, 2), (3,)))
        for number in held_out(4, 0.5, 1):
            made.rows[number]["observation.state"] += np.float32(poison)
            made.rows[number]["action"] -= np.float32(poison)
        words = (f"data.path={made.write()}", f"out={tmp_path}/run-{name}", "data.held_out=0.5", "data.held_out_seed=1")
        assert train.train(compose([*ALONE, *words]), [], None) == 0
        run = tmp_path / f"run-{name}"
        judged = json.loads((run / "held_out.json").read_text())
        found.append(((run / "checkpoint/model.safetensors").read_bytes(), judged["methods"]["policy"]["mean"]))
    assert found[0][0] == found[1][0]
    assert found[0][1] < 10 < 1e5 < found[1][1]


def test_the_page_and_the_file_say_what_was_run(tmp_path, recorded):
    words = [*ALONE, f"data.path={recorded}", f"out={tmp_path}/run", "data.previous_action=true", "data.held_out=2"]
    assert train.train(compose(words), words, None) == 0
    content = json.loads((tmp_path / "run/held_out.json").read_text())
    assert list(content["methods"]) == [
        "policy",
        "policy, mean of 8 samples",
        "repeat the last action",
        "nearest neighbour",
        "ridge regression on two states",
        "ridge regression on two states and the last action",
    ]
    assert content["dimensions"] == ["left", "right"]
    assert content["data"]["held_out"] == ranges(held_out(3, 2, 0))
    errors = np.array(content["methods"]["policy"]["episodes"])
    assert errors.shape == (2, 2)
    assert content["methods"]["policy"]["mean"] == pytest.approx(errors.mean())
    minus = content["methods"]["nearest neighbour"]["policy_minus_this"]["policy"]["mean"]
    assert minus[0] == pytest.approx((errors - content["methods"]["nearest neighbour"]["episodes"]).mean())
    assert minus[1] <= minus[0] <= minus[2]
    page = (tmp_path / "run/held_out.html").read_text()
    assert shlex.join(["python", "train.py", *words]) in page
    assert page.count("<svg") == 2 * 2  # episodes and dimensions
    assert not re.search(r"https?://|<script", page)

    again = [f"checkpoint={tmp_path}/run", f"data.path={recorded}", "wandb.mode=disabled", "threads=1"]
    policy = policies.load(tmp_path / "run")
    line = held_out_command.judged_again(compose(again, "eval"), policy, tmp_path / "run/checkpoint")
    assert "mean absolute error on 2 held-out episodes: policy" in line
    judged = json.loads((tmp_path / "run/eval-held_out-set/held_out.json").read_text())
    assert judged["methods"] == content["methods"]
    with pytest.raises(ValueError, match=r"data\.path judges on recorded episodes and env in a world"):
        held_out_command.judged_again(compose([*again, "env=detour"], "eval"), policy, tmp_path)
    policy.provenance.recorded.clear()
    with pytest.raises(ValueError, match="names no recorded set with held-out episodes"):
        held_out_command.judged_again(compose(again, "eval"), policy, tmp_path)


def test_features_are_chosen_by_name(tmp_path, recorded):
    data = ReplayZarrDataset(make(tmp_path / "set.zarr"))
    chosen = StateEpisodes(data, observation=["state"], previous_action=True)
    assert list(chosen.spec.observation) == ["state", "previous_action"]
    for episode in chosen:
        assert list(episode.observation) == ["state", "previous_action"]
        np.testing.assert_array_equal(episode.observation["previous_action"][1:], episode.action[:-1])
    with pytest.raises(ValueError, match=r"data\.observation names 'stat'; .* has no such feature: did you mean state"):
        StateEpisodes(data, observation=["stat"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["data.held_out=3"],
            r"data\.held_out=3 keeps 3 of 3 episodes from training, and 1 or more are to be trained on",
        ),
        (["data.held_out=2", "data.episodes=2"], "keeps 2 of 3 episodes from training, and 2 or more"),
        (["data.episodes=4"], r"data\.episodes=4 asks for more episodes than there are: 3"),
        (["data.held_out=1.5"], r"data\.held_out is 1\.5: expected a share below 1, a whole number"),
    ],
)
def test_what_cannot_be_held_out_is_refused(recorded, words, message):
    with pytest.raises(ValueError, match=message):
        train.demonstrations(compose([*ALONE, f"data.path={recorded}", *words]))


def test_a_world_has_features_and_seeds_of_its_own():
    for words in ("data.held_out=0.2", "data.observation=[state]"):
        with pytest.raises(ValueError, match=r"is for recorded sets, with env=none"):
            train.demonstrations(compose(["env.task=reach-v3", words]))


def test_how_many_are_held_out():
    assert [len(held_out(count, -1, 0)) for count in (1, 2, 10, 11, 100, 10_000)] == [0, 1, 1, 2, 10, 50]
    assert len(held_out(100, -1, 0, trained=95)) == 5
    assert len(held_out(100, 0.25, 0)) == 25
    assert held_out(100, 20, 3) != held_out(100, 20, 4)
    assert held_out(100, 0, 0) == []
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert numbers("0-2,5,7-8", 9) == [0, 1, 2, 5, 7, 8]
    for text, message in (
        ("0-9", "episode 9 is asked for"),
        ("3,1", "increasing"),
        ("1;2", "expected numbers such as"),
    ):
        with pytest.raises(ValueError, match=message):
            numbers(text, 9)


SEES = ("vision=conv", "vision.image_size=[16,24]", "vision.shift=0", "vision.features=8", "vision.width=16")


@pytest.mark.parametrize("memory_gb", some([4, 0], [0]))  # of memory: test_decoded.py
def test_a_policy_that_sees_learns_from_the_frames(tmp_path, recorded, memory_gb, capsys):
    """From memory and from the disk; its folder of decoded frames serves the second run, too."""
    small = ("train.steps=4", "train.save_every=2", "train.log_every=2", "data.held_out=1")
    cache = (f"data.cache_dir={tmp_path}/cache", f"data.memory_gb={memory_gb}")
    given = [*ALONE, *SEES, *small, *cache, f"data.path={recorded}", f"out={tmp_path}/run"]
    assert train.train(compose(given), given, None) == 0
    assert "left unused" not in capsys.readouterr().out
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache/decoded").iterdir()}
    assert sum(file.suffix == ".rows" for file in kept) == 3  # state, action and camera
    policy = policies.load(tmp_path / "run" / "checkpoint")
    assert policy.spec.observation["front"].shape == (48, 64, 3)  # as the camera gives it
    state = policies.load_train_state(tmp_path / "run" / "checkpoint")
    assert ("order" in state) == (memory_gb == 0)
    assert all(0 <= entry["data_wait"] <= 1 for entry in state["history"])
    again = [each.replace("/run", "/again") for each in given]
    assert train.train(compose(again), again, None) == 0
    assert {file: file.stat().st_mtime_ns for file in kept if file.suffix == ".rows"} == {
        file: time for file, time in kept.items() if file.suffix == ".rows"
    }
    other = policies.load(tmp_path / "again" / "checkpoint")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in policy.state_dict().items())
