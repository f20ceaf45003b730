"""Errors of predicted chunks and the baselines beside them, held against loops over single numbers."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flowhand.contracts.data.episode import Episode
from flowhand.contracts.features import PREVIOUS, ChunkConfig, Feature, Spec
from flowhand.contracts.noise import noise
from flowhand.evaluation import chunk_errors
from flowhand.evaluation.statistics import bootstrap_mean

O, T, STRIDE = 3, 4, 2  # noqa: E741
CHUNK = ChunkConfig(O, T, STRIDE)
PLAIN = Spec({"state": Feature((3,), "float32", "")}, Feature((2,), "float32", "rad"), 0.1)
SPEC = PLAIN.with_previous_action()


def episode_of(seed: int, steps: int) -> Episode:
    random = np.random.default_rng(seed)
    state = np.cumsum(random.normal(size=(steps, 3)), axis=0).astype(np.float32)
    action = (state[:, :2] + 0.1 * random.normal(size=(steps, 2))).astype(np.float32)
    return Episode({"state": state}, action, np.zeros(steps, np.float32), np.zeros(steps, bool), "", seed, 0.1)


def previous(episode: Episode, i: int) -> np.ndarray:
    return episode.action[i - 1] if i else np.zeros(2)


def seen(episode: Episode, i: int, names: tuple[str, ...], history: int) -> np.ndarray:
    """What is observed at a step, one number after the other."""
    values = []
    for name in names:
        for j in range(i - history + 1, i + 1):
            values += list(previous(episode, max(j, 0)) if name == PREVIOUS else episode.observation[name][max(j, 0)])
    return np.array(values, np.float64)


def brute_force(episode: Episode, predict) -> np.ndarray:
    """The mean over decisions of the mean over the steps within the episode, of every dimension."""
    found = []
    for i in range(1, len(episode), STRIDE):
        chunk, within = predict(episode, i), [k for k in range(T) if i + k < len(episode)]
        errors = [[abs(chunk[k][a] - episode.action[i + k][a]) for a in range(2)] for k in within]
        found.append([sum(e[a] for e in errors) / len(errors) for a in range(2)])
    return np.mean(found, axis=0)


def chunk_of(episode: Episode, i: int) -> np.ndarray:
    return np.array([episode.action[min(i + k, len(episode) - 1)] for k in range(T)], np.float64)


TRAINED, UNSEEN = [episode_of(seed, n) for seed, n in ((0, 9), (1, 1), (2, 14), (3, 6))], episode_of(7, 10)
ROWS = [(episode, i) for episode in TRAINED for i in range(1, len(episode))]


@pytest.fixture(scope="module")
def training():
    return chunk_errors.Training(iter(TRAINED), 30, SPEC, CHUNK)


def error_of(predict) -> np.ndarray:
    at = chunk_errors.decisions(UNSEEN, SPEC, CHUNK, chunk_errors.judged_steps(UNSEEN, CHUNK))
    return chunk_errors.error(predict(at), at, SPEC.action)


def test_repeating_the_last_action():
    expected = brute_force(UNSEEN, lambda episode, i: [episode.action[i - 1]] * T)
    np.testing.assert_allclose(error_of(chunk_errors.repeat_last), expected, rtol=1e-6)


def test_the_nearest_neighbour(training):
    rows = np.array([seen(e, i, ("state", PREVIOUS), O) for e, i in ROWS])
    shift, scale = rows.mean(0), rows.std(0)

    def predict(episode, i):
        gaps = [sum(((row - seen(episode, i, ("state", PREVIOUS), O)) / scale) ** 2) for row in rows]
        return chunk_of(*ROWS[int(np.argmin(gaps))])

    assert shift.shape == (3 * O + 2 * O,)
    np.testing.assert_allclose(
        error_of(chunk_errors.nearest_neighbour(training)), brute_force(UNSEEN, predict), rtol=1e-5
    )


@pytest.mark.parametrize("with_previous", [False, True])
def test_ridge_regression(training, with_previous):
    def inputs(episode, i):
        more = [previous(episode, i)] if with_previous else []
        return np.concatenate([seen(episode, i, ("state",), 2), *more])

    rows = np.array([inputs(e, i) for e, i in ROWS])
    shift, scale = rows.mean(0), rows.std(0)
    chunks = np.array([chunk_of(e, i).ravel() for e, i in ROWS])
    # The penalty as further rows of a least squares problem, which has another way to the solution.
    tall = np.concatenate([(rows - shift) / scale, np.eye(rows.shape[1])])
    target = np.concatenate([chunks - chunks.mean(0), np.zeros((rows.shape[1], chunks.shape[1]))])
    weight = np.linalg.lstsq(tall, target, rcond=None)[0]

    def predict(episode, i):
        return (((inputs(episode, i) - shift) / scale) @ weight + chunks.mean(0)).reshape(T, 2)

    found = error_of(chunk_errors.ridge(training, ["state"], PREVIOUS if with_previous else ""))
    np.testing.assert_allclose(found, brute_force(UNSEEN, predict), rtol=1e-6)


def test_of_many_windows_evenly_spread_ones_are_taken(monkeypatch):
    monkeypatch.setattr(chunk_errors, "MOST_WINDOWS", 10)
    few = chunk_errors.Training(iter(TRAINED), 30, SPEC, CHUNK)
    steps = [(e, i) for e in TRAINED for i in range(len(e))]
    expected = [chunk_of(*steps[place]) for place in range(1, 30) if (place - 1) % 3 == 0 and steps[place][1] > 0]
    np.testing.assert_array_equal(few.chunks, np.array(expected, np.float32))


def test_the_policy_samples_with_noise_of_sample_episode_and_step():
    at = chunk_errors.decisions(UNSEEN, SPEC, CHUNK, np.array([1, 3, 5]))
    calls = []

    def plan(observation, drawn, prefix=None):
        calls.append(len(drawn))
        return np.repeat(drawn[:, :1], T, axis=1) + observation["state"][:, -1:, :1]

    policy: Any = SimpleNamespace(noise_shape=(5, 2), plan=plan)
    found = chunk_errors.sampled(policy, at, episode=11, samples=2)
    for sample in range(2):
        for n, step in enumerate((1, 3, 5)):
            first = noise(sample, 11, step, (5, 2))[0] + UNSEEN.observation["state"][step, 0]
            np.testing.assert_allclose(found[sample, n], np.repeat(first[None], T, axis=0), rtol=1e-6)
    assert set(calls) == {chunk_errors.ROWS}  # so that a chunk does not depend on how many are asked for


def test_angles_turn_the_shorter_way_and_choices_are_right_or_wrong():
    action = Feature((3,), "float32", "", choices=(0, 0, 4), wraps=(0,))
    at = chunk_errors.Decisions(
        np.array([1]), {}, np.zeros((1, 2, 3), np.float32), np.ones((1, 2), bool), np.zeros((1, 3))
    )
    predicted = np.array([[[2 * math.pi - 0.25, 2.0, 3.0], [0.25, 1.0, 0.0]]])
    np.testing.assert_allclose(chunk_errors.error(predicted, at, action), [0.25, 1.5, 0.5], atol=1e-6)
    two = np.array([[[[math.pi - 0.1, 1.0, 3.0]]], [[[-math.pi + 0.3, 2.0, 0.0]]]])
    mean = chunk_errors.mean_of(two, action)[0, 0]
    np.testing.assert_allclose(mean, [math.pi + 0.1, 1.5, 3.0])


def test_movement_is_the_farthest_from_the_first_action():
    at = chunk_errors.decisions(UNSEEN, SPEC, CHUNK, np.array([1, 7]))
    chunks = [chunk_of(UNSEEN, i) for i in (1, 7)]
    farthest = [[max(abs(chunk[k][a] - chunk[0][a]) for k in range(T)) for a in range(2)] for chunk in chunks]
    np.testing.assert_allclose(chunk_errors.movement(at, SPEC.action), np.mean(farthest, axis=0), rtol=1e-6)


def test_the_bootstrap_of_two_rows_is_the_binomial_distribution():
    """The mean of two rows drawn again is 0, 1/2 or 1 with probabilities 1/4, 1/2, 1/4."""
    for confidence, expected in ((0.45, (0.5, 0.5)), (0.55, (0.0, 1.0))):
        low, high = bootstrap_mean(np.array([0.0, 1.0]), confidence)
        assert (float(low), float(high)) == expected


def test_the_bootstrap_agrees_with_loops_and_pairs_the_columns():
    values = np.random.default_rng(3).normal(size=(12, 2))
    values[:, 1] = values[:, 0] + 1  # with the same draws the interval is the same one, moved
    low, high = bootstrap_mean(values)
    np.testing.assert_allclose([low[1], high[1]], [low[0] + 1, high[0] + 1], rtol=1e-12)
    random = np.random.default_rng(4)
    means = [np.mean([values[random.integers(12), 0] for _ in range(12)]) for _ in range(4000)]
    np.testing.assert_allclose([low[0], high[0]], np.quantile(means, [0.025, 0.975]), atol=0.05)
    with pytest.raises(ValueError, match="expected at least one row"):
        bootstrap_mean(np.empty((0, 2)))
