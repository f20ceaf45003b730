"""The adapter equals unmodified gym-aloha without its pictures, a seed fixes the episode, and the expert solves it."""

import functools
import importlib.util
import sys
from dataclasses import asdict

import numpy as np
import pytest

import envs
from conf.cli import compose
from envs import AlohaConfig, PerturbConfig, RenderingUnavailable
from envs.aloha import TASKS, AlohaEnv
from envs.aloha_expert import Kinematics
from envs.mujoco import load_mujoco
from flowhand.commands.collect import attempt
from flowhand.demos.config import DataConfig
from flowhand.evaluation.rollout import rollout

load_mujoco()  # which chooses the backend, before dm_control imports it
pytest.importorskip("gym_aloha", reason="the extra is not installed: pip install 'flowhand[aloha]'")

OBJECTS = {"transfer_cube": ("cube",), "insertion": ("peg", "socket")}


@pytest.fixture(scope="module", params=sorted(TASKS))
def env(request):
    env = AlohaEnv(AlohaConfig(task=request.param))
    yield env
    env.close()


@pytest.fixture(scope="module")
def transfer():
    env = AlohaEnv(AlohaConfig())
    yield env
    env.close()


def unmodified(task: str):
    """Build gym-aloha's own environment; only what it renders, which no robot of this test sees, is not drawn."""
    from gym_aloha.env import AlohaEnv as Original  # pyright: ignore[reportMissingImports]

    original = Original(task=task, obs_type="pixels_agent_pos")
    original._env.physics.render = lambda **_: np.zeros((1, 1, 3), np.uint8)
    return original


def act(env: AlohaEnv, info: dict) -> np.ndarray:
    assert env.expert is not None
    return env.expert(info["expert_observation"])


def disturb(env: AlohaEnv) -> None:
    """Leave as much behind as an episode can that moved everything."""
    _, info = env.reset(seed=3)
    for _ in range(50):
        *_, info = env.step(act(env, info))


def test_equals_unmodified_gym_aloha_bit_for_bit_even_after_other_episodes(env):
    original, rewards = unmodified(env.task), set()
    disturb(env)
    expected, _ = original.reset(seed=1_000_007)
    observation, info = env.reset(seed=1_000_007)
    for _ in range(120):
        data = original._env.physics.data
        np.testing.assert_array_equal(env._data.qpos, data.qpos)
        np.testing.assert_array_equal(env._data.qvel, data.qvel)
        np.testing.assert_array_equal(observation["state"], expected["agent_pos"].astype(np.float32))
        poses = np.concatenate([observation[name] for name in OBJECTS[env.task]])
        np.testing.assert_array_equal(poses, data.qpos[16:].astype(np.float32))
        action = act(env, info)
        expected, expected_reward, terminated, _, _ = original.step(action)
        observation, reward, _, _, info = env.step(action)
        assert reward == expected_reward
        assert info["success"] == terminated
        assert info["stage"] == TASKS[env.task].stages[int(reward)]
        rewards.add(reward)
    assert {0, 2, 4} <= rewards


def test_every_seed_is_a_start_of_its_own_within_the_range(env):
    starts = np.array([env.reset(seed=seed)[1]["expert_observation"][16:] for seed in range(40)])
    assert len({start.tobytes() for start in starts}) == 40
    for i, middle in enumerate(np.reshape(TASKS[env.task].middle, (-1, 2))):
        places = starts[:, 7 * i : 7 * i + 2] - middle
        half = (0.1, 0.1) if env.task == "transfer_cube" else (0.05, 0.1)
        assert (np.abs(places) <= half).all()
        assert (places.max(0) > np.multiply(half, 0.8)).all()
        assert (places.min(0) < np.multiply(half, -0.8)).all()


def test_the_start_depends_on_the_seed_alone(env, monkeypatch):
    from gym_aloha.tasks import sim  # pyright: ignore[reportMissingImports]

    _, first = env.reset(seed=5)
    disturb(env)
    monkeypatch.setattr(sim, "BOX_POSE", [np.zeros(7)])  # gym-aloha's global, which another environment may have set
    np.random.seed(1)  # noqa: NPY002  (and the generator that it may fall back to)
    _, again = env.reset(seed=5)
    np.testing.assert_array_equal(first["expert_observation"], again["expert_observation"])
    env.reset(seed=5)
    drawn = env.reset()[1]["expert_observation"]
    assert (drawn != first["expert_observation"]).any()
    env.reset(seed=5)
    np.testing.assert_array_equal(env.reset()[1]["expert_observation"], drawn)


def test_a_wider_start_has_the_same_centre_and_draws(env):
    middle = np.zeros((len(OBJECTS[env.task]), 7))
    middle[:, :2] = np.reshape(TASKS[env.task].middle, (-1, 2))
    before = env.reset(seed=9)[1]["expert_observation"][16:].reshape(-1, 7) - middle
    env.widen_start(1.5)
    after = env.reset(seed=9)[1]["expert_observation"][16:].reshape(-1, 7) - middle
    env.widen_start(1.0)
    np.testing.assert_allclose(after[:, :2], 1.5 * before[:, :2], atol=1e-12)
    np.testing.assert_array_equal(after[:, 2:], before[:, 2:])


@pytest.mark.parametrize("seed", [1_000_000, 1_000_001])
def test_the_expert_succeeds_inside_the_bounds_and_smoothly(env, seed):
    low, high = env.features.action.bounds()
    _, info = env.reset(seed=seed)
    actions, success = [], False
    while not success and len(actions) < 200:
        actions.append(act(env, info))
        success = env.step(actions[-1])[4]["success"]
        info = {"expert_observation": env._data.qpos.copy()}
    assert success
    assert (np.array(actions) >= low).all()
    assert (np.array(actions) <= high).all()
    arms = [i for i in range(14) if i not in (6, 13)]
    assert np.abs(np.diff(actions, axis=0))[:, arms].max() < 0.15  # rad per control step


@pytest.mark.slow
def test_the_expert_mostly_succeeds_with_the_noise_of_the_recipe(env):
    noise = compose(["experiment=aloha"]).data.noise
    episodes = [attempt(env, DataConfig(noise=noise), seed) for seed in range(1_000_100, 1_000_120)]
    assert sum(episode is not None for episode in episodes) >= 18


def test_a_dropped_cube_is_picked_up_again(transfer):
    _, info = transfer.reset(seed=1_000_002)
    for _ in range(70):
        *_, info = transfer.step(act(transfer, info))
    assert info["stage"] == "cube lifted by the right gripper"
    transfer._data.qpos[16:19] = (0.05, 0.45, 0.05)
    stages = []
    for _ in range(200):
        *_, info = transfer.step(act(transfer, info))
        stages.append(info["stage"])
    assert "cube not touched" in stages
    assert stages[-1] == "cube handed over"


def test_inverse_kinematics_reaches_its_aim(transfer):
    kinematics = Kinematics(load_mujoco(), transfer._model)
    start = np.tile([0, -0.96, 1.16, 0, -0.3, 0], (2, 1)).astype(float)
    aims = [np.array([-0.15, 0.55, 0.2, 1.3, 0.3]), np.array([0.2, 0.45, 0.15, np.pi / 2, -0.2])]
    angles = start
    for _ in range(40):
        angles = kinematics.angles(angles, aims)
    for side, hand in enumerate(kinematics.hands(angles)):
        goal = kinematics.goal(side, aims[side])
        np.testing.assert_allclose(hand.position, goal.position, atol=1e-8)
        np.testing.assert_allclose(hand.axes, goal.axes, atol=1e-8)
        np.testing.assert_allclose(np.linalg.det(goal.axes), 1)
        assert hand.pitch(side) == pytest.approx(aims[side][3], abs=1e-6)


def test_the_features_describe_what_comes_out(env):
    observation, _ = env.reset(seed=0)
    assert set(observation) == set(env.features.observation) == {"state", *OBJECTS[env.task]}
    for name, feature in env.features.observation.items():
        assert (observation[name].shape, str(observation[name].dtype)) == (feature.shape, feature.dtype)
    assert env.features.control_dt_s == 0.02
    action = env.features.action
    assert action.names == env.features.observation["state"].names
    assert (action.names[6], action.low[6], action.high[6]) == ("left_arm_gripper", 0, 1)
    shoulder = env._model.joint("vx300s_right/shoulder").range
    assert (action.low[8], action.high[8]) == pytest.approx(tuple(shoulder))


def test_a_disturbed_episode_follows_from_its_seed_alone():
    config = PerturbConfig(push=20.0, push_interval_s=0.1, mass_scale=1.5, friction_scale=0.8, initial_shift=0.5)
    disturbed, bare = envs.make(AlohaConfig(), config), envs.make(AlohaConfig())

    def ends(env: envs.Env, seed: int) -> np.ndarray:
        observation, _ = env.reset(seed=seed)
        for _ in range(15):
            observation, *_ = env.step(np.zeros(14))
        return observation["cube"]

    first = ends(disturbed, 1)
    assert (first != ends(bare, 1)).any()
    assert (first != ends(disturbed, 2)).any()
    np.testing.assert_array_equal(ends(disturbed, 1), first)


def test_records_do_not_depend_on_how_many_run_at_once():
    make = functools.partial(envs.make, AlohaConfig(max_steps=12))

    def told(n_envs: int) -> list[dict]:
        records = rollout(make, "expert", range(1_000_000, 1_000_003), n_envs=n_envs)
        return [{k: v for k, v in asdict(record).items() if not k.endswith("_s")} for record in records]

    assert told(1) == told(2)


def test_the_episode_is_truncated_at_max_steps():
    env = AlohaEnv(AlohaConfig(max_steps=2))
    env.reset(seed=0)
    assert [env.step(np.zeros(14))[3] for _ in range(2)] == [False, True]


def look(config: AlohaConfig, seed: int):
    env = AlohaEnv(config)
    try:
        return env, env.reset(seed=seed)[0]
    except RenderingUnavailable as error:
        pytest.skip(str(error))


def test_pixels_hold_joints_and_cameras_and_depend_on_the_seed_alone():
    config = AlohaConfig(observes="pixels", cameras=["top", "front_close"], pixels=32, image_size=64)
    env, first = look(config, 7)
    assert set(first) == {"state", "top", "front_close"}
    assert {name: f.camera for name, f in env.features.observation.items()} == {
        "state": "",
        "top": "top",
        "front_close": "front_close",
    }
    env.step(np.full(14, 0.5))
    again, other = env.reset(seed=7)[0], env.reset(seed=8)[0]
    for camera in config.cameras:
        assert first[camera].shape == (32, 32, 3)
        np.testing.assert_array_equal(first[camera], again[camera])
    assert (first["top"] != other["top"]).any()  # the cube lies elsewhere
    assert env.render().shape == (64, 64, 3)


@pytest.mark.parametrize("camera", ["top", "angle", "front_close", "left_pillar", "right_pillar"])
def test_pictures_are_upright(camera):
    """The cube is where a projection from the camera's own frame puts it, in a picture whose top is up in the world."""
    env, _ = look(AlohaConfig(observes="pixels", cameras=[camera], pixels=96), 3)
    data = env._data
    data.qpos[16:19] = (0.05, 0.6, 0.1)  # in the sight of every camera
    load_mujoco().mj_forward(env._model, data)
    axes = data.camera(camera).xmat.reshape(3, 3)
    assert axes[2, 1] > -0.1
    sees = (data.body("box").xpos - data.camera(camera).xpos) @ axes  # x right, y up, looking along -z
    half = np.tan(np.radians(env._model.camera(camera).fovy[0]) / 2)
    column, row = 48 * (1 + sees[0] / -sees[2] / half), 48 * (1 - sees[1] / -sees[2] / half)
    picture = env._eyes.picture(camera).astype(int)
    red = (picture[..., 0] > 90) & (picture[..., 0] > 2 * picture[..., 1])
    rows, columns = np.nonzero(red)
    assert abs(rows.mean() - row) < 3
    assert abs(columns.mean() - column) < 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "transfer"}, "unknown ALOHA task 'transfer': did you mean transfer_cube"),
        ({"observes": "pixel"}, "observes is 'pixel', expected state or pixels"),
        ({"cameras": []}, r"cameras is \[\], expected one or more"),
        ({"cameras": ["top", "top"]}, "all different"),
        ({"cameras": ["wrist"]}, "unknown camera 'wrist': "),
        ({"max_steps": 0}, "max_steps is 0, expected 1 or more"),
        ({"pixels": 481}, "pixels is 481, expected 1 to 480"),
    ],
)
def test_a_wrong_config_is_refused_in_one_line(fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        AlohaConfig(**fields)
    assert "\n" not in str(caught.value)


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    assert importlib.util.find_spec("gym_aloha")
    monkeypatch.setitem(sys.modules, "gym_aloha", None)
    with pytest.raises(ImportError, match=r"pip install 'flowhand\[aloha\]'"):
        envs.make(AlohaConfig())
