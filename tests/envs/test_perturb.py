"""Perturbations: nothing at strength zero, the same from the same seed, and physically what they claim."""

import itertools
import re
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import envs
from envs import Env, PerturbConfig
from envs.mujoco import Physics, load_mujoco
from envs.perturb import STRENGTHS, PerturbedEnv
from flowhand.contracts.features import Feature, Spec
from flowhand.evaluation.records import read_records, write_records
from flowhand.evaluation.rollout import rollout

mujoco: Any = load_mujoco()
ALL: dict[str, Any] = {
    "initial_shift": 0.5,
    "observation_noise": 0.1,
    "observation_noise_relative": 0.2,
    "observation_delay": 2,
    "frame_drop": 0.4,
    "action_noise": 0.1,
    "action_delay": 3,
    "push": 5.0,
    "mass_scale": 1.5,
    "friction_scale": 0.5,
}
SPREADS = {"state": [1.0, 2.0, 3.0, 4.0], "goal": [0.0, 1.0]}
BALL = """
<mujoco>
  <option timestep="0.01" gravity="0 0 {gravity}" integrator="Euler"/>
  <worldbody>
    <geom type="plane" size="9 9 1" friction="0.2 0 0"/>
    <body name="box" pos="0 0 {height}"><freejoint/>
      <geom type="box" size="0.1 0.1 0.1" mass="2" friction="0.2 0 0"/>
      <body name="lid" pos="0 0 0.1"><geom type="box" size="0.1 0.1 0.01" mass="1" contype="0" conaffinity="0"/></body>
    </body>
    <body name="other" pos="5 0 1"><joint type="slide" axis="1 0 0"/><geom type="sphere" size="0.1" mass="7"/></body>
  </worldbody>
</mujoco>
"""


def call(function: str, world: "Box", *arguments) -> None:
    getattr(mujoco, function)(world.model, world.data, *arguments)


class Box(Env):
    """A free body of 3 kg without gravity, or sliding over the ground; the world notes what it was told to do."""

    def __init__(self, gravity=0.0, height=1.0):
        self.model = mujoco.MjModel.from_xml_string(BALL.format(gravity=gravity, height=height))
        self.data = mujoco.MjData(self.model)
        self.physics = Physics(self.model, self.data, self.model.body("box").id)
        self.task, self.task_text, self.version = "box", "", ""
        one, image = Feature((3,), "float32", "m"), Feature((1, 1, 1), "uint8", "")
        self.features = Spec({"state": one, "image": image}, replace(one, shape=(2,)), 0.02)
        self.executed: list[np.ndarray] = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        force = self.data.xfrc_applied.copy()
        call("mj_resetData", self)
        self.data.xfrc_applied[:] = force  # a world that knows of no forces from outside and leaves them as they are
        self.steps = 0
        self.executed.clear()
        return self._observe(), {}

    def step(self, action):
        self.executed.append(action)
        call("mj_step", self, 2)
        self.steps += 1
        return self._observe(), 0.0, False, self.steps >= 10_000, {"success": False, "expert_observation": self.steps}

    def _observe(self):
        return {"state": np.full(3, self.steps, np.float32), "image": np.full((1, 1, 1), 100, np.uint8)}


def observe(env: Env, steps: int, seed: int = 3) -> list[float]:
    """The first value of every observation."""
    observation, _ = env.reset(seed=seed)
    later = (env.step(np.full(2, step, np.float32))[0] for step in range(steps))
    return [one["state"][0] for one in (observation, *later)]


def trace(env: Env, seed: int, steps: int = 30) -> list[np.ndarray]:
    """Everything an episode shows, under actions that depend on nothing."""
    generator = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    shown = [*observation.values()]
    for _ in range(steps):
        action = generator.uniform(-0.5, 0.5, env.features.action.shape).astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        shown += [*observation.values(), np.array([reward, terminated, truncated, info["success"]])]
        if terminated or truncated:
            break
    return shown


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


def test_every_strength_is_tested():
    assert ALL.keys() == STRENGTHS.keys()
    assert STRENGTHS.items() <= {f.name: f.default for f in fields(PerturbConfig)}.items()


@pytest.mark.parametrize("world", [envs.DetourConfig(), envs.MetaWorldConfig(task="hammer-v3")])
def test_strength_zero_is_the_world_itself_bit_for_bit(world):
    bare = envs.make(world)
    assert type(envs.make(world, PerturbConfig())) is type(bare)
    wrapped = PerturbedEnv(envs.make(world), PerturbConfig(push_interval_s=0.1))
    for seed in (4, 5):
        assert same(trace(wrapped, seed), trace(bare, seed))
    assert (wrapped.perturbation, wrapped.features, wrapped.task) == ("", bare.features, bare.task)


@pytest.mark.parametrize("on", [*([name] for name in ALL if name not in ("mass_scale", "friction_scale")), list(ALL)])
def test_an_episode_follows_from_its_seed_alone(on):
    config = PerturbConfig(push_interval_s=0.2, **{name: ALL[name] for name in on})
    make = partial(envs.make, envs.DetourConfig(), config, SPREADS)
    env = make()
    first = trace(env, 3)
    assert not same(first, trace(envs.make(envs.DetourConfig()), 3))
    assert not same(trace(env, 4), first)
    assert same(trace(env, 3), first)
    assert same(trace(make(), 3), first)


def test_in_meta_world_too_and_without_a_trace_in_other_worlds():
    world = envs.MetaWorldConfig(task="push-v3")
    bare = envs.make(world)
    before = trace(bare, 3)
    config = PerturbConfig(push_interval_s=0.1, **{**ALL, "observation_noise_relative": 0.0})
    env = envs.make(world, config)
    first = trace(env, 3)
    trace(env, 4)
    assert same(trace(env, 3), first)
    assert not same(first, before)
    assert same(trace(bare, 3), before)
    assert same(trace(envs.make(world), 3), before)


def test_records_are_the_same_wherever_they_run_and_say_what_was_on():
    config = PerturbConfig(push_interval_s=0.2, **{**ALL, "initial_shift": 0.0, "frame_drop": 0.25})
    make = partial(envs.make, envs.DetourConfig(), config, SPREADS)

    def run(**way):
        return [replace(r, wall_s=0.0) for r in rollout(make, "expert", range(6), **way)]

    records = run()
    assert run(n_envs=4) == records
    assert run(n_envs=3, workers="process", processes=2) == records
    told = records[0].perturbation
    assert told == config.describe()
    assert told.startswith("observation_noise=0.1 observation_noise_relative=0.2 observation_delay=2 frame_drop=0.25")
    assert told.endswith("push=5.0 push_interval_s=0.2 mass_scale=1.5 friction_scale=0.5")
    (plain,) = rollout(partial(envs.make, envs.DetourConfig()), "expert", [0])
    assert plain.perturbation == ""


def test_records_keep_it_and_older_ones_without_it_are_read(tmp_path):
    config = PerturbConfig(action_delay=1)
    records = rollout(partial(envs.make, envs.DetourConfig(), config), "expert", [0])
    file = tmp_path / "episodes.jsonl"
    write_records(file, records)
    assert read_records(file) == records
    file.write_text(file.read_text().replace(', "perturbation": "action_delay=1"', ""))
    assert read_records(file) == [replace(records[0], perturbation="")]


def test_noise_has_the_deviation_asked_for():
    spread = np.array([0.0, 0.1, 2.0])
    env = PerturbedEnv(
        Box(), PerturbConfig(observation_noise=0.3, observation_noise_relative=0.5), {"state": spread.tolist()}
    )
    env.reset(seed=1)
    noise, truth = [], []
    for step in range(1, 2001):
        observation, *_, info = env.step(np.zeros(2))
        assert observation["state"].dtype == np.float32
        assert observation["image"].item() == 100  # noise is for vectors
        noise.append(observation["state"] - step)
        truth.append(info["expert_observation"])
    assert truth == list(range(1, 2001))
    np.testing.assert_allclose(np.std(noise, axis=0), np.hypot(0.3, 0.5 * spread), rtol=0.06)
    assert np.abs(np.mean(noise, axis=0) / np.std(noise, axis=0)).max() < 0.08
    assert np.abs(np.corrcoef(np.array(noise).T) - np.eye(3)).max() < 0.08


def test_another_strength_scales_the_same_draws_and_other_perturbations_change_none():
    def noise(**options):
        return np.array(observe(PerturbedEnv(Box(), PerturbConfig(**options)), 50)) - np.arange(51)

    np.testing.assert_allclose(noise(observation_noise=0.5), 5 * noise(observation_noise=0.1), atol=1e-4)
    beside = {"action_noise": 0.3, "push": 2.0, "action_delay": 2, "mass_scale": 2.0}
    np.testing.assert_array_equal(noise(observation_noise=0.5, **beside), noise(observation_noise=0.5))


def test_every_perturbation_has_random_numbers_of_its_own():
    env = PerturbedEnv(Box(), PerturbConfig())
    env.reset(seed=3)
    assert len({random.bytes(16) for random in env._random.values()}) == len(env._random) == 4


def test_observations_come_late():
    assert observe(PerturbedEnv(Box(), PerturbConfig(observation_delay=3)), 6) == [0, 0, 0, 0, 1, 2, 3]


def test_lost_observations_repeat_the_last_one():
    seen = observe(PerturbedEnv(Box(), PerturbConfig(frame_drop=0.3)), 3000)
    assert seen[0] == 0
    lost = [b == a for a, b in itertools.pairwise(seen)]
    assert all(b in (a, step) for step, (a, b) in enumerate(itertools.pairwise(seen), start=1))
    assert np.mean(lost) == pytest.approx(0.3, abs=0.03)
    late = observe(PerturbedEnv(Box(), PerturbConfig(frame_drop=0.3, observation_delay=2)), 3000)
    assert np.mean(np.diff(late[3:]) == 0) == pytest.approx(0.3, abs=0.03)
    assert max(step - value for step, value in enumerate(late)) > 4


def test_actions_come_late_and_the_first_one_waits_with_them():
    inner = Box()
    observe(PerturbedEnv(inner, PerturbConfig(action_delay=2)), 6)
    assert [action[0] for action in inner.executed] == [0, 0, 0, 1, 2, 3]


def test_actions_are_noisy():
    inner = Box()
    observe(PerturbedEnv(inner, PerturbConfig(action_noise=0.2)), 3000)
    noise = np.array(inner.executed) - np.arange(3000)[:, None]
    assert np.std(noise) == pytest.approx(0.2, rel=0.05)
    assert inner.executed[0].dtype == np.float32


def test_choices_are_not_noisy():
    inner = Box()
    inner.features = replace(inner.features, action=replace(inner.features.action, choices=(0, 9)))
    observe(PerturbedEnv(inner, PerturbConfig(action_noise=0.2)), 20)
    noise = np.array(inner.executed) - np.arange(20)[:, None]
    assert np.std(noise[:, 0]) > 0.05
    assert not noise[:, 1].any()
    inner.features = replace(inner.features, action=replace(inner.features.action, choices=(9, 9)))
    with pytest.raises(ValueError, match=r"box has only choices to act with, and perturb\.action_noise is for numbers"):
        PerturbedEnv(inner, PerturbConfig(action_noise=0.2))


def velocities(config: PerturbConfig, steps: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Velocity (steps, 3) of the centre of mass of box and lid, and force (steps, 6) on the box, after every step."""
    inner = Box()
    env = PerturbedEnv(inner, config)
    env.reset(seed=seed)
    velocity, force = [], []
    for _ in range(steps):
        env.step(np.zeros(2))
        for function in ("mj_forward", "mj_subtreeVel"):  # a step leaves the velocities of before
            call(function, inner)
        velocity.append(inner.data.subtree_linvel[1].copy())
        force.append(inner.data.xfrc_applied[1].copy())
        assert not inner.data.xfrc_applied[2:].any()
    return np.array(velocity), np.array(force)


@pytest.mark.parametrize(("mass_scale", "gain"), [(1.0, 0.6), (2.0, 0.3)])
def test_a_push_changes_the_velocity_by_acceleration_times_duration(mass_scale, gain):
    """3 m/s^2 for 0.2 s on the body without gravity; a mass twice as large halves it."""
    config = PerturbConfig(push=3.0, push_interval_s=1.0, push_duration_s=0.2, mass_scale=mass_scale)
    velocity, force = velocities(config, 300)
    strength = np.linalg.norm(force, axis=1)
    assert not force[:, 2:].any()  # horizontal
    on = strength > 0
    np.testing.assert_allclose(strength[on], 9.0)  # 3 kg with the lid
    begins = [
        i for i in range(300) if on[i] and (i == 0 or not on[i - 1] or not np.array_equal(force[i], force[i - 1]))
    ]
    assert len(begins) >= 3
    for i in begins[:3]:
        assert on[i : i + 10].all()
        change = velocity[i + 9, :2] - (velocity[i - 1, :2] if i else 0)
        np.testing.assert_allclose(change, gain * force[i, :2] / 9.0, atol=0.01 * gain)


def test_pushes_come_at_random_times_from_random_directions():
    _, force = velocities(PerturbConfig(push=1.0, push_interval_s=0.4, push_duration_s=0.02), 6000)
    on = np.flatnonzero(force[:, 0])
    assert len(on) / 6000 == pytest.approx(1 / 21, rel=0.15)  # one step of pushing, then 20 of waiting on the mean
    angles = np.arctan2(force[on, 1], force[on, 0])
    assert np.abs(np.mean(np.exp(1j * angles))) < 0.12
    assert not np.array_equal(
        velocities(PerturbConfig(push=1.0), 300, seed=1), velocities(PerturbConfig(push=1.0), 300)
    )


def test_a_push_lasts_as_long_as_it_should_whatever_comes_next():
    _, force = velocities(PerturbConfig(push=1.0, push_interval_s=0.05, push_duration_s=0.2), 500)
    runs = [(any(value), len(list(run))) for value, run in itertools.groupby(map(tuple, force))]
    assert {length for on, length in runs[:-1] if on} == {10}
    assert sum(on for on, _ in runs) > 30


def test_a_push_does_not_outlive_its_episode():
    inner = Box()
    env = PerturbedEnv(inner, PerturbConfig(push=3.0, push_interval_s=0.01, push_duration_s=50.0))
    env.reset(seed=0)
    env.step(np.zeros(2))
    assert inner.data.xfrc_applied.any()
    env.reset(seed=0)
    assert not inner.data.xfrc_applied.any()


def test_a_mass_scales_with_its_inertia_and_what_is_fixed_to_it_and_nothing_else():
    inner, scaled = Box(), Box()
    PerturbedEnv(scaled, PerturbConfig(mass_scale=2.5))
    before, after = (env.physics.model for env in (inner, scaled) if env.physics)
    np.testing.assert_allclose(after.body_mass, before.body_mass * [1, 2.5, 2.5, 1])
    np.testing.assert_allclose(after.body_inertia, before.body_inertia * np.array([[1], [2.5], [2.5], [1]]))
    np.testing.assert_allclose(after.body_subtreemass[1], 2.5 * before.body_subtreemass[1])  # derived anew
    named = Box()
    PerturbedEnv(named, PerturbConfig(mass_scale=3.0, body="other"))
    assert named.physics is not None
    np.testing.assert_allclose(named.physics.model.body_mass, before.body_mass * [1, 1, 1, 3])


@pytest.mark.parametrize("scale", [1.0, 0.5, 2.0])
def test_friction_decides_how_far_a_box_slides(scale):
    """v^2 / (2 mu g), with 1 m/s and mu = 0.2; MuJoCo's soft contacts are some percent off."""
    inner = Box(gravity=-9.81, height=0.0995)
    env = PerturbedEnv(inner, PerturbConfig(friction_scale=scale))
    env.reset(seed=0)
    inner.data.qvel[0] = 1.0
    for _ in range(150):
        env.step(np.zeros(2))
    assert inner.data.qpos[0] == pytest.approx(1 / (2 * 0.2 * scale * 9.81), rel=0.1)


@pytest.mark.parametrize("shift", [0.5, 2.0])
def test_the_start_of_detour_is_drawn_from_a_wider_range(shift):
    bare, wide = envs.make(envs.DetourConfig()), envs.make(envs.DetourConfig(), PerturbConfig(initial_shift=shift))
    for seed in range(10):
        (a, _), (b, _) = bare.reset(seed=seed), wide.reset(seed=seed)
        np.testing.assert_allclose(b["state"][1], (1 + shift) * a["state"][1], rtol=1e-5)
        np.testing.assert_allclose(b["goal"][1], (1 + shift) * a["goal"][1], rtol=1e-5)
        assert (b["state"][0], b["goal"][0]) == (a["state"][0], a["goal"][0])


def test_the_start_of_meta_world_is_drawn_from_a_wider_box_and_nothing_is_clipped():
    world = envs.MetaWorldConfig(task="plate-slide-v3")  # a task that rejects no draw
    bare: Any = envs.make(world)
    inner = envs.make(world)
    trace(inner, 0, steps=1)  # now Meta-World knows to what it clips
    wide = PerturbedEnv(inner, PerturbConfig(initial_shift=1.0))
    raw: Any = inner
    box, outside = bare._raw._random_reset_space, 0
    centre, clipped = (box.low + box.high) / 2, 0
    goals = bare.features.observation["goal"]
    for seed in range(20):
        bare.reset(seed=seed)
        wide.reset(seed=seed)
        drawn = raw._raw._last_rand_vec
        np.testing.assert_allclose(drawn - centre, 2 * (bare._raw._last_rand_vec - centre), atol=1e-12)
        observation, *_ = wide.step(np.zeros(4))
        np.testing.assert_array_equal(observation["goal"], raw._raw._target_pos.astype(np.float32))
        outside += bool((np.abs(drawn - centre) > (box.high - box.low) / 2 + 1e-9).any())
        clipped += bool(((observation["goal"] < goals.low) | (observation["goal"] > goals.high)).any())
    assert outside >= 10
    assert clipped >= 5  # would have been
    assert wide.features.observation["goal"].low is None


@pytest.mark.parametrize(
    ("task", "body"), [("coffee-push-v3", "obj"), ("hammer-v3", "hammerbody"), ("door-open-v3", "door_link")]
)
def test_in_meta_world_the_object_is_pushed(task, body):
    env = envs.make(envs.MetaWorldConfig(task=task))
    assert env.physics is not None
    assert env.physics.model.body(env.physics.body).name == body


def test_in_gymnasium_the_root_of_the_robot_is_pushed():
    config = envs.GymnasiumConfig(id="InvertedPendulum-v5", success_return=1e9)
    env = envs.make(config, PerturbConfig(push=5.0, push_interval_s=0.1))
    assert env.physics is not None
    assert env.physics.model.body(env.physics.body).name == "cart"
    assert not same(trace(env, 0), trace(envs.make(config), 0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"observation_noise": -0.1}, "perturb.observation_noise=-0.1 must be a number of at least 0; 0.0 is none"),
        ({"mass_scale": float("inf")}, "perturb.mass_scale=inf must be a number of at least 0; 1.0 is none"),
        ({"mass_scale": 0.0}, "perturb.mass_scale=0.0 must be positive"),
        ({"frame_drop": 1.0}, "perturb.frame_drop=1.0 must lie in [0, 1)"),
        ({"push_interval_s": 0.0}, "perturb.push_interval_s=0.0 must be positive"),
        ({"push_duration_s": -1.0}, "perturb.push_duration_s=-1.0 must be positive"),
    ],
)
def test_a_number_out_of_range_is_an_error(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PerturbConfig(**fields)


class Bodiless(Box):
    """A world that MuJoCo does not simulate, with an image and no vector."""

    def __init__(self):
        super().__init__()
        self.physics = None
        observation = {"image": self.features.observation["image"]}
        self.features = replace(self.features, observation=observation)


@pytest.mark.parametrize(
    ("env", "fields", "message"),
    [
        (Bodiless, {"push": 1.0}, "box is not simulated by MuJoCo, which push, mass_scale and friction_scale need"),
        (Bodiless, {"mass_scale": 2.0}, "box is not simulated by MuJoCo"),
        (Bodiless, {"friction_scale": 2.0}, "box is not simulated by MuJoCo"),
        (Bodiless, {"observation_noise": 1.0}, "box has no vector to observe"),
        (Box, {"initial_shift": 1.0}, "box has no range of start states that can be widened; set initial_shift=0"),
        (Box, {"observation_noise_relative": 1.0}, "needs the spreads of 'state', 3 numbers; got []"),
        (Box, {"push": 1.0, "body": "boxx"}, "perturb.body='boxx' is no body of this world: did you mean box?"),
    ],
)
def test_a_world_that_cannot_be_disturbed_so_says_it(env, fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PerturbedEnv(env(), PerturbConfig(**fields))


def gymnasium(id: str) -> partial[Env]:
    return partial(envs.make, envs.GymnasiumConfig(id=id, success_return=1e9))


WORLDS = {  # one of each sort
    "detour": partial(envs.make, envs.DetourConfig()),
    "Meta-World": partial(envs.make, envs.MetaWorldConfig(task="push-v3")),
    "MuJoCo": gymnasium("Reacher-v5"),
    "plain": gymnasium("Pendulum-v1"),
    "choices": gymnasium("CartPole-v1"),
    "images": Bodiless,
}
LACKING = {  # by what the document says of a perturbation, those that cannot have it
    "any": set(),
    "with a vector to observe": {"images"},
    "with a number to act with": {"choices"},
    "detour, Meta-World, ALOHA": {"MuJoCo", "plain", "choices", "images"},
    "simulated by MuJoCo": {"plain", "choices", "images"},
}


@pytest.mark.parametrize("name", ALL)
def test_the_document_says_in_which_worlds(name):
    page = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text()
    (said,) = re.findall(rf"^\| [^|]*`{name}`[^|]*\|[^|]*\| ([a-z][^|]*) \|$", page, re.MULTILINE)
    lacking = set()
    for sort, make in WORLDS.items():
        env = make()
        spreads = {vector: [1.0] * f.size for vector, f in env.features.observation.items()}
        try:
            disturbed = PerturbedEnv(env, PerturbConfig(**{name: ALL[name]}), spreads)
        except ValueError:
            lacking.add(sort)
        else:
            disturbed.reset(seed=0)
            disturbed.step(np.zeros(env.features.action.shape, np.float32))
    assert lacking == LACKING[said]


def test_the_expert_meets_all_but_what_disturbs_the_sight():
    assert PerturbConfig(**ALL).unseen().describe() == (
        "initial_shift=0.5 action_noise=0.1 action_delay=3 push=5.0 mass_scale=1.5 friction_scale=0.5"
    )
