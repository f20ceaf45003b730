"""A world that returns what it may not is stopped where it does, with seed and step, and what others did is kept."""

import functools
import math
import pickle

import numpy as np
import pytest

from envs import Env
from flowhand.commands.collect import attempt
from flowhand.contracts.features import Feature, Spec
from flowhand.contracts.observers import Observer
from flowhand.contracts.world import WorldError, real, truth
from flowhand.demos.config import DataConfig
from flowhand.evaluation.rollout import rollout

BAD = 3  # the seed whose episode goes wrong, at its second step, which is step 1


class Odd(Env):
    """Succeeds at its third step; on one seed something else than it should comes back from the second."""

    task, task_text, version = "odd", "be odd", "1"

    def __init__(self, wrong: str = "", value: object = None, solved: object = None):
        self.wrong, self.value, self.solved = wrong, value, solved
        feature = Feature((2,), "float32", "m")
        self.features = Spec({"state": feature}, feature, 0.1)
        self.expert = lambda _: np.zeros(2, np.float32)

    def reset(self, *, seed=None, options=None):
        self.seed, self.steps = seed, 0
        info = {"expert_observation": np.zeros(2)} | ({} if self.solved is None else {"success": self.solved})
        return {"state": np.zeros(2, np.float32)}, info

    def step(self, action):
        self.steps += 1
        info = {"success": self.steps == 3, "expert_observation": np.zeros(2)}
        given = {"reward": 1.0, "terminated": False, "truncated": False, "observation": np.zeros(2, np.float32)}
        if self.seed == BAD and self.steps == 2:
            (info if self.wrong == "success" else given)[self.wrong] = self.value
        if self.wrong == "no success":
            del info["success"]
        observation = {"state": given["observation"]}
        return observation, given["reward"], given["terminated"], given["truncated"], info


class Still:
    def reset(self, lane, seed):
        pass

    def act(self, observations):
        return {lane: np.zeros(2, np.float32) for lane in observations}


class Ended(Observer):
    """Appends the record of every episode that ends."""

    def __init__(self, records):
        self.records = records

    def episode_ends(self, event):
        self.records.append(event.record)


WRONG = [
    ("success", math.nan, r"info\['success'\] is nan, expected true or false"),
    ("success", 0.5, r"info\['success'\] is 0.5, expected true or false"),
    ("success", None, r"info\['success'\] is None, expected true or false"),
    ("success", "no", r"info\['success'\] is 'no', expected true or false"),
    ("success", np.array([1]), r"info\['success'\] is array\(\[1\]\), expected true or false"),
    ("reward", math.nan, r"the reward is nan, expected a finite number"),
    ("reward", np.float32("inf"), r"the reward is .*inf.*, expected a finite number"),
    ("reward", "1", r"the reward is '1', expected a finite number"),
    ("terminated", math.nan, r"terminated is nan, expected true or false"),
    ("truncated", 2, r"truncated is 2, expected true or false"),
    ("observation", np.array([0, np.nan], np.float32), r"observation 'state' has NaN or infinity in dimension 1"),
    ("observation", np.zeros(3, np.float32), r"observation 'state' has shape \(3,\), expected \(2,\)"),
]


@pytest.mark.parametrize(("wrong", "value", "message"), WRONG)
@pytest.mark.parametrize("agent", [Still(), "expert"])
def test_what_a_world_may_not_return_is_named_with_seed_and_step(agent, wrong, value, message):
    kept = []
    with pytest.raises(WorldError, match=rf"odd, seed {BAD}, step 1: {message}"):
        rollout(functools.partial(Odd, wrong, value), agent, [1, 2, BAD, 4], observers=[Ended(kept)])
    assert [record.seed for record in kept] == [1, 2]
    with pytest.raises(WorldError, match=rf"odd, seed {BAD}, step 1: {message}"):
        attempt(Odd(wrong, value), DataConfig(), BAD)


def test_episodes_that_end_at_the_same_time_are_kept(monkeypatch):
    kept = []
    make_env = functools.partial(Odd, "reward", math.nan)
    step = Odd.step
    monkeypatch.setattr(Odd, "step", lambda self, a: _ending(step(self, a), self.seed != BAD and self.steps == 2))
    with pytest.raises(WorldError, match=f"seed {BAD}, step 1"):
        rollout(make_env, Still(), [BAD, 1, 2], n_envs=3, observers=[Ended(kept)])
    assert sorted(record.seed for record in kept) == [1, 2]


def _ending(given, ends):
    return (*given[:3], ends, given[4])


def test_success_must_be_told():
    with pytest.raises(WorldError, match=r"odd, seed 1, step 0: info lacks 'success'.*\['expert_observation'\]"):
        rollout(functools.partial(Odd, "no success"), Still(), [1])


def test_a_sum_of_rewards_is_a_number_too():
    with pytest.raises(WorldError, match=f"seed {BAD}, step 2: the sum of the rewards is inf"):
        rollout(functools.partial(Huge), Still(), [BAD])


class Huge(Odd):
    def step(self, action):
        observation, _, terminated, truncated, info = super().step(action)
        return observation, 8e307, terminated, truncated, info


@pytest.mark.parametrize(
    "value", [True, False, 1, 0, 1.0, 0.0, np.True_, np.float32(1), np.int64(0), np.array(True), np.array(0.0)]
)
def test_what_counts_as_true_or_false(value):
    assert truth(value, "x") is (float(value) == 1)


@pytest.mark.parametrize("value", [2, -1.5, np.float32(0.1), np.int8(3), np.array(2.5), True])
def test_what_counts_as_a_number(value):
    assert type(real(value, "x")) is float
    assert real(value, "x") == float(value)


@pytest.mark.parametrize("agent", [Still(), "expert"])
def test_an_episode_that_begins_solved_is_told_apart(agent):
    records = rollout(functools.partial(Odd, solved=np.float64(1)), agent, [1])
    assert (records[0].success, records[0].solved_before) == (True, True)
    assert [r.solved_before for r in rollout(functools.partial(Odd, solved=False), agent, [1])] == [False]
    assert [r.solved_before for r in rollout(Odd, agent, [1])] == [False]
    with pytest.raises(WorldError, match=r"odd, seed 1, step 0: info\['success'\] of reset is 0.5"):
        rollout(functools.partial(Odd, solved=0.5), agent, [1])


def test_the_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(WorldError("odd, seed 3, step 2: x")))
    assert type(error) is WorldError
    assert str(error) == "odd, seed 3, step 2: x"
    from tests.envs.test_returned import Odd as Importable  # pytest's own name for this file is no import

    with pytest.raises(WorldError, match=f"odd, seed {BAD}, step 1: the reward is nan"):
        rollout(functools.partial(Importable, "reward", math.nan), "expert", [1, BAD], workers="process", processes=1)
