import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs import Env, EnvConfig
from flowhand.commands.collect import attempt, attempts, collect
from flowhand.contracts.data.episode import SEED_LIMIT
from flowhand.contracts.features import Feature, Spec
from flowhand.demos.config import DataConfig
from flowhand.demos.meta import StoreMeta
from flowhand.demos.native import Store

REPOSITORY = Path(__file__).parents[2]
GAIN = 5.0
DT = 0.1


@dataclass
class PointConfig(EnvConfig):
    kind: str = "point"
    task: str = "to the goal"
    fail_every: int = 3  # the expert stands still on seeds that this divides; 0: on none
    delay_s: float = 0.0  # wall time of a step
    has_expert: bool = True
    bounded: bool = True


class PointEnv(Env):
    """A point in the plane that moves by action * DT."""

    task = "point"
    version = "point 1"
    task_text = "move the point to the goal"

    def __init__(self, config: PointConfig):
        self.config = config
        feature = Feature((2,), "float32", "m")
        limits = ((-1.0, -1.0), (1.0, 1.0)) if config.bounded else (None, None)
        self.features = Spec({"position": feature, "goal": feature}, Feature((2,), "float32", "m/s", *limits), DT)
        self._observation = {"position": np.zeros(2, np.float32), "goal": np.zeros(2, np.float32)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._steps = 0
        self._observation["position"][:] = self.np_random.uniform(-1, 1, size=2)
        self._observation["goal"][:] = -np.sign(self._observation["position"])
        fails = bool(self.config.fail_every) and seed is not None and seed % self.config.fail_every == 0
        if self.config.has_expert:
            self.expert = (lambda _: np.zeros(2)) if fails else expert
        return self._observation, self._info()

    def step(self, action: np.ndarray):
        time.sleep(self.config.delay_s)
        self._steps += 1
        self._observation["position"] += DT * action  # in place: who keeps an observation must copy it
        distance = np.linalg.norm(self._observation["position"] - self._observation["goal"])
        info = self._info()
        return self._observation, -float(distance), False, self._steps == 40, {**info, "success": distance < 0.1}

    def _info(self):
        return {"expert_observation": np.concatenate([self._observation["position"], self._observation["goal"]])}


def expert(position_and_goal: np.ndarray) -> np.ndarray:
    return GAIN * (position_and_goal[2:] - position_and_goal[:2])


def gather(env_config=None, **changes) -> Store:
    return collect(env_config or PointConfig(), DataConfig(**changes), progress=False, make_env=PointEnv)


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


def test_keeps_the_successful_seeds_in_order(cache):
    store = gather(cache_dir=cache, episodes=6, seed=2)
    assert store.seeds == [20_000, 20_002, 20_003, 20_005, 20_006, 20_008]  # 20_001, 20_004, 20_007 are multiples of 3
    assert attempts(store) == 9
    assert store.path.name == f"to-the-goal-{store.meta.recipe_hash[:12]}"
    assert (store.meta.task, store.meta.env) == ("move the point to the goal", "point to the goal")
    for episode in store:
        assert episode.success[-1]
        assert not episode.success[:-1].any()


def test_seeds_of_two_collections_and_of_evaluation_are_disjoint():
    with pytest.raises(ValueError, match=r"data.seed is 100: expected a number in \[0, 99\]"):
        DataConfig(seed=100)
    assert SEED_LIMIT > 99 * 10_000 + 9_999


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("episodes", -1),
        ("seed", -1),
        ("noise", -0.1),
        ("noise", float("nan")),
        ("noise", float("inf")),
        ("after_success", -1),
        ("max_attempts_factor", 0),
        ("workers", 0),
    ],
)
def test_a_config_out_of_range_is_refused(field, value):
    with pytest.raises(ValueError, match=f"data.{field} is {value}: expected"):
        DataConfig(**{field: value})


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_a_seed_of_numpy_is_the_number_that_it_is(cache, kind):
    """np.uint8(3) * 10,000 is an error of its own."""
    given = gather(cache_dir=cache, episodes=kind(2), seed=kind(3))
    assert given.seeds == gather(cache_dir=cache, episodes=2, seed=3).seeds
    with pytest.raises(ValueError, match=r"data.seed is True, expected an integer"):
        DataConfig(seed=True)


@pytest.mark.parametrize("bounded", [True, False])
def test_records_what_the_expert_meant_and_executes_something_else(cache, bounded):
    noise = 0.15
    store = gather(PointConfig(bounded=bounded), cache_dir=cache, episodes=60, noise=noise)
    errors = []
    for episode in store:
        position, goal = episode.observation["position"], episode.observation["goal"]
        meant = GAIN * (goal - position)
        np.testing.assert_array_equal(episode.action, np.clip(meant, -1, 1) if bounded else meant)
        executed = np.diff(position, axis=0) / DT
        assert not bounded or np.abs(executed).max() < 1 + 1e-5
        inside = np.abs(episode.action[:-1]) < (0.4 if bounded else np.inf)  # the bounds are four deviations away
        errors.append((executed - episode.action[:-1])[inside])
    errors = np.concatenate(errors)
    # Five standard errors of the mean and of the standard deviation.
    assert abs(errors.mean()) < 5 * noise / np.sqrt(errors.size)
    assert abs(errors.std() - noise) < 5 * noise / np.sqrt(2 * errors.size)
    assert errors.size > 100


def test_without_noise_the_recorded_action_is_executed(cache):
    for episode in gather(cache_dir=cache, episodes=3, noise=0):
        executed = np.diff(episode.observation["position"], axis=0) / DT
        np.testing.assert_allclose(executed, episode.action[:-1], atol=1e-5)


def test_noise_is_independent_of_the_start_state(cache):
    # Two generators with one seed give the same bits: numpy takes the size of a normal number from those that, in a
    # uniform number drawn in its place, stand below the first three.
    store = gather(PointConfig(bounded=False), cache_dir=cache, episodes=120, noise=0.3)
    starts = np.array([episode.observation["position"][0] for episode in store], np.float64)
    below = 8 * (starts + 1) / 2 % 1
    noise = np.array([np.diff(e.observation["position"][:2], axis=0)[0] / DT - e.action[0] for e in store])
    for axis in range(2):
        assert abs(np.corrcoef(below[:, axis], np.abs(noise[:, axis]))[0, 1]) < 0.3


def test_records_on_after_the_first_success(cache):
    short = gather(cache_dir=cache, episodes=4)
    long = gather(cache_dir=cache, episodes=4, after_success=3)
    assert short.path != long.path
    for one, other in zip(short, long, strict=True):
        assert len(other) == len(one) + 3
        assert np.flatnonzero(other.success)[0] == len(one) - 1
        np.testing.assert_array_equal(other.action[: len(one)], one.action)


def test_an_episode_that_ends_soon_after_success_is_kept(cache):
    assert [len(episode) for episode in gather(cache_dir=cache, episodes=2, after_success=1000)] == [40, 40]


def test_a_complete_store_is_not_touched(cache):
    first = gather(cache_dir=cache, episodes=5)
    before = {file: file.stat().st_mtime_ns for file in first.path.rglob("*")}
    assert gather(cache_dir=cache, episodes=5).hash() == first.hash()
    assert gather(cache_dir=cache, episodes=3).seeds == first.seeds[:3]
    assert {file: file.stat().st_mtime_ns for file in first.path.rglob("*")} == before


def test_extending_equals_collecting_at_once(cache, tmp_path):
    assert len(gather(cache_dir=cache, episodes=4)) == 4
    extended = gather(cache_dir=cache, episodes=9)
    at_once = gather(cache_dir=str(tmp_path / "other"), episodes=9)
    assert extended.hash() == at_once.hash()
    assert len(extended) == 9


@pytest.mark.parametrize("change", [{"noise": 0.2}, {"seed": 1}, {"after_success": 1}])
def test_another_recipe_has_another_store(cache, change):
    assert gather(cache_dir=cache, episodes=1, **change).path != gather(cache_dir=cache, episodes=1).path


def test_another_environment_has_another_store(cache):
    config = PointConfig(fail_every=0)
    assert gather(config, cache_dir=cache, episodes=1).path != gather(cache_dir=cache, episodes=1).path


def test_a_store_may_have_more_episodes_than_a_collection(cache):
    store = gather(cache_dir=cache, episodes=1)
    folder = store.path / "episodes"
    for index in range(1, 10_002):
        os.link(folder / "000000.npz", folder / f"{index:06d}.npz")
    used = gather(cache_dir=cache, episodes=10_001)
    assert len(used) == 10_001
    assert used[10_000].seed == store[0].seed
    with pytest.raises(ValueError, match=r"fewer than the 10003 episodes .* a collection ends at 10000"):
        gather(cache_dir=cache, episodes=10_003)


def test_a_collection_is_not_begun_that_cannot_end(cache):
    with pytest.raises(ValueError, match=r"fewer than the 10001 episodes .* a collection ends at 10000"):
        gather(cache_dir=cache, episodes=10_001)
    assert not Path(cache).exists()


def test_no_noise_is_one_recipe(cache):
    assert gather(cache_dir=cache, episodes=1, noise=-0.0).path == gather(cache_dir=cache, episodes=1, noise=0).path


@pytest.mark.parametrize("recipe", [{"collector_version": 1}, {"collector_version": 1, "seed": "x"}])
def test_a_foreign_recipe_is_no_collection(tmp_path, cache, recipe):
    collected = gather(cache_dir=cache, episodes=1)
    store = Store.create(tmp_path / "store", replace(collected.meta, recipe=recipe))
    store.append(collected[0])
    assert attempts(store) == 0


def test_episodes_do_not_depend_on_the_number_of_workers(cache, tmp_path):
    alone = gather(cache_dir=cache, episodes=7)
    together = gather(cache_dir=str(tmp_path / "other"), episodes=7, workers=2)
    assert together.hash() == alone.hash()


def collecting(cache: str, workers: int) -> subprocess.Popen:
    """A process that collects 8 slow episodes."""
    command = (
        "from flowhand.commands.collect import *; from tests.demos.test_collect import PointConfig, PointEnv; "
        f"collect(PointConfig(delay_s=0.005), DataConfig(cache_dir={cache!r}, episodes=8, workers={workers}), "
        "make_env=PointEnv)"
    )
    return subprocess.Popen([sys.executable, "-c", command], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("uninterrupted"))
    return gather(PointConfig(delay_s=0.005), cache_dir=cache, episodes=8).hash()


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_killed_collection_continues_where_it_was(tmp_path, workers, uninterrupted):
    process = collecting(str(tmp_path), workers)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*/episodes/*.npz"))) < 3:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)  # returns when the workers, which share stderr, are gone too
    (path,) = tmp_path.iterdir()
    assert 3 <= len(Store.open(path)) < 8
    kept = {file: file.stat().st_mtime_ns for file in path.glob("episodes/*.npz")}
    resumed = gather(PointConfig(delay_s=0.005), cache_dir=str(tmp_path), episodes=8)
    assert resumed.hash() == uninterrupted
    assert all(file.stat().st_mtime_ns == time_ns for file, time_ns in kept.items())


def test_two_processes_share_one_collection(tmp_path, uninterrupted):
    processes = [collecting(str(tmp_path), workers=1) for _ in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    (path,) = tmp_path.iterdir()
    assert Store.open(path).hash() == uninterrupted
    assert sum("waiting for another process" in error for error in errors) <= 1


def test_an_expert_that_fails_too_often_ends_the_collection(cache):
    with pytest.raises(ValueError, match=r"0 of 20 attempts succeeded, expected at least 1 in 4.*lower data.noise"):
        gather(PointConfig(fail_every=1), cache_dir=cache)
    with pytest.raises(ValueError, match="10 of 21 attempts succeeded, expected at least 1 in 2"):
        gather(PointConfig(fail_every=2), cache_dir=cache, max_attempts_factor=2)
    assert len(gather(PointConfig(fail_every=2), cache_dir=cache, max_attempts_factor=3, episodes=30)) == 30


def test_an_explicit_store_is_written_used_and_extended(tmp_path):
    path = str(tmp_path / "mine")
    assert gather(path=path, episodes=3).path == Path(path)
    assert len(gather(path=path, episodes=5)) == 5
    used = gather(path=path, episodes=4, noise=0.2)
    assert used.seeds == Store.open(path).seeds[:4]
    with pytest.raises(ValueError, match=r"has 5 episodes, data.episodes asks for 6.*cannot be extended"):
        gather(path=path, episodes=6, noise=0.2)


def test_a_store_of_another_environment_is_refused(tmp_path):
    path = str(tmp_path / "mine")
    gather(PointConfig(bounded=False), path=path, episodes=1)
    with pytest.raises(
        ValueError, match=r"features differ in action.high \(None in the store, \[1.0, 1.0\] in the env"
    ):
        gather(path=path, episodes=1)


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not a store of demonstrations"):
        gather(path=str(tmp_path), episodes=1)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_without_an_expert_demonstrations_must_be_recorded(cache, tmp_path):
    config = PointConfig(has_expert=False)
    with pytest.raises(ValueError, match=r"point to the goal has no scripted expert: .*Store.create.*data.path"):
        gather(config, cache_dir=cache)
    assert not Path(cache).exists()
    with pytest.raises(ValueError, match="has no scripted expert"):
        attempt(PointEnv(config), DataConfig(), seed=0)
    source = gather(cache_dir=cache, episodes=2)
    meta = StoreMeta(source.meta.features, "by hand", "a real point", "", {})
    recorded = Store.create(tmp_path / "recorded", meta)
    for episode in source:
        recorded.append(replace(episode, task="by hand"))
    used = gather(config, path=str(recorded.path), episodes=2)
    assert (used.hash(), attempts(used)) == (recorded.hash(), 0)


def test_importing_the_collector_imports_no_hydra_and_no_torch():
    code = "import sys, flowhand.commands.collect; print(sorted({'hydra', 'omegaconf', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_metaworld_demonstrations_replay_to_success(tmp_path):
    pytest.importorskip("metaworld")
    from envs import MetaWorldConfig, make

    config = MetaWorldConfig(task="reach-v3")
    store = collect(config, DataConfig(cache_dir=str(tmp_path), episodes=2, noise=0), progress=False)
    env = make(config)
    for episode in store:
        observation, info = env.reset(seed=episode.seed)
        for step, action in enumerate(episode.action):
            for name, value in observation.items():
                np.testing.assert_array_equal(value, episode.observation[name][step])
            observation, _, _, _, info = env.step(action)
        assert info["success"]
    env.close()
