import copy

import numpy as np
import pytest

from flowhand.contracts.episode import SEED_LIMIT, Episode, check_features

STEPS = 5


def feature(shape, dtype="float32", low=None, high=None):
    return {"shape": shape, "dtype": dtype, "unit": "m", "low": low, "high": high}


FEATURES = {
    "observation": {"state": feature([3]), "image": feature([4, 6, 3], "uint8")},
    "action": feature([2], low=[-1, -1], high=[1, 1]),
    "control_dt_s": 0.05,
}


def make_episode():
    return Episode(
        observation={"state": np.ones((STEPS, 3), np.float32), "image": np.zeros((STEPS, 4, 6, 3), np.uint8)},
        action=np.zeros((STEPS, 2), np.float32),
        reward=np.zeros(STEPS, np.float32),
        success=np.zeros(STEPS, bool),
        task="reach",
        seed=3,
        control_dt_s=0.05,
    )


def test_a_valid_episode_passes_and_has_a_length():
    episode = make_episode()
    episode.validate(FEATURES)
    assert len(episode) == STEPS


def set_nan(episode):
    episode.observation["state"][3, 1] = np.nan


def set_infinite_action(episode):
    episode.action[2, 0] = -np.inf


def set_infinite_reward(episode):
    episode.reward[4] = np.inf


def empty(episode):
    episode.action = episode.action[:0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (set_nan, r"observation 'state' is nan at step 3, dimension 1"),
        (set_infinite_action, r"action is -inf at step 2, dimension 0"),
        (set_infinite_reward, r"reward is inf at step 4: "),
        (empty, r"action has no step 0.*empty"),
        (lambda e: e.observation.update(state=e.observation["state"][:4]), r"'state' has 4 steps .* part at step 4"),
        (lambda e: setattr(e, "success", np.zeros(STEPS + 2, bool)), r"success has 7 steps .* part at step 5"),
        (lambda e: setattr(e, "reward", np.zeros(STEPS)), r"reward has dtype float64 .* expected float32"),
        (lambda e: setattr(e, "success", np.zeros(STEPS, np.float32)), r"success has dtype float32 .* expected bool"),
        (lambda e: setattr(e, "action", np.zeros((STEPS, 3), np.float32)), r"action has shape \(3,\) .* \(2,\)"),
        (lambda e: setattr(e, "action", np.float32(1)), r"action is a float32: expected a numpy array"),
        (lambda e: setattr(e, "action", np.array(1, np.float32)), r"action has shape \(\) "),
        (lambda e: e.observation.update(image=np.zeros((STEPS, 6, 4, 3), np.uint8)), r"'image' has shape \(6, 4, 3\)"),
        (lambda e: e.observation.pop("image"), r"observation misses key 'image'.*\['image', 'state'\]"),
        (lambda e: e.observation.update(goal=np.zeros(STEPS)), r"observation has unknown key 'goal'"),
        (lambda e: setattr(e, "seed", -1), r"seed is -1"),
        (lambda e: setattr(e, "seed", SEED_LIMIT), r"seed is 1000000: .*evaluation"),
        (lambda e: setattr(e, "seed", 1.0), r"seed is 1.0: "),
        (lambda e: setattr(e, "seed", True), r"seed is True: "),
        (lambda e: setattr(e, "task", 3), r"task is 3"),
        (lambda e: setattr(e, "control_dt_s", 0.02), r"control_dt_s is 0.02 s, but the features say 0.05 s"),
    ],
)
def test_a_damaged_episode_is_refused_with_the_place(damage, message):
    episode = make_episode()
    damage(episode)
    with pytest.raises(ValueError, match=message):
        episode.validate(FEATURES)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: f.pop("action"), r"features misses 'action'"),
        (lambda f: f.update(extra=1), r"features has unknown 'extra'"),
        (lambda f: f.update(observation={}), r"observation is \{\}: expected at least one"),
        (lambda f: f.update(control_dt_s=0), r"control_dt_s is 0"),
        (lambda f: f.update(action=None), r"action is None"),
        (lambda f: f["action"].pop("unit"), r"action misses 'unit'"),
        (lambda f: f["action"].update(low=[-1]), r"action has low \[-1\]"),
        (lambda f: f["action"].update(high=[1, float("inf")]), r"action has high \[1, inf\]"),
        (lambda f: f["action"].update(shape=[0]), r"action has shape \[0\]"),
        (lambda f: f["action"].update(shape=2), r"action has shape 2"),
        (lambda f: f["observation"]["state"].update(dtype="float31"), r"'state' has dtype 'float31'"),
        (lambda f: f["observation"]["state"].update(dtype="object"), r"'state' has dtype 'object'"),
    ],
)
def test_damaged_features_are_refused_with_the_entry(damage, message):
    features = copy.deepcopy(FEATURES)
    damage(features)
    with pytest.raises(ValueError, match=message):
        check_features(features)
