"""Controller: chunks of actions to one action per control step. Evaluation and robot run this same object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from .spec import ChunkConfig, Spec


@runtime_checkable
class Planner(Protocol):
    """What decides on chunks: a `Policy`, or an exported one that needs no torch."""

    @property
    def spec(self) -> Spec:
        """What it sees and commands."""
        ...

    @property
    def chunk(self) -> ChunkConfig:
        """How much it sees, predicts and executes."""
        ...

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise of one decision."""
        ...

    def plan(self, observation: Mapping[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        """Chunks (B, T, A) in physical units from histories, each (B, O, *shape), and noise (B, *noise_shape)."""
        ...


@dataclass
class _Track:
    """One robot's episode so far."""

    seed: int
    decisions: int = 0
    history: list[dict[str, np.ndarray]] = field(default_factory=list)  # the last O observations, oldest first
    queue: list[np.ndarray] = field(default_factory=list)  # actions still to execute, next first


class Controller:
    """Receding horizon control of any number of robots ("lanes") with one policy.

    A lane decides when its queue is empty: it predicts a chunk, executes the first `execution_horizon` actions and
    decides anew. All lanes that must decide share inference calls of exactly `inference_batch` rows (unused rows are
    padding), and the noise of a decision is a function of (noise seed, episode seed, number of the decision) alone.
    So a lane's actions do not depend on how many lanes run beside it.

    Args:
        policy: gives chunks.
        execution_horizon: actions executed per decision; None takes the policy's own.
        inference_batch: rows of every inference call.
        noise_seed: another value gives another draw of all noise.
    """

    def __init__(
        self, policy: Planner, execution_horizon: int | None = None, inference_batch: int = 1, noise_seed: int = 0
    ):
        horizon = policy.chunk.execution_horizon if execution_horizon is None else execution_horizon
        if not 1 <= horizon <= policy.chunk.prediction_horizon:
            raise ValueError(f"execution_horizon={horizon} must lie in 1..{policy.chunk.prediction_horizon}")
        if inference_batch < 1:
            raise ValueError(f"inference_batch={inference_batch} must be at least 1")
        if not 0 <= noise_seed < 2**32:
            raise ValueError(f"noise_seed={noise_seed} must lie in [0, 2^32)")
        self.policy = policy
        self.execution_horizon = horizon
        self.inference_batch = inference_batch
        self.noise_seed = noise_seed
        self._tracks: dict[int, _Track] = {}

    def reset(self, lane: int = 0, seed: int = 0) -> None:
        """Starts an episode in a lane; the seed, in [0, 2^32), fixes all the noise of the episode."""
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed} must lie in [0, 2^32)")
        self._tracks[lane] = _Track(seed)

    def step(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """The action (A,) for the observation of a single robot (lane 0)."""
        return self.act({0: observation})[0]

    def act(self, observations: Mapping[int, Mapping[str, np.ndarray]]) -> dict[int, np.ndarray]:
        """One action (A,), in physical units, for every lane given; each lane must have been reset.

        Raises:
            ValueError: an observation that lacks a feature, has the wrong shape or is not finite.
        """
        for lane, observation in observations.items():
            self._check(lane, observation)
        for lane, observation in observations.items():
            self._observe(lane, observation)
        waiting = [lane for lane in observations if not self._tracks[lane].queue]
        for start in range(0, len(waiting), self.inference_batch):
            self._decide(waiting[start : start + self.inference_batch])
        return {lane: self._tracks[lane].queue.pop(0) for lane in observations}

    def _check(self, lane: int, observation: Mapping[str, np.ndarray]) -> None:
        """Raises `ValueError` saying what is wrong with the observation."""
        if lane not in self._tracks:
            raise ValueError(f"lane {lane} has no episode; call reset(lane, seed) first")
        for name, feature in self.policy.spec.observation.items():
            if name not in observation:
                raise ValueError(f"the observation lacks {name!r}; it has {sorted(observation)}")
            value = np.asarray(observation[name])
            if value.shape != feature.shape:
                raise ValueError(f"observation {name!r} has shape {value.shape}, the policy expects {feature.shape}")
            if not np.can_cast(value.dtype, feature.dtype, "same_kind"):
                raise ValueError(f"observation {name!r} is {value.dtype}, the policy expects {feature.dtype}")
            if not (np.abs(value) <= np.finfo(np.float32).max).all():  # what is larger would become infinite
                raise ValueError(f"observation {name!r} has NaN or infinity: {value}")

    def _observe(self, lane: int, observation: Mapping[str, np.ndarray]) -> None:
        """Appends the observation to the lane's history, which starts with copies of the first one."""
        history, length = self._tracks[lane].history, self.policy.chunk.history
        taken = {name: np.array(observation[name]) for name in self.policy.spec.observation}
        history.extend([taken] * (1 if history else length))
        del history[:-length]

    def _decide(self, lanes: list[int]) -> None:
        """Fills the queues of at most `inference_batch` lanes with one inference call."""
        noise = np.zeros((self.inference_batch, *self.policy.noise_shape), np.float32)
        for row, lane in enumerate(lanes):
            noise[row] = self._noise(self._tracks[lane])
        chunks = self.policy.plan(self._stack(lanes), noise)
        for row, lane in enumerate(lanes):
            self._tracks[lane].queue.extend(chunks[row, : self.execution_horizon])
            self._tracks[lane].decisions += 1

    def _stack(self, lanes: list[int]) -> dict[str, np.ndarray]:
        """Histories of the lanes as (inference_batch, O, *shape) arrays; the rows past the lanes are zero."""
        stacked = {}
        for name, feature in self.policy.spec.observation.items():
            values = np.zeros((self.inference_batch, self.policy.chunk.history, *feature.shape), feature.dtype)
            for row, lane in enumerate(lanes):
                values[row] = [observation[name] for observation in self._tracks[lane].history]
            stacked[name] = values
        return stacked

    def _noise(self, track: _Track) -> np.ndarray:
        """Standard normal noise (*noise_shape) of the lane's next decision: the counter-based Philox generator."""
        key = np.array([(self.noise_seed << 32) + track.seed, track.decisions], np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        return generator.standard_normal(self.policy.noise_shape, np.float32)
