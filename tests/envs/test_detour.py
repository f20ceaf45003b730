"""The task with two right answers: both are taken, both are right, and their mean is wrong."""

from functools import partial

import numpy as np
import pytest
from scipy.stats import binomtest

import envs
from envs.detour import DetourConfig, DetourEnv
from flowhand.evaluation.rollout import rollout


@pytest.fixture(scope="module")
def env():
    return DetourEnv(DetourConfig())


def test_the_demonstrator_solves_it_on_either_side():
    records = rollout(partial(envs.make, DetourConfig()), "expert", range(100), n_envs=4)
    assert all(record.success for record in records)
    left = sum(record.mode == "left" for record in records)
    assert binomtest(left, 100, 0.5).pvalue > 0.01
    assert {record.mode for record in records} == {"left", "right"}


def test_the_side_cannot_be_seen(env):
    """From the observation alone, nobody can tell on which side the demonstrator will pass."""
    sides, starts = [], []
    for seed in range(200):
        observation, _ = env.reset(seed=seed)
        starts.append([observation["state"][1], observation["goal"][1]])
        sides.append(env.expert.side)
    correlation = np.corrcoef(np.array(starts).T, sides)[-1, :2]
    assert np.abs(correlation).max() < 0.2


def test_the_mean_of_both_ways_touches_the_pillar(env):
    env.reset(seed=0)
    info, terminated = {}, False
    while not terminated:
        _, _, terminated, truncated, info = env.step(np.array([0.4, 0.0], np.float32))
        assert not truncated
    assert info["failure"] == "touched the pillar"
    assert not info["success"]


def test_the_seed_fixes_everything(env):
    def run(seed):
        trace = [env.reset(seed=seed)[0]["state"]]
        info = {"expert_observation": env._all()}
        for _ in range(20):
            observation, *_, info = env.step(env.expert(info["expert_observation"]))
            trace.append(observation["state"])
        return np.array(trace)

    first = run(3)
    np.testing.assert_array_equal(run(np.uint8(3)), first)
    with pytest.raises(ValueError, match="seed is True, expected an integer"):
        run(True)
    run(4)
    np.testing.assert_array_equal(run(3), first)
    assert not np.array_equal(run(4)[0], first[0])


def test_velocity_follows_the_command(env):
    """A servo of gain kv on a mass m follows with the time constant m / kv = 50 ms."""
    env.reset(seed=0)
    speeds = [env.step(np.array([0.2, 0.0]))[0]["state"][2] for _ in range(6)]
    times = 0.05 * np.arange(1, 7)
    np.testing.assert_allclose(speeds, 0.2 * (1 - np.exp(-times / 0.05)), rtol=0.06)


def test_actions_are_clipped(env):
    def after(action):
        env.reset(seed=0)
        return env.step(np.array(action, np.float32))[0]["state"]

    np.testing.assert_array_equal(after([9.0, -9.0]), after([0.5, -0.5]))


@pytest.mark.parametrize(("field", "value"), [("max_steps", 0), ("image_size", 0), ("image_size", 481)])
def test_bad_settings_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        DetourConfig(**{field: value})
