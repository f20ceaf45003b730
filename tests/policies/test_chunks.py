import re
import weakref
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy import stats

from flowhand.contracts.features import Feature, Spec
from policies import Windows

SPEC = Spec(
    {"state": Feature((1,), "float32", "m"), "image": Feature((2, 2, 3), "uint8", "")},
    Feature((1,), "float32", "N"),
    control_dt_s=0.1,
)


@dataclass
class Episode:
    observation: dict[str, np.ndarray]
    action: np.ndarray
    task: str = "reach"


def episode(start: int, steps: int) -> Episode:
    """Step n observes start + n and does start + n + 100."""
    n = np.arange(start, start + steps)
    image = np.broadcast_to(n.astype(np.uint8)[:, None, None, None], (steps, 2, 2, 3)).copy()
    return Episode({"state": n[:, None].astype(np.float32), "image": image}, (n[:, None] + 100).astype(np.float32))


def rows(batch) -> list[tuple[list[int], list[int], list[int]]]:
    """Observed states, actions and mask of every window, as integers."""
    parts = (batch.observation["state"][..., 0], batch.action[..., 0], batch.mask)
    return [tuple(part[i].int().tolist() for part in parts) for i in range(len(batch.mask))]


def test_windows_are_those_of_the_table():
    """History 3, prediction horizon 3, an episode of four steps and one of two."""
    windows = Windows([episode(0, 4), episode(50, 2)], SPEC, history=3, prediction_horizon=3)
    assert len(windows) == 6
    assert rows(windows.gather(torch.arange(6))) == [
        ([0, 0, 0], [100, 101, 102], [1, 1, 1]),
        ([0, 0, 1], [101, 102, 103], [1, 1, 1]),
        ([0, 1, 2], [102, 103, 103], [1, 1, 0]),
        ([1, 2, 3], [103, 103, 103], [1, 0, 0]),
        ([50, 50, 50], [150, 151, 151], [1, 1, 0]),
        ([50, 50, 51], [151, 151, 151], [1, 0, 0]),
    ]


def test_history_and_horizon_longer_than_the_episode():
    windows = Windows([episode(7, 2)], SPEC, history=5, prediction_horizon=6)
    assert rows(windows.gather(torch.tensor([1, 0]))) == [
        ([7, 7, 7, 7, 8], [108] * 6, [1, 0, 0, 0, 0, 0]),
        ([7, 7, 7, 7, 7], [107] + [108] * 5, [1, 1, 0, 0, 0, 0]),
    ]


def test_one_observation_and_one_action():
    windows = Windows([episode(0, 1), episode(9, 2)], SPEC, history=1, prediction_horizon=1)
    expected = [([0], [100], [1]), ([9], [109], [1]), ([10], [110], [1])]
    assert rows(windows.gather(torch.arange(3))) == expected


@pytest.mark.parametrize(("history", "horizon"), [(1, 1), (2, 5), (4, 3), (3, 3)])
def test_windows_agree_with_indexing_one_by_one(history, horizon):
    lengths = np.random.default_rng(0).integers(1, 9, size=12)
    episodes = [episode(10 * i, int(n)) for i, n in enumerate(lengths)]
    expected = [
        (
            [int(e.observation["state"][max(0, i + k), 0]) for k in range(1 - history, 1)],
            [int(e.action[min(i + k, len(e.action) - 1), 0]) for k in range(horizon)],
            [int(i + k < len(e.action)) for k in range(horizon)],
        )
        for e in episodes
        for i in range(len(e.action))
    ]
    windows = Windows(episodes, SPEC, history, horizon)
    assert len(windows) == len(expected)
    order = torch.randperm(len(windows))
    assert rows(windows.gather(order)) == [expected[i] for i in order]


def test_dtypes_are_kept_and_shapes_are_those_of_the_contract():
    batch = Windows([episode(0, 4)], SPEC, history=2, prediction_horizon=3).gather(torch.tensor([3, 0]))
    image = batch.observation["image"]
    assert image.dtype == torch.uint8
    assert image.shape == (2, 2, 2, 2, 3)
    assert image[0].float().mean(dim=(1, 2, 3)).tolist() == [2.0, 3.0]
    assert batch.observation["state"].dtype == batch.action.dtype == torch.float32
    assert batch.mask.dtype == torch.bool
    assert batch.action.shape == (2, 3, 1)


def test_windows_keep_their_own_copy():
    one = episode(0, 3)
    windows = Windows([one], SPEC, history=1, prediction_horizon=1)
    one.action[:] = -1
    one.observation["state"][:] = -1
    assert rows(windows.gather(torch.arange(3))) == [([n], [100 + n], [1]) for n in range(3)]


def test_draws_are_uniform_over_all_steps_of_all_episodes():
    windows = Windows([episode(0, 1), episode(10, 7), episode(20, 2)], SPEC, history=1, prediction_horizon=1)
    batch = windows.draw(20_000, torch.Generator().manual_seed(0))
    _, counts = batch.action[:, 0, 0].unique(return_counts=True)
    assert len(counts) == 10
    assert stats.chisquare(counts.numpy()).pvalue > 0.01


def test_draws_follow_from_the_generator():
    windows = Windows([episode(0, 50)], SPEC, history=1, prediction_horizon=1)
    first, second, third = (windows.draw(20, torch.Generator().manual_seed(seed)).action for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def changed(**change: np.ndarray) -> Episode:
    one = episode(0, 4)
    action = change.pop("action", one.action)
    return Episode({**one.observation, **change}, action)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            changed(state=np.zeros((4, 2), np.float32)),
            "episode 1: observation 'state' has shape (4, 2), expected (4, 1)",
        ),
        (changed(state=np.zeros((3, 1), np.float32)), "'state' has shape (3, 1), expected (4, 1)"),
        (changed(state=np.zeros(4, np.float32)), "'state' has shape (4,), expected (4, 1)"),
        (changed(state=np.zeros((4, 1), object)), "'state' is object, expected float32"),
        (changed(state=np.full((4, 1), 1e39)), "'state' has NaN or infinity"),
        (changed(image=np.zeros((4, 2, 2, 3), np.float32)), "'image' is float32, expected uint8"),
        (changed(action=np.zeros((4, 3), np.float32)), "episode 1: the action has shape (4, 3), expected (4, 1)"),
        (changed(depth=np.zeros((4, 1), np.float32)), "the observation has ['depth', 'image', 'state'], expected ["),
        (Episode({}, episode(0, 4).action), "the observation has [], expected ['image', 'state']"),
    ],
)
def test_an_episode_that_does_not_fit_is_an_error_naming_it(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Windows([episode(0, 4), wrong], SPEC, history=1, prediction_horizon=1)


def test_data_are_cast_to_float32_once():
    """Real data sets have double states, other byte orders and whole numbers."""
    plain = Windows([episode(0, 4)], SPEC, history=1, prediction_horizon=1)
    one = episode(0, 4)
    stored = changed(state=one.observation["state"].astype(">f8"), action=one.action.astype(np.int64))
    windows = Windows([stored], SPEC, history=1, prediction_horizon=1)
    assert windows.action.dtype == windows.observation["state"].dtype == torch.float32
    assert torch.equal(windows.observation["state"], plain.observation["state"])
    assert torch.equal(windows.action, plain.action)


def test_episodes_of_known_length_are_held_one_at_a_time():
    alive: list[weakref.ref] = []

    class Lazy:
        lengths = (4, 3, 5)

        def __iter__(self):
            for length in self.lengths:
                assert not [each for each in alive[:-1] if each() is not None]
                given = episode(0, length)
                alive.append(weakref.ref(given))
                yield given

    windows = Windows(Lazy(), SPEC, history=1, prediction_horizon=1)
    assert len(windows) == 12
    with pytest.raises(ValueError, match=r"episode 1: .* has shape"):
        Windows(Shorter(), SPEC, history=1, prediction_horizon=1)


class Shorter:
    """Says that its episodes are longer than they are."""

    lengths = (4, 4)

    def __iter__(self):
        return iter([episode(0, 4), episode(0, 3)])


def test_no_episode_is_an_error():
    with pytest.raises(ValueError, match="there are no episodes to train on; expected at least one"):
        Windows([], SPEC, history=1, prediction_horizon=1)


def test_a_window_tells_the_task_of_its_episode():
    tasks = ["push", "reach", "push"]
    episodes = [replace(episode(10 * i, 2), task=task) for i, task in enumerate(tasks)]
    windows = Windows(episodes, SPEC, history=1, prediction_horizon=1)
    assert windows.tasks == ["push", "reach"]
    batch = windows.gather(torch.arange(6))
    assert batch.task is not None
    assert batch.task.tolist() == [0, 0, 1, 1, 0, 0]
