"""Another acts, and the expert says what it would do; plans and instructions of episodes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from envs import Env, EnvConfig
from flowhand.commands.collect import Actor, attempt, collect
from flowhand.contracts.features import Feature, Spec
from flowhand.demos.config import DataConfig
from flowhand.evaluation.rollout import rollout

LINE = Spec({"place": Feature((1,), "float32", "m")}, Feature((1,), "float32", "m", (-1.0,), (1.0,)), 0.1)
KINDS = Feature(
    (2,), "float32", "", choices=(2, 0), kind="action", names=("kind", "dx"), uses=((), (1,))
)  # stop, or a step
STEPS = Spec({"place": Feature((1,), "float32", "m")}, KINDS, None)


@dataclass
class LineConfig(EnvConfig):
    kind: str = "line"
    task: str = "right"  # or left
    plans: bool = False
    lost_at: float = 9.0  # from here on the expert knows no way


class Line(Env):
    """A place on a line, from which 3 is to be reached, on the side that the task names."""

    version = "line 1"

    def __init__(self, config: LineConfig):
        self.config, self.task = config, config.task
        self.features = STEPS if config.plans else LINE
        self.task_text = "go"

    def reset(self, *, seed=None, options=None):
        self.place, self.steps = 0.0, 0
        self.task_text = f"go {self.config.task} with seed {seed}"
        self.side = 1.0 if self.config.task == "right" else -1.0
        self.expert = self._plan if self.config.plans else self._action
        return self._seen(), {"expert_observation": np.array(self.place)}

    def step(self, action):
        self.place += float(action[-1])
        self.steps += 1
        info = {"expert_observation": np.array(self.place), "success": self.side * self.place >= 3}
        return self._seen(), 0.0, bool(info["success"]), self.steps == 6, info

    def _seen(self):
        return {"place": np.array([self.place], np.float32)}

    def _action(self, place):
        return np.array([10.0 * self.side])  # beyond the bounds, which stores must not see

    def _plan(self, place):
        if abs(place) >= self.config.lost_at:
            return np.zeros((0, 2), np.float32)
        plan = np.zeros((5, 2), np.float32)
        left = int(np.ceil(3 - self.side * place))
        plan[:left] = 1.0, self.side
        return plan


class Wanderer:
    """Goes half a metre to the right, whatever is asked for."""

    def __init__(self, size: int):
        self.action = np.array([1.0, 0.5], np.float32)[-size:]

    def reset(self, lane, seed):
        pass

    def act(self, observations):
        return dict.fromkeys(observations, self.action)


def gather(tmp_path, config: LineConfig, actor: Actor | None = None, **data):
    data = DataConfig(cache_dir=str(tmp_path), **{"episodes": 2, **data})
    return collect(config, data, progress=False, make_env=Line, actor=actor)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_stored_is_the_experts_answer_where_the_actor_went(tmp_path, workers):
    config = LineConfig(task="left")
    store = gather(tmp_path, config, Actor(Wanderer(1), "wanderer", LINE), workers=workers)
    for episode in store:  # none of which succeeds
        np.testing.assert_allclose(episode.observation["place"][:, 0], np.arange(6) / 2)
        np.testing.assert_array_equal(episode.action, -np.ones((6, 1), np.float32))
        assert not episode.success.any()
    assert store.seeds == [0, 1]
    assert store.meta.recipe["actor"] == "wanderer"


def test_plans_are_relabelled_and_states_without_an_answer_are_left_out(tmp_path):
    config = LineConfig(plans=True, lost_at=1.5)
    store = gather(tmp_path, config, Actor(Wanderer(2), "wanderer", STEPS), episodes=1)
    np.testing.assert_allclose(store[0].observation["place"][:, 0], [0.0, 0.5, 1.0])
    plan = store[0].plan
    assert plan is not None
    assert plan.shape == (3, 5, 2)
    assert plan[:, :, 0].sum(-1).tolist() == [3, 3, 2]
    np.testing.assert_array_equal(store[0].action, plan[:, 0])


def test_an_expert_with_plans_is_asked_at_every_state(tmp_path):
    store = gather(tmp_path, LineConfig(plans=True, task="left"))
    plan = store[1].plan
    assert plan is not None
    assert plan[:, :, 0].sum(-1).tolist() == [3, 2, 1]
    np.testing.assert_array_equal(store[1].action, np.tile([1.0, -1.0], (3, 1)).astype(np.float32))
    assert [episode.task for episode in store] == ["go left with seed 0", "go left with seed 1"]


def test_an_expert_that_knows_no_way_fails(tmp_path):
    records = rollout(partial(Line, LineConfig(plans=True, lost_at=2.0)), "expert", [1])
    assert records[0].failure == "the expert knows no way on"
    assert attempt(Line(LineConfig(plans=True, lost_at=2.0)), DataConfig(), 1) is None


def test_noise_on_choices_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"data.noise is 0.1, and an action of this world is right or wrong: expected 0"
    ):
        gather(tmp_path, LineConfig(plans=True), noise=0.1)
    with pytest.raises(ValueError, match=r"data.noise is 0.2, and the expert does not act: expected 0"):
        gather(tmp_path, LineConfig(), Actor(Wanderer(1), "wanderer", LINE), noise=0.2)
