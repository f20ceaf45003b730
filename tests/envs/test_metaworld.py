"""The adapter equals unmodified Meta-World, a seed fixes the episode, and the goal is shown or hidden completely."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import envs
from envs import MetaWorldConfig, RenderingUnavailable
from envs.metaworld import TASKS, MetaWorldEnv
from envs.mujoco import load_mujoco
from flowhand.commands.collect import _settings
from flowhand.contracts import strict
from tests.cases import some

load_mujoco()  # which chooses the backend, before metaworld imports it
pytest.importorskip("metaworld")


@pytest.fixture(scope="module")
def pick_place():
    env = MetaWorldEnv(MetaWorldConfig(task="pick-place-v3"))
    yield env
    env.close()


def unmodified(task: str, seed: int):
    """Build Meta-World's own class, told to draw start and goal from the seed and to show the goal; no more."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    env = ALL_V3_ENVIRONMENTS[task]()
    env._freeze_rand_vec, env.seeded_rand_vec, env._set_task_called = False, True, True
    env._partially_observable = False
    env.__dict__.pop("sawyer_observation_space", None)
    env.seed(seed)
    return env


def ask_expert(env: MetaWorldEnv, observation: np.ndarray) -> np.ndarray:
    assert env.expert is not None
    return env.expert(observation)


def disturb(env: MetaWorldEnv) -> None:
    """Leave as much behind as two other episodes can: things moved by the expert, then by random pushes."""
    rng = np.random.default_rng(0)
    for seed, steps in ((3, 70), (4, 40)):
        _, info = env.reset(seed=seed)
        push = rng.uniform(-1, 1, 4)
        for _ in range(steps):
            action = ask_expert(env, info["expert_observation"]) if seed == 3 else push
            *_, info = env.step(action)


def assert_equals_unmodified(env: MetaWorldEnv, seed: int, steps: int) -> None:
    reference = unmodified(env.config.task, seed)
    expected, _ = reference.reset()
    observation, info = env.reset(seed=seed)
    np.testing.assert_array_equal(info["expert_observation"], expected)
    for _ in range(steps):
        action = ask_expert(env, expected)
        expected, expected_reward, _, _, expected_info = reference.step(action)
        observation, reward, _, _, info = env.step(action)
        np.testing.assert_array_equal(info["expert_observation"], expected)
        np.testing.assert_array_equal(observation["state"], expected[:18].astype(np.float32))
        np.testing.assert_array_equal(observation["goal"], expected[36:].astype(np.float32))
        assert reward == expected_reward
        assert info["success"] is bool(expected_info["success"])
        assert {name: info[name] for name in expected_info} == expected_info


# Chosen for what their resets do: live views, attributes kept, joints set, bodies moved, contacts in the reward.
TRIED = ["pick-place-v3", "basketball-v3", "window-close-v3", "box-close-v3", "stick-pull-v3"]


@pytest.mark.parametrize("task", some(TRIED, ["pick-place-v3", "stick-pull-v3"]))
def test_equals_unmodified_metaworld_bit_for_bit_even_after_other_episodes(task):
    env = MetaWorldEnv(MetaWorldConfig(task=task))
    disturb(env)
    assert_equals_unmodified(env, seed=11, steps=90)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_task_equals_unmodified_metaworld_and_its_expert_mostly_succeeds(task):
    env = MetaWorldEnv(MetaWorldConfig(task=task))
    disturb(env)
    assert_equals_unmodified(env, seed=12, steps=200)
    assert sum(expert_succeeds(env, seed) for seed in range(4)) >= 2


def expert_succeeds(env: MetaWorldEnv, seed: int) -> bool:
    _, info = env.reset(seed=seed)
    truncated = False
    while not (truncated or info.get("success", False)):
        _, _, _, truncated, info = env.step(ask_expert(env, info["expert_observation"]))
    return info["success"]


def test_the_contacts_are_judged_like_metaworld_does(pick_place):
    from metaworld.sawyer_xyz_env import SawyerXYZEnv

    raw, judged = pick_place._raw, set()
    _, info = pick_place.reset(seed=0)
    for _ in range(70):
        *_, info = pick_place.step(ask_expert(pick_place, info["expert_observation"]))
        for geom in range(raw.model.ngeom):
            expected = SawyerXYZEnv.touching_object(raw, geom)
            assert raw.touching_object(geom) == expected
            judged.add(bool(expected))
    assert judged == {False, True}


def test_sixty_seeds_are_sixty_starts_and_goals(pick_place):
    """More than the 50 goals that Meta-World itself would draw."""
    observations = [pick_place.reset(seed=seed)[0] for seed in range(1_000_000, 1_000_060)]
    assert len({observation["state"].tobytes() for observation in observations}) == 60
    assert len({observation["goal"].tobytes() for observation in observations}) == 60


def test_without_a_seed_a_reset_draws_a_new_start(pick_place):
    pick_place.reset(seed=1)
    first, second = pick_place.reset()[0], pick_place.reset()[0]
    assert not np.array_equal(first["goal"], second["goal"])
    pick_place.reset(seed=1)
    np.testing.assert_array_equal(pick_place.reset()[0]["goal"], first["goal"])


def test_two_environments_of_a_task_do_not_share_their_state(pick_place):
    other = MetaWorldEnv(MetaWorldConfig(task="pick-place-v3"))
    pick_place.reset(seed=1)
    expected = pick_place.step(np.zeros(4))[0]
    pick_place.reset(seed=1)
    other.reset(seed=2)
    other.step(np.ones(4))
    np.testing.assert_array_equal(pick_place.step(np.zeros(4))[0]["state"], expected["state"])


def test_the_goal_is_where_metaworld_measures_success(pick_place):
    observation, info = pick_place.reset(seed=5)
    np.testing.assert_array_equal(observation["goal"], pick_place._raw._target_pos.astype(np.float32))
    assert np.abs(observation["goal"]).max() > 0.5
    after = pick_place.step(np.zeros(4))[0]
    np.testing.assert_array_equal(after["goal"], observation["goal"])
    np.testing.assert_array_equal(info["expert_observation"][36:].astype(np.float32), observation["goal"])


def test_a_hidden_goal_leaves_no_trace(pick_place):
    hidden = MetaWorldEnv(MetaWorldConfig(task="pick-place-v3", goal_visible=False))
    for seed in range(3):
        shown, info = pick_place.reset(seed=seed)
        without, hidden_info = hidden.reset(seed=seed)
        for _ in range(3):
            assert set(without) == set(hidden.features.observation) == {"state"}
            np.testing.assert_array_equal(without["state"], shown["state"])
            assert not np.isin(shown["goal"], without["state"]).any()
            # The expert sees the goal all the same.
            np.testing.assert_array_equal(hidden_info["expert_observation"], info["expert_observation"])
            shown, _, _, _, info = pick_place.step(np.ones(4))
            without, _, _, _, hidden_info = hidden.step(np.ones(4))


def test_the_expert_succeeds(pick_place):
    assert [expert_succeeds(pick_place, seed) for seed in range(4)] == [True] * 4


def test_the_features_describe_what_comes_out(pick_place):
    features = json.loads(json.dumps(pick_place.features.to_dict()))
    observation, _ = pick_place.reset(seed=0)
    assert set(observation) == set(features["observation"])
    for name, feature in features["observation"].items():
        assert list(observation[name].shape) == feature["shape"]
        assert str(observation[name].dtype) == feature["dtype"]
    goals = np.array([pick_place.reset(seed=seed)[0]["goal"] for seed in range(50)])
    low, high = np.float32(features["observation"]["goal"]["low"]), np.float32(features["observation"]["goal"]["high"])
    assert (goals >= low).all()
    assert (goals <= high).all()
    assert features["control_dt_s"] == pytest.approx(0.0125)
    assert features["action"]["shape"] == [4]


def test_actions_beyond_the_range_act_like_the_range(pick_place):
    ends = []
    for scale in (1, 100):
        pick_place.reset(seed=0)
        ends.append([pick_place.step(np.array([scale, -scale, scale, 0]))[0]["state"] for _ in range(5)])
    np.testing.assert_array_equal(ends[0], ends[1])


def test_the_episode_is_truncated_at_max_steps():
    env = MetaWorldEnv(MetaWorldConfig(task="pick-place-v3", max_steps=3))
    env.reset(seed=0)
    assert [env.step(np.zeros(4))[3] for _ in range(3)] == [False, False, True]
    with pytest.raises(ValueError, match="truncated at step 3; call reset"):
        env.step(np.zeros(4))
    env.reset(seed=0)
    assert not env.step(np.zeros(4))[3]


def test_five_hundred_steps_are_possible(pick_place):
    pick_place.reset(seed=0)
    truncated = [pick_place.step(np.zeros(4))[3] for _ in range(500)]
    assert truncated == [False] * 499 + [True]


def test_the_table_lists_metaworlds_tasks():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert set(TASKS) == set(ALL_V3_ENVIRONMENTS)
    assert len(set(TASKS.values())) == len(TASKS) == 50


def test_make_knows_the_adapter(pick_place):
    env = envs.make(MetaWorldConfig(task="pick-place-v3"))
    assert env.task == "pick-place-v3"
    assert env.task_text == "pick up the puck and place it at the goal"
    assert env.version.startswith("metaworld 3.")
    with pytest.raises(ValueError, match=r"unknown kind of env 'meta_world': did you mean metaworld"):
        envs.make(MetaWorldConfig(kind="meta_world"))
    with pytest.raises(ValueError, match="'gymnasium' takes a GymnasiumConfig, got a MetaWorldConfig"):
        envs.make(MetaWorldConfig(kind="gymnasium"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "pick-place-v2"}, "unknown Meta-World task 'pick-place-v2': did you mean pick-place-v3"),
        ({"task": "?"}, "choose one of MT10, MT50, assembly-v3, "),
        ({"max_steps": 501}, "max_steps is 501, expected 1 to 500"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"camera": "corner5"}, "unknown camera 'corner5': did you mean corner"),
        ({"image_size": 481}, "image_size is 481"),
    ],
)
def test_a_wrong_config_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MetaWorldConfig(**fields)


def arm_height(image: np.ndarray) -> float:
    """Return the mean height, in pixels from the lower edge, of what is red: the arm."""
    red, green, blue = (image[..., channel].astype(int) for channel in range(3))
    rows = np.nonzero((red > 2 * green) & (red > 2 * blue) & (red > 80))[0]
    return image.shape[0] - rows.mean()


def render(env: MetaWorldEnv) -> np.ndarray:
    try:
        return env.render()
    except RenderingUnavailable as error:
        pytest.skip(str(error))


def test_images_are_upright_and_follow_the_arm(pick_place):
    pick_place.reset(seed=0)
    low = render(pick_place)
    for _ in range(30):
        pick_place.step(np.array([0, 0, 1, 0]))
    high = pick_place.render()
    assert low.shape == high.shape == (224, 224, 3)
    assert low.dtype == np.uint8
    assert arm_height(high) > arm_height(low) + 3


def test_rendering_changes_nothing_else(pick_place):
    pick_place.reset(seed=0)
    expected = [pick_place.step(np.ones(4))[0]["state"] for _ in range(3)]
    pick_place.reset(seed=0)
    for state in expected:
        render(pick_place)
        np.testing.assert_array_equal(pick_place.step(np.ones(4))[0]["state"], state)


def run_script(script: str, **variables: str) -> subprocess.CompletedProcess:
    script = "import envs\nenv = envs.make(envs.MetaWorldConfig(task='reach-v3'))\nenv.reset(seed=0)\n" + script
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60)


def test_without_a_backend_the_error_names_the_packages():
    result = run_script(
        "try:\n"
        "    env.render()\n"
        "except envs.RenderingUnavailable as error:\n"
        "    assert 'libegl1 libgl1' in str(error) and 'libosmesa6' in str(error), error\n"
        "    print('refused')\n",
        MUJOCO_GL="disable",
    )
    assert (result.stdout, result.stderr) == ("refused\n", "")


def test_an_environment_that_was_not_closed_exits_in_silence(pick_place):
    pick_place.reset(seed=0)
    render(pick_place)  # skips where nothing renders
    result = run_script("print(env.render().shape)")
    assert (result.stdout, result.stderr) == ("(224, 224, 3)\n", "")


@pytest.mark.parametrize(
    ("libraries", "variables", "expected"),
    [
        ({"EGL", "GL", "OSMesa"}, {}, "egl"),
        ({"EGL", "OSMesa"}, {}, "osmesa"),
        (set(), {}, None),
        ({"EGL", "GL"}, {"DISPLAY": ":0"}, None),
        ({"EGL", "GL"}, {"MUJOCO_GL": "osmesa"}, "osmesa"),
    ],
)
def test_the_backend_suits_the_machine(monkeypatch, libraries, variables, expected):
    from envs import mujoco

    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "environ", dict(os.environ))  # what the function sets must not outlive the test
    monkeypatch.setattr(mujoco.ctypes.util, "find_library", lambda name: name if name in libraries else None)
    mujoco.choose_gl_backend()
    assert os.environ.get("MUJOCO_GL") == expected


def test_pixels_hold_what_a_robot_knows_and_depend_on_the_seed_alone():
    config = MetaWorldConfig(task="door-open-v3", observes="pixels", cameras=["corner", "gripperPOV"], pixels=32)
    env, states = MetaWorldEnv(config), MetaWorldEnv(MetaWorldConfig(task="door-open-v3"))
    first, _ = env.reset(seed=7)
    disturb(env)
    again, _ = env.reset(seed=7)
    other, _ = env.reset(seed=8)
    expected, _ = states.reset(seed=7)
    np.testing.assert_array_equal(first["state"], expected["state"][:4])  # hand and gripper; neither object nor goal
    assert set(first) == {"state", "corner", "gripperPOV"}
    assert {name: f.camera for name, f in env.features.observation.items()} == {
        "state": "",
        "corner": "corner",
        "gripperPOV": "gripperPOV",
    }
    for camera in config.cameras:
        assert first[camera].shape == (32, 32, 3)
        np.testing.assert_array_equal(first[camera], again[camera])
    assert (first["corner"] != other["corner"]).any()  # the door stands elsewhere


@pytest.mark.parametrize("camera", some(["corner", "corner2", "corner3", "corner4"], ["corner", "corner2"]))
def test_pictures_are_upright(camera):
    """The camera's image of a point above another one lies above it: projected from the camera's own frame."""
    env = MetaWorldEnv(MetaWorldConfig(task="reach-v3", observes="pixels", cameras=[camera], pixels=96))
    observation, _ = env.reset(seed=1)
    data = env._raw.data
    axes, place = data.camera(camera).xmat.reshape(3, 3), data.camera(camera).xpos
    sees = (np.array(data.body("hand").xpos) - place) @ axes  # x right, y up, looking along -z
    half = np.tan(np.radians(env._raw.model.camera(camera).fovy[0]) / 2)
    column, row = 48 * (1 + sees[0] / -sees[2] / half), 48 * (1 - sees[1] / -sees[2] / half)
    if axes[2, 1] < 0:  # the camera hangs upside down, and its picture is turned
        column, row = 96 - column, 96 - row
    picture = observation[camera].astype(int)
    near = picture[int(row) - 4 : int(row) + 5, int(column) - 4 : int(column) + 5]
    red = (near[..., 0] > 90) & (near[..., 0] > 2 * near[..., 1])
    assert red.any()  # the hand and what it hangs from are red


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"observes": "pixel"}, "observes is 'pixel', expected state or pixels"),
        ({"cameras": []}, r"cameras is \[\], expected one or more"),
        ({"cameras": ["corner", "corner"]}, "all different"),
        ({"cameras": ["corner1"]}, "unknown camera 'corner1'"),
        ({"pixels": 481}, "pixels is 481, expected 1 to 480"),
    ],
)
def test_what_cannot_be_observed_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MetaWorldConfig(**fields)


def test_a_world_from_before_it_had_cameras_is_the_same_world():
    before = {"kind": "metaworld", "task": "reach-v3", "goal_visible": False, "max_steps": 9, "camera": "corner"}
    before["image_size"] = 64
    config = MetaWorldConfig(task="reach-v3", goal_visible=False, max_steps=9, camera="corner", image_size=64)
    assert strict.build(MetaWorldConfig, before, "env") == config
    assert _settings(config) == before  # and its demonstrations lie where they did
