import numpy as np
import pytest

from flowhand.contracts.data.episode import SEED_LIMIT, Episode
from flowhand.contracts.features import Feature, Spec

STEPS = 5


def feature(shape, dtype="float32", low=None, high=None):
    return {"shape": shape, "dtype": dtype, "unit": "m", "low": low, "high": high}


FEATURES = {
    "observation": {"state": feature([3]), "image": feature([4, 6, 3], "uint8")},
    "action": feature([2], low=[-1, -1], high=[1, 1]),
    "control_dt_s": 0.05,
}
SPEC = Spec.from_dict(FEATURES)


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
    episode.validate(SPEC)
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
        episode.validate(SPEC)


def test_every_dtype_and_the_absence_of_a_period_are_checked():
    """Text, depth, integers and doubles as real data sets have them; one decision per answer of the world."""
    spec = Spec(
        {
            "state": Feature((2,), "float64", "rad", names=("elbow", "wrist"), wraps=(1,)),
            "depth": Feature((2, 3), "uint16", "mm", kind="depth", camera="wrist"),
            "said": Feature((1,), "str", ""),
        },
        Feature((1,), "int64", "", choices=(4,)),
        None,
    )
    observation = {
        "state": np.zeros((3, 2)),
        "depth": np.full((3, 2, 3), 60_000, np.uint16),
        "said": np.array([["push"], ["it"], ["\u00fcber"]]),
    }
    steps = np.zeros(3, np.float32), np.zeros(3, bool)
    episode = Episode(observation, np.zeros((3, 1), np.int64), *steps, task="push", seed=0, control_dt_s=None)
    episode.validate(spec)
    episode.observation["said"] = np.zeros((3, 1), np.int64)
    with pytest.raises(ValueError, match="'said' has dtype int64 from step 0 on: expected str"):
        episode.validate(spec)
