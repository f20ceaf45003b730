"""Plans as labels: stored, read back, cut, and turned into windows, against loops written out."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from flowhand.contracts.data.episode import Episode
from flowhand.contracts.features import Feature, Spec
from flowhand.contracts.screen.fields import ACTIONS, STOP, action_feature, observation_features
from flowhand.contracts.screen.plans import counted, cut, stop_of
from flowhand.demos.meta import StoreMeta
from flowhand.demos.native import Store
from flowhand.demos.states import StateEpisodes
from policies import Windows

SPEC = Spec(observation_features(), action_feature(), None)


def make_episode(seed, steps, length=3):
    """An episode whose plan at each state is random; the first stop of each stands anywhere, or nowhere."""
    rng = np.random.default_rng(seed)
    observation = {
        name: rng.integers(0, 2, (steps, *feature.shape)).astype(feature.dtype)
        for name, feature in SPEC.observation.items()
    }
    choices = np.array(SPEC.action.choices)
    plan = rng.integers(0, np.maximum(choices, 2), (steps, length, SPEC.action.size)).astype(np.float32)
    reward = np.zeros(steps, np.float32)
    return Episode(observation, plan[:, 0].copy(), reward, reward > 0, f"task {seed % 2}", seed, None, plan=plan)


def plan_of(episode) -> np.ndarray:
    assert episode.plan is not None
    return episode.plan


def store_of(path, episodes):
    store = Store.create(path / "store", StoreMeta(SPEC.to_dict(), "", "screens", "", {}))
    for episode in episodes:
        store.append(episode)
    return Store.open(store.path)


def test_the_choice_that_uses_nothing_is_the_one_that_stops():
    assert stop_of(SPEC.action) == STOP == ACTIONS.index("stop")
    assert stop_of(replace(SPEC.action, uses=None)) is None


@pytest.mark.parametrize("horizon", [1, 2, 3, 5])
def test_windows_are_plans_up_to_their_first_stop(horizon):
    episodes = [make_episode(seed, steps, 3) for seed, steps in ((0, 4), (1, 1), (2, 30))]
    windows = Windows(episodes, SPEC, 1, horizon)
    batch = windows.gather(torch.arange(len(windows)))
    row = 0
    for episode in episodes:
        for step in range(len(episode)):
            expected, mask, open_ = [], [], True
            for t in range(horizon):
                action = plan_of(episode)[step, t] if t < 3 else np.eye(1, SPEC.action.size)[0] * STOP
                expected.append(action)
                mask.append(open_)
                open_ = open_ and action[0] != STOP
            np.testing.assert_array_equal(batch.action[row], np.array(expected, np.float32))
            assert batch.mask[row].tolist() == mask
            row += 1


def test_a_plan_is_read_as_it_was_written_and_is_part_of_what_is_hashed(tmp_path):
    episodes = [make_episode(0, 4), make_episode(1, 2, length=12)]
    store = store_of(tmp_path, episodes)
    for read, written in zip(store, episodes, strict=True):
        assert plan_of(read).dtype == np.float32
        np.testing.assert_array_equal(plan_of(read), plan_of(written))
    np.testing.assert_array_equal(plan_of(store.read(0, 1, 3)), plan_of(episodes[0])[1:3])
    np.testing.assert_array_equal(store.plan(1), episodes[1].plan)
    other = store_of(tmp_path / "other", [episodes[0], replace(episodes[1], plan=plan_of(episodes[1])[:, :6])])
    bare = store_of(tmp_path / "bare", [replace(each, plan=None) for each in episodes])
    assert len({store.hash(), other.hash(), bare.hash()}) == 3
    assert [each.plan for each in bare] == [None, None]


def test_elements_and_plans_of_a_store_reach_the_windows_as_they_are(tmp_path):
    store = store_of(tmp_path, [make_episode(0, 4), make_episode(1, 2)])
    episodes = StateEpisodes(store)
    assert episodes.spec == SPEC
    got, expected = Windows(episodes, SPEC, 1, 4), Windows(list(store), SPEC, 1, 4)
    a, b = (each.gather(torch.arange(6)) for each in (got, expected))
    assert torch.equal(a.action, b.action)
    assert torch.equal(a.mask, b.mask)
    for name, feature in SPEC.observation.items():
        assert a.observation[name].shape == (6, 1, *feature.shape)
        assert torch.equal(a.observation[name], b.observation[name])


def damaged(plan, value, *place):
    plan = plan.copy()
    plan[place] = value
    return plan


PLAN = plan_of(make_episode(0, 4))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (PLAN[:3], "plan has 3 steps but action has 4"),
        (PLAN[:, 0], "plan has shape (4, 8): expected (4, 'T', 8)"),
        (PLAN[:, :0], "plan has shape (4, 0, 8): expected (4, 'T', 8)"),
        (PLAN[..., :7], "plan has shape (3, 7) from step 0 on: expected (3, 8)"),
        (PLAN.astype(np.float64), "plan has dtype float64"),
        (damaged(PLAN, np.nan, 2, 1, 5), "plan is nan at step 2, dimension"),
        (damaged(PLAN, 64, 2, 1, 1), "plan is 64 at step 2, action 1, dimension 1: expected one of its 64 choices"),
        (damaged(PLAN, 0.5, 3, 0, 0), "plan is 0.5 at step 3, action 0, dimension 0: expected one of its 7 choices"),
    ],
)
def test_a_plan_that_is_none_is_refused(plan, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(make_episode(0, 4), plan=plan).validate(SPEC)


def test_a_plan_needs_an_action_that_stops():
    action = Feature((2,), "float32", "", choices=(3, 0))
    spec = Spec({"state": Feature((1,), "float32", "")}, action, None)
    zeros = np.zeros(1, np.float32)
    episode = Episode({"state": zeros[:, None]}, np.zeros((1, 2), np.float32), zeros, zeros > 0, "", 0, None)
    episode.validate(spec)
    with pytest.raises(ValueError, match="a plan ends with an action that uses no dimension but the first"):
        replace(episode, plan=np.zeros((1, 3, 2), np.float32)).validate(spec)


def test_episodes_with_and_without_plans_are_not_mixed():
    episodes = [make_episode(0, 4), replace(make_episode(1, 2), plan=None)]
    with pytest.raises(ValueError, match="1 of 2 episodes have a plan; expected all of them, or none"):
        Windows(episodes, SPEC, 1, 4)


def test_a_plan_that_is_filled_stops_where_it_ended():
    plan = np.ones((2, 3, SPEC.action.size), np.float32)
    assert cut(plan, 5, SPEC.action)[0, :, 0].tolist() == [1, 1, 1, STOP, STOP]
    assert counted(cut(plan, 5, SPEC.action), SPEC.action).tolist() == [[True] * 4 + [False]] * 2
