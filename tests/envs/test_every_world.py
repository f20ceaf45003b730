"""Every entry of envs.ENVS keeps the promises that evaluation is built on: seeds, spaces, restored starts, records."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

import envs
from flowhand.evaluation.rollout import rollout
from tests.envs.test_check_env import WORLDS, require_installed

STEPS = 12
CONFIGS = [config for each in WORLDS.values() for config in each]


@pytest.fixture(params=CONFIGS, ids=envs.name_of)
def config(request):
    require_installed(request.param)
    succeeds = {"success_return": 9.0} if request.param.kind == "gymnasium" else {}
    return replace(request.param, **succeeds)


@pytest.fixture
def world(config):
    env = envs.make(config)
    yield env
    env.close()


def actions(env, seed, count=STEPS):
    """Actions (count, A) within the space, each a choice where there are choices."""
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(count)]


def episode(env, seed, given):
    """All that the world says in an episode: the observations, rewards, ends and successes, until it is over."""
    observation, _ = env.reset(seed=seed)
    told = [{name: value.copy() for name, value in observation.items()}]
    for action in given:
        observation, reward, terminated, truncated, info = env.step(action)
        told.append({name: value.copy() for name, value in observation.items()})
        told.append({"ends": np.array([reward, terminated, truncated, info["success"]])})
        if terminated or truncated:
            break
    return told


def require_equal(one, other):
    assert len(one) == len(other)
    for mine, yours in zip(one, other, strict=True):
        assert mine.keys() == yours.keys()
        for name in mine:
            np.testing.assert_array_equal(mine[name], yours[name])


def test_a_seed_fixes_the_episode_whatever_came_before(world, config):
    given = actions(world, 0)
    first = episode(world, 7, given)
    episode(world, 8, given[: STEPS // 2])  # and is left in its middle
    require_equal(episode(world, 7, given), first)
    fresh = envs.make(config)
    require_equal(episode(fresh, 7, given), first)
    fresh.close()


def test_another_seed_is_another_start(world):
    starts = [world.reset(seed=seed)[0] for seed in (7, 8)]
    starts = [np.concatenate([value.ravel() for value in start.values()]).copy() for start in starts]
    assert not np.array_equal(*starts)


def test_what_it_shows_and_takes_is_what_its_features_say(world):
    observation, _ = world.reset(seed=3)
    terminated = truncated = False
    for action in [None, *actions(world, 1)]:
        if action is not None:
            observation, _, terminated, truncated, _ = world.step(action)
        assert type(terminated) is type(truncated) is bool
        assert world.observation_space.contains(observation)
        for name, feature in world.features.observation.items():
            assert (observation[name].shape, observation[name].dtype) == (feature.shape, feature.dtype)
        if terminated or truncated:
            break
    with pytest.raises((ValueError, AssertionError)):
        world.step(np.zeros(world.features.action.size + 1, np.float32))


class Babbling:
    """Acts by the seed and the step alone."""

    def __init__(self, env):
        self.env, self.now = env, {}

    def reset(self, lane, seed):
        self.now[lane] = iter(actions(self.env, seed))

    def act(self, observations):
        return {lane: next(self.now[lane]) for lane in observations}


class Short:
    """A world whose episodes are over after a few steps, and whose rewards tell every observation."""

    def __init__(self, config):
        self._env = envs.make(config)

    def __getattr__(self, name):
        return getattr(self._env, name)

    def reset(self, *, seed=None):
        self._steps = 0
        return self._env.reset(seed=seed)

    def step(self, action):
        self._steps += 1
        observation, _, terminated, truncated, info = self._env.step(action)
        reward = float(sum(value.sum(dtype=np.float64) for value in observation.values()))
        return observation, reward, terminated, truncated or self._steps >= STEPS, info


@pytest.mark.parametrize("agent", ["babbling", "expert"])
def test_records_are_equal_for_one_world_and_for_four(world, config, agent):
    if agent == "expert" and world.expert is None:
        pytest.skip("it has no scripted expert")
    found = []
    for n_envs in (1, 4):
        acting = Babbling(world) if agent == "babbling" else agent
        make_env: Any = partial(Short, config)
        records = rollout(make_env, acting, [5, 6, 7, 8, 9, 10], n_envs=n_envs)
        found.append([replace(record, wall_s=0.0) for record in records])
    assert found[0] == found[1]
    assert len({record.return_ for record in found[0]}) > 1
