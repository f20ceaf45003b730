"""Push-T: held against gym-pusht itself, the same whatever ran before, and trained on what was recorded elsewhere."""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import envs
from conf.cli import compose
from envs.pusht import PushTConfig, PushTEnv
from envs.pusht_block import CORNERS, coverage, keypoints, pose_of
from flowhand.commands import train
from flowhand.contracts.features import Feature
from flowhand.demos.observed import Observed
from flowhand.demos.states import StateEpisodes
from flowhand.demos.zarr_files.replay_zarr import ReplayZarrDataset
from flowhand.evaluation.records import read_records, write_records
from flowhand.evaluation.rollout import rollout
from flowhand.evaluation.statistics import summarize

gym_pusht = pytest.importorskip("gym_pusht", reason="gym-pusht is not installed: pip install 'flowhand[pusht]'")
from gym_pusht.envs.pusht import PushTEnv as Simulator  # noqa: E402

DATA = Path(os.environ.get("FLOWHAND_DATA", "")) / "pusht_human_zarr/pusht_cchi_v7_replay.zarr"
HUMAN = pytest.mark.skipif(
    "FLOWHAND_DATA" not in os.environ or not DATA.exists(), reason="FLOWHAND_DATA names no folder with the human set"
)


def actions(steps: int, seed: int = 0) -> np.ndarray:
    """Targets that stay for a while, some of them beyond the plane."""
    return np.random.default_rng(seed).uniform(-20, 532, (steps // 5, 2)).astype(np.float32).repeat(5, axis=0)


def played(env: PushTEnv, seed: int, steps: int = 60) -> list[dict[str, np.ndarray]]:
    seen = [env.reset(seed=seed)[0]]
    return seen + [env.step(action)[0] for action in actions(steps)]


@pytest.mark.parametrize("seed", [3, 1_000_000])
def test_the_world_is_gym_pushts_own(seed):
    env, own = PushTEnv(PushTConfig(max_steps=60)), cast(Any, Simulator)(obs_type="environment_state_agent_pos")
    observation, _ = env.reset(seed=seed)
    expected, _ = own.reset(seed=seed)
    for step, action in enumerate(actions(60)):
        np.testing.assert_allclose(observation["keypoints"], expected["environment_state"], atol=1e-4)
        np.testing.assert_array_equal(observation["agent"], expected["agent_pos"].astype(np.float32))
        observation, reward, terminated, truncated, info = env.step(action)
        expected, _, _, _, told = own.step(np.clip(action, 0, 512))
        assert info["coverage"] == pytest.approx(told["coverage"], abs=1e-12)
        assert info["score"] == reward == min(1.0, info["coverage"] / 0.95)
        assert (info["success"], terminated, truncated) == (told["is_success"], False, step == 59)


def test_an_episode_is_the_same_whatever_ran_before():
    used, fresh = PushTEnv(PushTConfig()), PushTEnv(PushTConfig())
    played(used, 7)
    for a, b in zip(played(used, 4), played(fresh, 4), strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)


def test_coverage_is_gym_pushts_own_at_any_pose():
    own = Simulator()
    own.reset(seed=0)
    vertices = [tuple(vertex) for shape in own._block_shapes for vertex in shape.get_vertices()]
    np.testing.assert_array_equal(vertices, CORNERS)
    for pose in np.random.default_rng(0).uniform((200, 200, 0), (320, 320, 2 * np.pi), (200, 3)):
        envs.pusht.place(own, np.array([0, 0, *pose]))
        assert coverage(*pose) == pytest.approx(own._get_coverage(), abs=1e-12)
    assert coverage(256, 256, np.pi / 4) == pytest.approx(1)
    assert coverage(50, 50, 0) == 0


def test_a_covered_target_is_a_success():
    env = PushTEnv(PushTConfig())
    env.reset(seed=0)
    envs.pusht.place(env._raw, np.array([50, 50, 256, 256, np.pi / 4]))
    info = env.step(np.array([50, 50], np.float32))[4]
    assert (info["success"], info["score"]) == (True, 1.0)
    envs.pusht.place(env._raw, np.array([50, 50, 256 + 12, 256, np.pi / 4]))
    info = env.step(np.array([50, 50], np.float32))[4]
    assert not info["success"]
    assert 0.5 < info["score"] < 1


class Wanderer:
    """Chases the block's middle, in its own way for every seed."""

    def reset(self, lane: int, seed: int) -> None:
        self.aims = {**getattr(self, "aims", {}), lane: np.random.default_rng(seed)}

    def act(self, observations):
        middles = {lane: seen["keypoints"].reshape(8, 2).mean(axis=0) for lane, seen in observations.items()}
        return {lane: (at + self.aims[lane].normal(size=2) * 40).astype(np.float32) for lane, at in middles.items()}


def test_records_do_not_depend_on_how_many_run_at_once(tmp_path):
    make = functools.partial(envs.make, PushTConfig(max_steps=30))
    one, four = (rollout(make, Wanderer(), range(5), n_envs=n) for n in (1, 4))
    key = [(r.seed, r.success, r.steps, r.return_, r.score) for r in one]
    assert key == [(r.seed, r.success, r.steps, r.return_, r.score) for r in four]
    scores = [cast(float, r.score) for r in one]
    assert max(scores) > 0
    write_records(tmp_path / "episodes.jsonl", one)
    assert read_records(tmp_path / "episodes.jsonl") == one
    told = summarize(one)
    assert told.score_mean == pytest.approx(np.mean(scores))
    assert told.score_low is not None
    assert told.score_high is not None
    assert told.score_low <= np.mean(scores) <= told.score_high


def test_an_episodes_score_is_its_largest():
    env = PushTEnv(PushTConfig(max_steps=30))
    env.reset(seed=2)
    agent = Wanderer()
    agent.reset(0, 2)
    observation, scores = env.reset(seed=2)[0], []
    for _ in range(30):
        observation, _, _, _, info = env.step(agent.act({0: observation})[0])
        scores.append(info["score"])
    (record,) = rollout(functools.partial(envs.make, PushTConfig(max_steps=30)), Wanderer(), [2])
    assert record.score == max(scores)
    assert record.return_ == pytest.approx(sum(scores))


def test_corners_and_pose_are_each_others_inverse():
    poses = np.random.default_rng(0).uniform((60, 60, -np.pi), (450, 450, np.pi), (50, 3))
    np.testing.assert_allclose(pose_of(keypoints(poses)), poses, atol=1e-9)


@pytest.mark.parametrize("observation", ["keypoints", "pose", "image"])
def test_a_recorded_state_is_observed_as_the_world_observes_it(observation):
    env = PushTEnv(PushTConfig(observation=observation, camera_size=40))
    env.reset(seed=5)
    seen, states = [], []
    for action in actions(20):
        seen.append(env.step(action)[0])
        states.append(env._raw.get_obs())
    recorded = env.observed({"state": np.array(states)})
    from_corners = env.observed(
        {"state": np.array(states)[:, :2], "environment_state": keypoints(np.array(states)[:, 2:])}
    )
    for name, values in recorded.items():
        assert values.dtype == env.features.observation[name].dtype
        np.testing.assert_allclose(values, [each[name] for each in seen], atol=1e-5)
        np.testing.assert_allclose(from_corners[name].astype(float), values.astype(float), atol=1e-4)


def test_drawing_a_recorded_state_does_not_touch_the_episode():
    env, other = (PushTEnv(PushTConfig(observation="image", camera_size=16)) for _ in range(2))
    for each in (env, other):
        each.reset(seed=1)
        each.step(np.array([300, 300], np.float32))
    env.observed({"state": np.array([[100, 100, 200, 200, 1.0]])})
    a, b = (each.step(np.array([100, 400], np.float32))[0] for each in (env, other))
    np.testing.assert_array_equal(a["image"], b["image"])


def test_images_have_the_size_that_is_asked_for():
    env = PushTEnv(PushTConfig(observation="image", camera_size=84, image_size=120))
    observation, _ = env.reset(seed=0)
    assert observation["image"].shape == (84, 84, 3)
    assert env.render().shape == (120, 120, 3)


def recorded(path: Path, steps: int = 12) -> ReplayZarrDataset:
    """Two episodes as Diffusion Policy stores them, written by the zarr package."""
    zarr = pytest.importorskip("zarr")
    rng = np.random.default_rng(0)
    states = rng.uniform((50, 50, 100, 100, 0), (450, 450, 400, 400, 6), (steps, 5)).astype(np.float32)
    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    arrays = {
        "data/state": states,
        "data/img": np.zeros((steps, 96, 96, 3), np.uint8),
        "data/action": rng.uniform(0, 512, (steps, 2)).astype(np.float32),
        "meta/episode_ends": np.array([5, steps]),
    }
    for name, values in arrays.items():
        root.create_array(name, shape=values.shape, dtype=values.dtype)[...] = values
    return ReplayZarrDataset(path, rate_hz=10)


def test_a_policy_learns_from_what_the_world_observes(tmp_path):
    data = recorded(tmp_path / "set.zarr")
    world = PushTEnv(PushTConfig())
    seen = Observed(data, world.features, world.observed, world.version)
    states = StateEpisodes(seen)
    assert states.spec == world.features
    for episode, original in zip(states, data, strict=True):
        expected = world.observed({"state": original.observation["state"]})
        assert all(np.array_equal(episode.observation[name], expected[name]) for name in expected)
        np.testing.assert_array_equal(episode.action, original.action)
    assert seen.fingerprint != data.fingerprint
    pictures = PushTEnv(PushTConfig(observation="image", camera_size=32))
    frames = Observed(data, pictures.features, pictures.observed, pictures.version)
    assert frames.cameras == ["image"]
    assert frames.read(1, 2, 4).observation["image"].shape == (2, 32, 32, 3)


def test_in_the_mirror_the_same_happens():
    """Played in the simulator: mirrored start, mirrored actions, mirrored states; coverage is what it was."""
    env, image = PushTEnv(PushTConfig()), PushTEnv(PushTConfig())
    starts = np.array([[150.0, 250, 230, 300, 0.4], [300.0, 330, 280, 240, 2.0]])
    moves = np.random.default_rng(3).uniform(150, 360, (2, 15, 2)).astype(np.float32)
    for start, actions in zip(starts, moves, strict=True):
        mirrored, other = image.mirrored({"state": start[None]}, actions)
        for each, state in ((env, start), (image, mirrored["state"][0])):
            each.reset(seed=0)
            envs.pusht.place(each._raw, state)
        for action, reflected in zip(actions, other, strict=True):
            covered, again = env.step(action)[4]["coverage"], image.step(reflected)[4]["coverage"]
            assert covered == pytest.approx(again, abs=1e-6)
        expected = image.mirrored({"state": env._raw.get_obs()[None]}, actions[:1])[0]["state"][0]
        found = image._raw.get_obs()
        np.testing.assert_allclose(found[:4], expected[:4], atol=1e-4)
        assert np.cos(found[4] - expected[4]) == pytest.approx(1)
        assert not np.allclose(found[2:4], mirrored["state"][0][2:4], atol=1)  # the block has been moved


def test_each_episode_is_followed_by_its_mirror_image(tmp_path):
    data, world = recorded(tmp_path / "set.zarr"), PushTEnv(PushTConfig())
    seen = Observed(data, world.features, world.observed, world.version, world.mirrored)
    assert seen.lengths == [5, 5, 7, 7]
    np.testing.assert_array_equal(seen.read(2).action, data.read(1).action)
    np.testing.assert_array_equal(seen.read(3).action, 512 - data.read(1).action[:, ::-1])
    np.testing.assert_allclose(seen.read(3).observation["agent"], 512 - seen.read(2).observation["agent"][:, ::-1])
    with pytest.raises(ValueError, match="detour has no mirror image that is the same task"):
        envs.make(envs.DetourConfig()).mirrored({"state": np.zeros((1, 5))}, np.zeros((1, 2)))


def test_train_takes_the_recorded_set_as_the_world_sees_it(tmp_path):
    data = recorded(tmp_path / "set.zarr")
    config = compose(["experiment=pusht", f"data.path={data.path}", "data.mirror=true"])
    (episodes, unseen), world = train.demonstrations(config), PushTEnv(PushTConfig())
    assert unseen is None  # the world judges
    assert (len(episodes), episodes.spec) == (4, world.features)
    source = train.provenance(config, episodes)
    assert (source.env["kind"], source.demonstrations) == ("pusht", episodes.hash())
    with pytest.raises(ValueError, match=r"data.mirror is for recorded demonstrations"):
        train.demonstrations(compose(["env=detour", "data.mirror=true"]))
    with pytest.raises(ValueError, match=r"there are no demonstrations at .*nowhere"):
        train.demonstrations(compose(["env=pusht", f"data.path={tmp_path}/nowhere"]))


def test_what_cannot_be_observed_is_refused(tmp_path):
    data, world = recorded(tmp_path / "set.zarr"), PushTEnv(PushTConfig())
    with pytest.raises(ValueError, match=r"reads recorded demonstrations from 'state' \(N, 5\).*got other \(1, 5\)"):
        Observed(
            ReplayZarrDataset(tmp_path / "set.zarr", {"other": "state"}, rate_hz=10), world.features, world.observed, ""
        )
    with pytest.raises(ValueError, match="detour cannot observe recorded state; env=none trains"):
        envs.make(envs.DetourConfig()).observed({"state": np.zeros((1, 5))})
    fast = ReplayZarrDataset(tmp_path / "set.zarr", rate_hz=20)
    with pytest.raises(ValueError, match="has 20 steps a second, the world 10"):
        Observed(fast, world.features, world.observed, "")
    arm = replace(world.features, action=Feature((4,), "float32", "m"))
    with pytest.raises(ValueError, match=r"actions of shape \(2,\), the world takes \(4,\)"):
        Observed(data, arm, world.observed, "")


def test_a_missing_package_names_the_extra(monkeypatch):
    envs.pusht._simulator.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "gym_pusht"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gym_pusht", None)
    with pytest.raises(ImportError, match=r"env=pusht needs its extra: pip install 'flowhand\[pusht\]'"):
        PushTEnv(PushTConfig())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"observation": "keypoint"}, "unknown observation 'keypoint'.*keypoints"),
        ({"camera_size": 513}, "camera_size is 513, expected 1 to 512 pixels"),
        ({"max_steps": 0}, "max_steps is 0, expected 1 or more"),
    ],
)
def test_a_wrong_configuration_is_one_line(wrong, message):
    with pytest.raises(ValueError, match=message):
        PushTConfig(**wrong)


@HUMAN
def test_the_human_frames_are_ours_but_for_single_points_on_edges():
    data, world = ReplayZarrDataset(DATA), PushTEnv(PushTConfig(observation="image"))
    episode = data.read(0, 0, 10)
    states = episode.observation["state"].astype(float)

    def gap(states: np.ndarray) -> float:
        drawn = world.observed({"state": states})["image"]
        return float((np.abs(drawn.astype(int) - episode.observation["img"]).max(axis=-1) > 8).mean())

    assert gap(states) < 0.005
    assert gap(states + np.array([0, 0, 6, 0, 0])) > 4 * gap(states)  # the block a pixel further in the image


@HUMAN
def test_the_human_actions_lead_from_state_to_state():
    """At the first step, where the disc is at rest; later the recorded states do not say how fast it is."""
    data = ReplayZarrDataset(DATA).select(["state"])
    simulator = cast(Any, Simulator)(obs_type="state")
    for number in range(0, 200, 40):
        episode = data.read(number, 0, 2)
        simulator.reset(seed=0)
        envs.pusht.place(simulator, episode.observation["state"][0])
        after = simulator.step(episode.action[0].astype(float))[0]
        expected = episode.observation["state"][1]
        np.testing.assert_allclose(after[:2], expected[:2], atol=1e-3)
        np.testing.assert_allclose(after[2:4], expected[2:4], atol=0.5)  # touched already, it keeps a memory of that
