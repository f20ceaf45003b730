"""Any Gymnasium id becomes a world, or is refused with a reason."""

import importlib.util
import math

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Text

import envs
from envs import GymnasiumConfig, RenderingUnavailable


class Toy(gymnasium.Env):
    """Counts its steps; everything it says about itself is given to it."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, observation_space, action_space, keys=(), render_mode=None):
        self.observation_space, self.action_space = observation_space, action_space
        self.keys, self.render_mode, self.actions = keys, render_mode, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.first = self.observation_space.sample()
        return self.first, {}

    def step(self, action):
        self.actions.append(action)
        return self.observation_space.sample(), 0.5, False, False, {key: len(self.actions) >= 2 for key in self.keys}

    def render(self):
        return np.full((4, 6, 3), len(self.actions), np.uint8)


PLAIN = Box(-1.0, 1.0, (3,))
GRID = Box(np.array([[0, -1], [-2, 0]], np.float32), np.array([[1, 1], [2, 2]], np.float32))
PARTS = Dict(
    {
        "camera": Box(0, 255, (8, 8, 3), np.uint8),
        "joints": Box(np.array([-1.0, -np.inf]), np.array([1.0, np.inf]), dtype=np.float64),
        "grid": GRID,
    }
)


@pytest.fixture
def register():
    ids = []

    def add(observation_space=PLAIN, action_space=PLAIN, limit: int | None = 10, **kwargs) -> str:
        ids.append(f"Toy{len(ids)}-v0")
        kwargs |= {"observation_space": observation_space, "action_space": action_space}
        gymnasium.register(ids[-1], entry_point=f"{__name__}:Toy", max_episode_steps=limit, kwargs=kwargs)
        return ids[-1]

    yield add
    for id in ids:
        del gymnasium.registry[id]


def make(id: str, **fields) -> envs.Env:
    return envs.make(GymnasiumConfig(**{"id": id, "control_dt_s": 0.1, **fields}))


@pytest.mark.parametrize("id", ["Pendulum-v1", "InvertedPendulum-v5", "Reacher-v5"])
def test_gymnasiums_own_environments_give_the_same_numbers(id):
    reference = gymnasium.make(id)
    env = envs.make(GymnasiumConfig(id=id, success_return=0.0))
    expected, _ = reference.reset(seed=3)
    observation, _ = env.reset(seed=3)
    total, truncated, steps = 0.0, False, 0
    rng = np.random.default_rng(0)
    while not truncated and steps < 60:
        np.testing.assert_array_equal(observation["state"], np.asarray(expected, np.float32))
        action = rng.uniform(-0.3, 0.3, env.features.action.shape).astype(np.float32)
        expected, expected_reward, expected_end, expected_truncated, _ = reference.step(action)
        observation, reward, terminated, truncated, info = env.step(action)
        assert (reward, terminated, truncated) == (float(expected_reward), expected_end, expected_truncated)
        total, steps = total + float(reward), steps + 1
        assert info["success"] is (total >= 0.0)
        if terminated:
            break
    assert env.features.control_dt_s == pytest.approx({"Pendulum-v1": 0.05, "InvertedPendulum-v5": 0.04}.get(id, 0.02))
    env.close()
    reference.close()


def test_a_seed_fixes_the_episode_and_different_seeds_differ():
    env = envs.make(GymnasiumConfig(id="Reacher-v5", success_return=0.0))
    starts = {seed: env.reset(seed=seed)[0]["state"] for seed in range(20)}
    assert len({start.tobytes() for start in starts.values()}) == 20
    np.testing.assert_array_equal(env.reset(seed=7)[0]["state"], starts[7])
    env.close()


def test_a_dict_is_taken_apart_and_images_stay_as_they_are(register):
    env = make(register(PARTS, GRID, keys=("success",)))
    observation, _ = env.reset(seed=0)
    first = env._raw.unwrapped.first  # pyright: ignore[reportAttributeAccessIssue]
    features = env.features.observation
    assert {name: value.dtype.name for name, value in observation.items()} == {
        "camera": "uint8",
        "joints": "float32",
        "grid": "float32",
    }
    np.testing.assert_array_equal(observation["camera"], first["camera"])
    np.testing.assert_array_equal(observation["grid"], first["grid"].ravel())
    assert {name: value.shape for name, value in observation.items()} == {n: f.shape for n, f in features.items()}
    assert (features["joints"].low, features["grid"].low) == (None, (0, -1, -2, 0))


def test_actions_arrive_in_the_shape_and_dtype_of_the_space(register):
    env = make(register(action_space=GRID, keys=("success",)))
    env.reset(seed=0)
    env.step(np.array([1, 2, 3, 4]))  # out of range, and left so
    (action,) = env._raw.unwrapped.actions  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_array_equal(action, np.array([[1, 2], [3, 4]], np.float32))
    assert action.dtype == np.float32
    assert env.features.action.shape == (4,)
    assert env.features.action.high == (1, 1, 2, 2)


def test_success_is_read_from_info(register):
    env = make(register(keys=("is_success",)), success_key="is_success")
    env.reset(seed=0)
    assert [env.step(np.zeros(3))[4]["success"] for _ in range(3)] == [False, True, True]


def test_success_is_a_return_and_starts_anew_with_the_episode(register):
    env = make(register(), success_return=1.0)
    for seed in range(2):
        env.reset(seed=seed)
        assert [env.step(np.zeros(3))[4]["success"] for _ in range(3)] == [False, True, True]


def test_success_that_cannot_be_told_is_an_error(register):
    env = make(register(keys=("is_success", "goal")))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"info has no 'success', only \['goal', 'is_success'\]; set success_key"):
        env.step(np.zeros(3))


@pytest.mark.parametrize("value", [0.5, math.nan, None, "yes"])
def test_success_is_true_or_false(register, monkeypatch, value):
    env = make(register(keys=("success",)))
    env.reset(seed=0)
    step = Toy.step
    monkeypatch.setattr(Toy, "step", lambda self, action: (*step(self, action)[:4], {"success": value}))
    with pytest.raises(ValueError, match=r"info\['success'\] is .*, expected true or false"):
        env.step(np.zeros(3))


def test_success_at_reset_is_told_where_it_is_known(register, monkeypatch):
    id = register(keys=("done",))
    assert "success" not in make(id, success_key="done").reset(seed=0)[1]
    assert make(id, success_return=1.0).reset(seed=0)[1]["success"] is False
    assert make(id, success_return=-1.0).reset(seed=0)[1]["success"] is True  # no reward at all is more than that
    monkeypatch.setattr(Toy, "reset", lambda self, **_: (self.observation_space.sample(), {"done": 1, "success": "x"}))
    assert make(id, success_key="done").reset(seed=0)[1] == {"done": 1, "success": True}


def test_max_steps_replaces_the_ids_own_limit(register):
    id = register(keys=("success",), limit=5)
    for max_steps, expected in ((0, 5), (3, 3), (8, 8)):
        env = make(id, max_steps=max_steps)
        env.reset(seed=0)
        truncated = [env.step(np.zeros(3))[3] for _ in range(expected)]
        assert truncated == [False] * (expected - 1) + [True]


def test_a_toy_renders(register):
    env = make(register(keys=("success",)))
    env.reset(seed=0)
    env.step(np.zeros(3))
    np.testing.assert_array_equal(env.render(), np.ones((4, 6, 3)))


def test_no_images_is_an_error(register, monkeypatch):
    monkeypatch.setattr(Toy, "metadata", {"render_modes": []})
    env = make(register())
    env.reset(seed=0)
    with pytest.raises(RenderingUnavailable, match="does not offer the render mode rgb_array"):
        env.render()


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        ({"observation_space": Discrete(4)}, r"observation space is Discrete\(4\), expected a Box or a Dict of Boxes"),
        ({"observation_space": Dict({"a": PLAIN, "b": Dict({"c": PLAIN})})}, "observation space is Dict"),
        ({"action_space": Text(4)}, r"action space has the part Text.*expected a Box of floating-point"),
        ({"action_space": Box(0, 5, (2,), np.int64)}, "expected a Box of floating-point numbers"),
        ({"action_space": Dict({"a": Discrete(1)})}, "a part with a single choice"),
        ({"limit": None}, "has no step limit of its own: set max_steps"),
    ],
)
def test_what_does_not_fit_is_named(register, spaces, message):
    with pytest.raises(ValueError, match=message):
        make(register(**spaces))


def test_the_control_period_must_be_known(register):
    id = register()
    with pytest.raises(ValueError, match="does not say how long a step takes: set control_dt_s"):
        make(id, control_dt_s=0.0)
    assert make(id, control_dt_s=0.25).features.control_dt_s == 0.25


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.array, float])
def test_the_worlds_own_control_period_is_taken_whatever_its_type(register, monkeypatch, kind):
    monkeypatch.setattr(Toy, "dt", kind(0.05), raising=False)
    period = make(register(), control_dt_s=0.0).features.control_dt_s
    assert type(period) is float
    assert period == float(kind(0.05))
    monkeypatch.setattr(Toy, "dt", None)
    monkeypatch.setattr(Toy, "metadata", {"render_modes": ["rgb_array"], "render_fps": kind(40)})
    period = make(register(), control_dt_s=0.0).features.control_dt_s
    assert (type(period), period) == (float, 0.025)


def test_numpys_numbers_in_a_config_are_stored_as_numbers():
    config = GymnasiumConfig(id="Pendulum-v1", max_steps=np.int64(5), control_dt_s=np.float32(0.5))  # pyright: ignore
    assert [type(value) for value in (config.max_steps, config.control_dt_s)] == [int, float]


def test_a_package_that_is_missing_is_named_in_one_line():
    if importlib.util.find_spec("Box2D") is None:
        with pytest.raises(ValueError, match=r"^LunarLander-v3 needs what is not installed here: .*box2d.*$"):
            make("LunarLander-v3", success_return=200.0)

    def lacking(**_):
        raise gymnasium.error.DependencyNotInstalled("pip install wings")

    gymnasium.register("Wings-v0", lacking, max_episode_steps=5)
    try:
        with pytest.raises(ValueError, match=r"^Wings-v0 needs what is not installed here: pip install wings$"):
            make("Wings-v0")
    finally:
        del gymnasium.registry["Wings-v0"]


def test_arguments_reach_the_environment(register):
    env = make(register(), kwargs={"keys": ["success", "other"]})
    env.reset(seed=0)
    assert env.step(np.zeros(3))[4].keys() == {"success", "other"}
    with pytest.raises(ValueError, match=r"Toy\d*-v0 cannot be made with env.kwargs=\{'colour': 1\}: .*colour"):
        make(register(), kwargs={"colour": 1})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_episode_steps": 3}, "which are not the environment's own"),
        ({"render_mode": "human"}, "which are not the environment's own"),
        ({"a": np.float32(1)}, "must be plain JSON values"),
        ({"a": math.nan}, "must be plain JSON values"),
        ({"a": (1, 2)}, "plain JSON values, with lists and no tuples"),
        ({1: 2}, "plain JSON values"),
        ([1], r"env.kwargs is \[1\], expected the names"),
    ],
)
def test_arguments_are_plain(kwargs, message):
    with pytest.raises(ValueError, match=message):
        GymnasiumConfig(id="Pendulum-v1", kwargs=kwargs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": "Pendulum"}, r"unknown Gymnasium id 'Pendulum': did you mean Pendulum-v1\?"),
        ({"id": "Reecher-v5"}, "did you mean Reacher-v5"),
        ({"id": ""}, "id is empty"),
        ({"id": "os:Pendulum-v1"}, "names a module"),
        ({"id": "Pendulum-v1", "max_steps": -1}, "max_steps is -1"),
        ({"id": "Pendulum-v1", "control_dt_s": -0.1}, "control_dt_s is -0.1"),
        ({"id": "Pendulum-v1", "control_dt_s": float("nan")}, "control_dt_s is nan"),
    ],
)
def test_a_wrong_config_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        GymnasiumConfig(**fields)
