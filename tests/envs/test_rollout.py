"""Records do not depend on how many episodes run at once or where, and every failure says which episode it was."""

import dataclasses
import functools
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import envs
from envs import Env, MetaWorldConfig
from flowhand.contracts.features import Feature, Spec
from flowhand.contracts.observers import Observer
from flowhand.evaluation.records import EpisodeRecord
from flowhand.evaluation.rollout import rollout
from flowhand.evaluation.workers import WorkerError
from flowhand.pages.video import Film
from tests.cases import some

ROOT = Path(__file__).parents[2]
SEEDS = [5, 3, 9, 1, 7, 2, 8]


class Ended(Observer):
    """Calls a function with the record of every episode that ends."""

    def __init__(self, call):
        self.call = call

    def episode_ends(self, event):
        self.call(event.record)


class Walk(Env):
    """A point walks on a line towards the place where success is; some seeds are traps."""

    def __init__(self, trap: str = "", pid_file: str = ""):
        if trap == "build":
            raise RuntimeError("cannot be built")
        if pid_file:
            with Path(pid_file).open("a") as file:
                file.write(f"{os.getpid()}\n")
        self.trap, self.task, self.task_text, self.version = trap, "walk", "walk to the goal", "test 1"
        feature = Feature((1,), "float32", "m")
        self.features = Spec({"state": feature}, feature, 0.1)
        self.expert = lambda observation: np.array([0.1 * observation[0]], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.steps, self.x = seed, 0, self.np_random.uniform(1, 2)
        return self._observe(), {"expert_observation": np.array([-self.x])}

    def step(self, action):
        self.steps += 1
        if self.seed == 9 and self.steps == 3:
            self._spring()
        self.x += float(action[0])
        # Success at the first two steps close to zero, then never again: any-time and final success differ.
        success = abs(self.x) < 0.5 and self.steps < 12
        info = {"success": success, "expert_observation": np.array([-self.x])}
        return self._observe(), -abs(self.x), False, self.steps >= 20, info

    def render(self):
        return np.full((2, 2, 3), self.steps, np.uint8)

    def _observe(self):
        return {"state": np.array([self.x], np.float32)}

    def _spring(self):
        if self.trap == "raise":
            raise ArithmeticError("the walker fell")
        if self.trap == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.trap == "exit":
            os._exit(3)


class Noisy:
    """Walks downhill with noise that depends on the seed and the step of the episode, not on the lane."""

    def __init__(self):
        self.rng: dict[int, np.random.Generator] = {}
        self.most_lanes = 0

    def reset(self, lane, seed):
        self.rng[lane] = np.random.default_rng(seed)

    def act(self, observations):
        self.most_lanes = max(self.most_lanes, len(observations))
        return {lane: -0.1 * one["state"] + self.rng[lane].normal(0, 0.02, 1) for lane, one in observations.items()}


class Saying:
    """Gives one fixed answer from the given step on."""

    def __init__(self, answer, step=0):
        self.answer, self.step, self.acts = answer, step, 0

    def reset(self, lane, seed):
        pass

    def act(self, observations):
        self.acts += 1
        answer = self.answer if self.acts > self.step else np.zeros(1)
        return {} if answer is None else dict.fromkeys(observations, answer)


def without_time(records: list[EpisodeRecord]) -> list[EpisodeRecord]:
    return [dataclasses.replace(record, wall_s=0.0) for record in records]


WAYS = [
    {"n_envs": 1},
    {"n_envs": 3},
    {"n_envs": 50},
    {"n_envs": 1, "workers": "process"},
    {"n_envs": 4, "workers": "process", "processes": 2},
]


@pytest.mark.parametrize("stop_at_success", some([True, False], [True]))
def test_records_are_the_same_however_many_run_and_wherever(stop_at_success):
    reference = without_time(rollout(Walk, Noisy(), SEEDS, stop_at_success=stop_at_success))
    expert = without_time(rollout(Walk, "expert", SEEDS, stop_at_success=stop_at_success))
    assert [record.seed for record in reference] == SEEDS
    assert len({record.return_ for record in reference}) == len(SEEDS)
    for way in WAYS:
        assert without_time(rollout(Walk, Noisy(), SEEDS, stop_at_success=stop_at_success, **way)) == reference
        assert without_time(rollout(Walk, "expert", SEEDS, stop_at_success=stop_at_success, **way)) == expert


def test_the_records_equal_a_plain_loop():
    for stop in (True, False):
        records = rollout(Walk, Noisy(), SEEDS, n_envs=2, stop_at_success=stop)
        for seed, record in zip(SEEDS, records, strict=True):
            env, agent, successes, total = Walk(), Noisy(), [], 0.0
            observation, _ = env.reset(seed=seed)
            agent.reset(0, seed)
            truncated = False
            while not (truncated or (stop and any(successes))):
                action = np.asarray(agent.act({0: observation})[0], np.float32)
                observation, reward, _, truncated, info = env.step(action)
                successes.append(info["success"])
                total += reward
            first = successes.index(True) + 1 if any(successes) else None
            told = (any(successes), successes[-1], "" if any(successes) else "time limit", "")
            expected = EpisodeRecord("walk", seed, *told, first, len(successes), total, 0.0)
            assert without_time([record]) == [expected]


def test_any_time_and_final_success_differ_if_the_episode_goes_on():
    (stopped,) = rollout(Walk, "expert", [1])
    (whole,) = rollout(Walk, "expert", [1], stop_at_success=False)
    assert (stopped.success, stopped.final_success) == (True, True)
    assert (whole.success, whole.final_success, whole.steps) == (True, False, 20)
    assert stopped.steps == stopped.first_success_step == whole.first_success_step


def test_all_lanes_are_decided_in_one_call():
    agent = Noisy()
    rollout(Walk, agent, SEEDS, n_envs=4, workers="process", processes=2)
    assert agent.most_lanes == 4


@pytest.mark.slow
def test_metaworld_is_the_same_in_workers_and_inline():
    make_env = functools.partial(envs.make, MetaWorldConfig(task="reach-v3", max_steps=60))
    seeds = range(1_000_000, 1_000_004)
    expert = rollout(make_env, "expert", seeds, n_envs=2, workers="process", processes=1)
    assert [record.success for record in expert] == [True] * 4
    assert without_time(expert) == without_time(rollout(make_env, "expert", seeds))
    agent = Saying(np.array([0.3, 0.2, 0.1, 0.0]))
    assert without_time(rollout(make_env, agent, seeds, n_envs=4)) == without_time(
        rollout(make_env, agent, seeds, n_envs=2, workers="process")
    )


def test_every_record_is_handed_over_as_soon_as_its_episode_ends():
    seen = []
    records = rollout(Walk, Noisy(), SEEDS, n_envs=3, observers=[Ended(seen.append)])
    assert sorted(seen, key=lambda record: SEEDS.index(record.seed)) == records
    # A killed evaluation keeps what it has: the first record is out before the later episodes have begun.
    started = []

    class Watching(Noisy):
        def reset(self, lane, seed):
            super().reset(lane, seed)
            started.append(seed)

    begun_at_record = []
    rollout(Walk, Watching(), SEEDS, observers=[Ended(lambda _: begun_at_record.append(len(started)))])
    assert begun_at_record == list(range(1, len(SEEDS) + 1))


@pytest.mark.parametrize("way", [{"n_envs": 2}, {"n_envs": 2, "workers": "process"}])
def test_images_are_kept_of_the_episodes_asked_for(way):
    kept = Film({3, 7}, every=4)
    rollout(Walk, "expert", SEEDS, observers=[kept], stop_at_success=False, **way)
    steps = {seed: [int(frame[0, 0, 0]) for frame in frames] for seed, frames in kept.frames.items()}
    assert steps == {3: [0, 4, 8, 12, 16, 20], 7: [0, 4, 8, 12, 16, 20]}


def test_the_last_image_shows_the_end():
    kept = Film([3], every=1000)
    (record,) = rollout(Walk, "expert", [3], observers=[kept])
    assert [int(frame[0, 0, 0]) for frame in kept.frames[3]] == [0, record.steps]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.array([np.nan]), r"walk, seed 3, step 2: the action is not finite: \[nan\]"),
        (np.array([np.inf]), "walk, seed 3, step 2: the action is not finite"),
        (np.zeros(2), r"walk, seed 3, step 2: got an action of shape \(2,\), expected \(1,\)"),
        (np.zeros((1, 1)), r"walk, seed 3, step 2: got an action of shape \(1, 1\)"),
        (None, "walk, seed 3, step 2: the agent gave no action for lane 0"),
    ],
)
def test_a_bad_action_names_seed_and_step(answer, message):
    with pytest.raises(ValueError, match=message):
        rollout(Walk, Saying(answer, step=2), [3])


@pytest.mark.parametrize("kind", [np.uint8, np.uint32, np.int64])
def test_seeds_and_counts_of_numpy_are_the_numbers_that_they_are(kind):
    plain = rollout(Walk, Noisy(), [3, 5], n_envs=2)
    given = rollout(Walk, Noisy(), kind([3, 5]), n_envs=kind(2))
    assert without_time(given) == without_time(plain)
    assert all(type(record.seed) is int for record in given)


@pytest.mark.parametrize("value", [True, 1.5, "3"])
def test_what_is_no_integer_is_no_seed_and_no_count(value):
    with pytest.raises(ValueError, match=r"a seed is .*, expected an integer"):
        rollout(Walk, Noisy(), [value])
    with pytest.raises(ValueError, match=r"n_envs is .*, expected an integer"):
        rollout(Walk, Noisy(), [3], n_envs=value)


def test_an_error_in_the_environment_names_the_episode():
    with pytest.raises(ArithmeticError, match="the walker fell") as caught:
        rollout(functools.partial(Walk, "raise"), Noisy(), SEEDS, n_envs=2)
    assert caught.value.__notes__ == ["This happened in walk, seed 9, step 2."]


TRAPS = {
    "raise": r"worker failed in walk, running the seeds \[.*9.*\]:\nTraceback(.|\n)*the walker fell\n.*seed 9, step 2",
    "die": r"a worker was killed by SIGKILL in walk, running the seeds \[.*9.*\]",
    "exit": r"a worker exited with status 3 in walk, running the seeds \[.*9.*\]",
    "build": r"a worker failed while it built its environments:\nTraceback(.|\n)*cannot be built",
}
ENDS = list(itertools.product(TRAPS, ("expert", "policy")))


@pytest.mark.parametrize(("trap", "agent"), some(ENDS, [("raise", "policy"), *ENDS[2:5], ("build", "policy")]))
def test_a_failing_worker_is_reported_and_none_is_left(trap, agent, tmp_path):
    pids = tmp_path / "pids"
    make_env = functools.partial(Walk, trap, str(pids))
    started = time.monotonic()
    with pytest.raises(WorkerError, match=TRAPS[trap]):
        rollout(make_env, Noisy() if agent == "policy" else "expert", SEEDS, n_envs=4, workers="process", processes=2)
    assert time.monotonic() - started < 20
    assert_gone(pids, at_least=0 if trap == "build" else 2)


def assert_gone(pids: Path, *, at_least: int) -> None:
    numbers = {int(line) for line in pids.read_text().split()} if pids.exists() else set()
    assert len(numbers) >= at_least
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in numbers):
        assert time.monotonic() < deadline, f"some of the workers {numbers} are still there"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


SCRIPT = """
import functools
from flowhand.evaluation.rollout import rollout
from tests.envs.test_rollout import Noisy, Walk
{definition}
make_env = functools.partial({make_env}, "", {pids!r})
records = rollout(make_env, Noisy(), {seeds}, n_envs=2, workers="process", processes=2)
print("finished", len(records))
"""


def start_script(tmp_path: Path, seeds: str, make_env: str = "Walk", definition: str = "") -> subprocess.Popen:
    script = tmp_path / "script.py"
    text = SCRIPT.format(pids=str(tmp_path / "pids"), seeds=seeds, make_env=make_env, definition=definition)
    script.write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, str(script)], env=environment, stdout=pipe, stderr=pipe, text=True)


def test_a_script_needs_no_main_guard(tmp_path):
    output, errors = start_script(tmp_path, "range(4)").communicate(timeout=60)
    assert output == "finished 4\n", errors


def test_what_is_defined_in_the_script_is_refused(tmp_path):
    script = start_script(tmp_path, "range(4)", make_env="Mine", definition="class Mine(Walk): pass")
    _, errors = script.communicate(timeout=60)
    assert "make_env refers to the running script, which workers do not import: pass functools.partial(envs" in errors


def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    script, pids = start_script(tmp_path, "range(1_000_000)"), tmp_path / "pids"
    deadline = time.monotonic() + 30
    while not (pids.exists() and len(pids.read_text().split()) == 2):
        assert time.monotonic() < deadline, script.communicate()
        time.sleep(0.05)
    script.kill()
    script.communicate()
    assert_gone(pids, at_least=2)


def test_what_cannot_be_pickled_is_refused():
    with pytest.raises(
        ValueError, match=r"make_env cannot be sent to a worker .*functools.partial\(envs.make, config\)"
    ):
        rollout(lambda: Walk(), Noisy(), SEEDS, workers="process")


def test_no_expert_is_an_error():
    def make_env():
        env = Walk()
        env.expert = None
        return env

    with pytest.raises(ValueError, match="walk has no scripted expert"):
        rollout(make_env, "expert", SEEDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": []}, "got 0 seeds"),
        ({"seeds": [1, 2, 1]}, "got 3 seeds, 2 of them different"),
        ({"n_envs": 0}, "n_envs is 0, expected 1 or more"),
        ({"processes": -1}, "processes is -1"),
        ({"workers": "thread"}, "workers is 'thread', expected 'inline' or 'process'"),
        ({"observers": [print]}, r"got <built-in function print> among the observers, expected an Observer"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        rollout(Walk, Noisy(), **{"seeds": SEEDS, **arguments})


def test_the_bar_shows_the_success_rate(capsys):
    records = rollout(Walk, "expert", SEEDS, progress=True)
    rollout(Walk, "expert", SEEDS)
    successes = sum(record.success for record in records)
    errors = capsys.readouterr().err
    assert errors.count("walk: 100%") == 1
    assert 0 < successes < 7
    assert f"success {successes}/7 = {successes / 7:.2f}" in errors
