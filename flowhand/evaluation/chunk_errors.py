"""The error of predicted chunks on held-out episodes, beside what a line of code predicts. No simulator is needed.

An error is |predicted - recorded| of one dimension of the action, in the robot's units, averaged over the steps of a
chunk that lie within the episode, then over the decisions of an episode, then over episodes. Of an angle that wraps it
is the shorter way round; of a dimension that is a choice it is the share of wrong choices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flowhand.contracts.data.episode import Episode
from flowhand.contracts.features import ChunkConfig, Feature, Spec
from flowhand.contracts.history import with_previous
from flowhand.contracts.noise import noise
from flowhand.contracts.planner import Planner

MOST_WINDOWS = 50_000  # of the training episodes that a baseline looks at, evenly spread
ROWS = 64  # decisions in a call of the policy; a fixed number, so that none depends on how many there are
PENALTY = 1.0  # of the ridge regression, on inputs of unit variance


@dataclass(frozen=True)
class Decisions:
    """Decisions of one episode: what is seen at each, and what was done from there."""

    steps: np.ndarray  # (n,) control steps
    observation: dict[str, np.ndarray]  # histories (n, O, *shape)
    recorded: np.ndarray  # (n, T, A) actions; past the end of the episode the last one repeats
    mask: np.ndarray  # (n, T) bool; within the episode
    before: np.ndarray  # (n, A) action of the step before


def decisions(episode: Episode, spec: Spec, chunk: ChunkConfig, steps: np.ndarray) -> Decisions:
    """The windows of an episode at these control steps, each 1 or later."""
    last = len(episode) - 1
    seen = with_previous(episode.observation, episode.action, spec.observation)
    past = np.maximum(steps[:, None] + np.arange(1 - chunk.history, 1), 0)
    future = steps[:, None] + np.arange(chunk.prediction_horizon)
    observation = {name: np.asarray(seen[name], feature.dtype)[past] for name, feature in spec.observation.items()}
    action = np.asarray(episode.action, np.float32)
    return Decisions(steps, observation, action[np.minimum(future, last)], future <= last, action[steps - 1])


def judged_steps(episode: Episode, chunk: ChunkConfig) -> np.ndarray:
    """Where a policy is judged: at every decision that it would make, from step 1 on, which has an action before it."""
    return np.arange(1, len(episode), chunk.execution_horizon)


Predict = Callable[[Decisions], np.ndarray]  # chunks (n, T, A)


def repeat_last(at: Decisions) -> np.ndarray:
    """The action of the step before, for the whole chunk."""
    return np.repeat(at.before[:, None], at.recorded.shape[1], axis=1)


class Training:
    """Windows of the training episodes, from which the baselines predict.

    Args:
        episodes: they are read once.
        total: control steps in all of them.
        spec: what the policy observes; of it the vectors are used.
        chunk: of the policy.
    """

    def __init__(self, episodes: Iterable[Episode], total: int, spec: Spec, chunk: ChunkConfig):
        self.chunk = chunk
        self.vectors = [name for name, f in spec.observation.items() if f.dtype == "float32"]
        self.sensed = [name for name in self.vectors if name in spec.sensed]
        vectors = Spec({name: spec.observation[name] for name in self.vectors}, spec.action, spec.control_dt_s)
        # The two last observations are read whatever the history of the policy is.
        self._wide = ChunkConfig(max(2, chunk.history), chunk.prediction_horizon, chunk.execution_horizon)
        stride, start, found = -(-total // MOST_WINDOWS), 0, []
        for episode in episodes:
            steps = np.arange(1 + (-start) % stride, len(episode), stride)
            start += len(episode)
            found.append(decisions(episode, vectors, self._wide, steps))
        self.observation = {n: np.concatenate([each.observation[n] for each in found]) for n in self.vectors}
        self.chunks = np.concatenate([each.recorded for each in found])

    def inputs(self, observation: Mapping[str, np.ndarray], names: Sequence[str], history: int) -> np.ndarray:
        """The last observations of these names side by side, (n, D) float64."""
        parts = [observation[name][:, -history:].reshape(len(observation[name]), -1) for name in names]
        return np.concatenate(parts, axis=1).astype(np.float64)


def nearest_neighbour(training: Training) -> Predict:
    """The chunk that followed the most similar training observation, over what the policy sees, each value scaled.

    The distance is Euclidean, over values of unit variance; a constant one does not count.
    """
    names, history = training.vectors, training.chunk.history
    known, shift, scale = _standardized(training.inputs(training.observation, names, history))
    known = known.astype(np.float32)
    squares = (known**2).sum(1)

    def predict(at: Decisions) -> np.ndarray:
        asked = ((training.inputs(at.observation, names, history) - shift) / scale).astype(np.float32)
        return training.chunks[(squares - 2 * asked @ known.T).argmin(1)]

    return predict


def ridge(training: Training, names: Sequence[str], previous: str = "") -> Predict:
    """A linear map of the last two observations, by least squares with a penalty.

    Args:
        training: what it is fitted to.
        names: of the observations.
        previous: name of one more of which only the last value is taken; empty: none.
    """

    def inputs(observation: Mapping[str, np.ndarray]) -> np.ndarray:
        more = [training.inputs(observation, [previous], 1)] if previous else []
        return np.concatenate([training.inputs(observation, names, 2), *more], axis=1)

    known, shift, scale = _standardized(inputs(training.observation))
    chunks = training.chunks.reshape(len(known), -1).astype(np.float64)
    mean = chunks.mean(0)
    gram = known.T @ known + PENALTY * np.eye(known.shape[1])
    weight = np.linalg.solve(gram, known.T @ (chunks - mean))

    def predict(at: Decisions) -> np.ndarray:
        asked = (inputs(at.observation) - shift) / scale
        return (asked @ weight + mean).reshape(at.recorded.shape)

    return predict


def _standardized(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The values (N, D) with mean 0 and variance 1, what was taken off, and what they were divided by."""
    shift, scale = values.mean(0), values.std(0)
    scale = np.where(scale > 1e-6 * (1 + np.abs(shift)), scale, np.inf)
    return (values - shift) / scale, shift, scale


def sampled(policy: Planner, at: Decisions, episode: int, samples: int) -> np.ndarray:
    """Chunks (samples, n, T, A) as the policy itself samples them; the noise is that of (sample, episode, step)."""
    count, shape = len(at.steps), policy.noise_shape
    chunks = np.empty((samples, *at.recorded.shape), np.float32)
    for sample in range(samples):
        for start in range(0, count, ROWS):
            part = slice(start, min(count, start + ROWS))
            drawn = np.stack([noise(sample, episode, int(step), shape) for step in at.steps[part]])
            fill = ROWS - len(drawn)
            observation = {name: _padded(values[part], fill) for name, values in at.observation.items()}
            chunks[sample, part] = policy.plan(observation, _padded(drawn, fill))[: len(drawn)]
    return chunks


def _padded(values: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([values, np.zeros((rows, *values.shape[1:]), values.dtype)]) if rows else values


def mean_of(chunks: np.ndarray, action: Feature) -> np.ndarray:
    """The mean chunk (n, T, A) of samples (S, n, T, A); of a choice the first, angles turn the shorter way."""
    first, mean = chunks[0], chunks.mean(0)
    turned = list(action.wraps or ())
    mean[..., turned] = first[..., turned] + _turned(chunks[..., turned] - first[..., turned]).mean(0)
    mean[..., action.discrete] = first[..., action.discrete]
    return mean


def error(predicted: np.ndarray, at: Decisions, action: Feature) -> np.ndarray:
    """Mean absolute error (A,) float64 over the decisions of an episode; see the top of this file."""
    return _mean(_distance(predicted.astype(np.float64), at.recorded, action), at)


def movement(at: Decisions, action: Feature) -> np.ndarray:
    """How far the recorded action moves from the first of a chunk at most, mean over the decisions, (A,) float64."""
    recorded = at.recorded.astype(np.float64)
    return _distance(recorded, recorded[:, :1], action).max(1).mean(0)


def _distance(a: np.ndarray, b: np.ndarray, action: Feature) -> np.ndarray:
    gap = a - b
    turned = list(action.wraps or ())
    gap[..., turned] = _turned(gap[..., turned])
    gap = np.abs(gap)
    gap[..., action.discrete] = gap[..., action.discrete] > 0.5
    return gap


def _turned(angle: np.ndarray) -> np.ndarray:
    """The same angles (rad) in [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _mean(values: np.ndarray, at: Decisions) -> np.ndarray:
    """Mean (A,) over the steps of each chunk that are within the episode, and over the chunks."""
    mask = at.mask[..., None]
    return ((values * mask).sum(1) / mask.sum(1)).mean(0)
