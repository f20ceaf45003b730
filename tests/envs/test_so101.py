"""The arm like the SO-101: its expert solves it from anywhere, with MuJoCo's kinematics; the picture shows the cube."""

from functools import partial

import numpy as np
import pytest

import envs
from envs.so101 import AREA, HALF, NAMES, SO101Config, SO101Env
from envs.so101_expert import SO101Expert, joints, place
from flowhand.evaluation.rollout import rollout

STATE = SO101Config(observes="state")


@pytest.fixture(scope="module")
def env():
    return SO101Env(STATE)


def test_the_expert_solves_it():
    records = rollout(partial(envs.make, STATE), "expert", range(1_000_000, 1_000_020), n_envs=4)
    assert sum(record.success for record in records) >= 19


def test_the_experts_kinematics_are_those_of_the_model(env):
    random = np.random.default_rng(0)
    for _ in range(20):
        wanted = random.uniform([-1, 0.12, 0.01, -1, 0.1], [1, 0.24, 0.09, 1, 1])
        env._data.qpos[env._joints] = joints(*wanted)
        env._mujoco.mj_forward(env._model, env._data)
        pan, reach, height = wanted[:3]
        tip = env._data.site("tip")
        np.testing.assert_allclose(tip.xpos, [reach * np.cos(pan), reach * np.sin(pan), height], atol=1e-6)
        np.testing.assert_allclose(tip.xmat.reshape(3, 3)[:, 2], [0, 0, 1], atol=1e-6)  # the tool points down
        np.testing.assert_allclose(place(joints(*wanted)), wanted, atol=1e-9)


def test_the_expert_goes_on_after_somebody_else_and_picks_the_cube_up_again(env):
    """As in a take-over: a fresh expert, the arm in the middle of a motion, the cube pushed away after the grasp."""
    _, info = env.reset(seed=5)
    for _ in range(38):
        _, _, _, _, info = env.step(env.expert(info["expert_observation"]))
    assert info["expert_observation"][8] > HALF + 0.005  # lifted
    env._data.qpos[env._cube : env._cube + 3] = [0.2, -0.02, HALF]
    env._data.qvel[:] = 0
    expert, first = SO101Expert(env.box), env.angles
    told = []
    for _ in range(200):
        told.append(expert(info["expert_observation"]))
        _, _, _, _, info = env.step(told[-1])
        if info["success"]:
            break
    assert info["success"]
    assert np.abs(told[0] - first).max() < 0.35  # from where the arm was, without a jump


def test_success_is_a_cube_in_the_box_that_nothing_holds(env):
    _, info = env.reset(seed=0)
    while not info["success"]:
        *_, info = env.step(env.expert(info["expert_observation"]))
    x, y, z = info["expert_observation"][6:9]
    assert max(abs(x - env.box[0]), abs(y - env.box[1])) < 0.045
    assert z < 0.04
    env.reset(seed=0)
    env._data.qpos[env._cube : env._cube + 3] = [*env.box, 0.2]
    assert not env.step(env.angles)[4]["success"]  # over it, and falling


def test_cubes_lie_all_over_the_area_and_a_seed_says_where(env):
    cubes = np.array([env.reset(seed=seed)[1]["expert_observation"][6:10] for seed in range(200)])
    np.testing.assert_allclose([cubes[:, :2].min(0), cubes[:, :2].max(0)], AREA, atol=0.004)
    assert np.ptp(cubes[:, 3]) > 0.95 * np.pi / 2
    assert np.array_equal(env.reset(seed=3)[1]["expert_observation"][6:10], cubes[3])


def test_a_policy_sees_joints_and_one_picture_and_nothing_else():
    world = SO101Env(SO101Config(pixels=64))
    assert set(world.features.observation) == {"state", "front"}
    assert world.features.observation["state"].names == world.features.action.names == NAMES
    assert world.features.control_dt_s == pytest.approx(1 / 30)
    try:
        seen = []
        for seed in range(8):
            observation, info = world.reset(seed=seed)
            red = (observation["front"].astype(int) @ [1, -1, -1]) > 60
            seen.append([*np.argwhere(red).mean(0), *info["expert_observation"][6:8]])
    except envs.RenderingUnavailable as error:
        pytest.skip(str(error))
    finally:
        world.close()
    rows, columns, x, y = np.array(seen).T
    assert np.corrcoef(rows, x)[0, 1] > 0.95  # nearer to the camera is lower in the picture
    assert np.corrcoef(columns, y)[0, 1] > 0.95
