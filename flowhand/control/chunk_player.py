"""How chunks are executed: the modes, simulated delay, and one robot's chunks in control time. No torch here."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import SupportsIndex

import numpy as np

from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.features import Feature
from flowhand.contracts.history import History
from flowhand.contracts.nearest import average
from flowhand.contracts.noise import generator, noise
from flowhand.contracts.observers import Decision
from flowhand.contracts.planner import Planner, PlanRequest
from flowhand.contracts.screen.fields import FIELDS, stale
from flowhand.contracts.screen.plans import stop_of

REMEMBERED = 10  # last delays, the largest of which is expected of the next decision


class ChunkPlayer:
    """One robot's chunks in control time: which action is due, when to decide anew, what the next chunk continues.

    Args:
        config: the mode, and the decay of its weights.
        interval: control steps from one decision to the next.
        longest: delay in control steps that a prefix may have at most.
        discrete: dimensions of the action that are choices, which have no mean.
        action: of the policy, whose angles and rotations have a mean of their own; None: it has none.
    """

    def __init__(
        self,
        config: ExecutionConfig,
        interval: int,
        longest: int,
        discrete: Sequence[int] = (),
        action: Feature | None = None,
    ):
        self.config = config
        self.interval = interval
        self.longest = longest
        self.discrete, self.action = discrete, action
        self.step = 0  # the present control step
        self.begun = 0  # the step at which the last decision began
        self.waiting = False  # for its chunk
        self._chunks: list[tuple[int, np.ndarray]] = []  # first step and actions (T, A); the newest is last
        self._delays: deque[int] = deque(maxlen=REMEMBERED)
        self._standing = True  # no chunk has arrived while another one was executed

    @property
    def started(self) -> bool:
        """Whether there has been a chunk."""
        return bool(self._chunks)

    @property
    def due(self) -> bool:
        """Whether a decision should begin at the present step."""
        return not self.waiting and (not self.started or self.step >= self.begun + self.interval)

    def begin(self) -> None:
        """Notes that a decision begins at the present step."""
        self.begun, self.waiting = self.step, True

    def deliver(self, actions_TA: np.ndarray, delay: int | None = None) -> None:
        """Takes the chunk of the decision that began last; its delay is what has passed unless it is given."""
        if len(self._delays) == 1 and self._standing:  # that of the first chunk was a guess
            self._delays.clear()
        self._delays.append(self.step - self.begun if delay is None else delay)
        self._standing = not self.started
        if self._standing:  # the robot has stood still until now
            self.begun = self.step
        keep = self._chunks if self.config.mode == "temporal_ensembling" else []
        keep = [(first, actions) for first, actions in keep if self.step < first + len(actions)]
        self._chunks = [*keep, (self.begun, actions_TA)]
        self.waiting = False

    def previous(self, shape: tuple[int, int]) -> tuple[np.ndarray, int, int]:
        """What a decision that begins now continues: actions (T, A) from now on, expected delay, steps with values.

        The delay expected is the largest of the last ones (Black 2025, arXiv 2506.07339, Algorithm 1), but no longer
        than there are actions left to execute, or than the policy can be told. That of the first chunk, for which the
        robot stood still, is expected only until another one is known.
        """
        actions_TA = np.zeros(shape, np.float32)
        if not self.started:
            return actions_TA, 0, 0
        first, previous = self._chunks[-1]
        rest = previous[self.step - first :]
        actions_TA[: len(rest)] = rest
        return actions_TA, min(max(self._delays), len(rest), self.longest), len(rest)

    def upcoming(self) -> np.ndarray | None:
        """The action (A,) of the newest chunk at the present step; None where it has none."""
        first, actions = self._chunks[-1] if self._chunks else (self.step, ())
        return actions[self.step - first] if self.step < first + len(actions) else None

    def drop(self) -> None:
        """Forgets the chunks: a decision is due, and until it is there the robot stands."""
        self._chunks = []

    def advance(self) -> np.ndarray | None:
        """The action (A,) of the present step, or None where no chunk has one; then the next step is present."""
        now, self.step = self.step, self.step + 1
        actions = [actions[now - first] for first, actions in self._chunks if now < first + len(actions)]
        if not actions:
            return None
        if len(actions) == 1:
            return actions[0].copy()
        exponent = -self.config.ensemble_decay * np.arange(len(actions))
        weight = np.exp(exponent - exponent.max())  # none of them overflows, and one of them is 1
        mean = average(np.stack(actions), weight, self.action).astype(np.float32)
        for i in self.discrete:  # the choice with the most weight
            choices, which = np.unique([action[i] for action in actions], return_inverse=True)
            mean[i] = choices[np.bincount(which, weight).argmax()]
        return mean


class RobotEpisode:
    """One robot's episode: what it has seen, the chunks it follows, and the requests it asks the policy."""

    def __init__(
        self,
        policy: Planner,
        timeline: ChunkPlayer,
        noise_seed: int,
        seed: SupportsIndex,
        given: Mapping[str, np.ndarray] | None = None,
    ):
        generator(noise_seed, seed, 0)  # which refuses what is no seed
        self.policy, self.noise_seed, self.seed = policy, noise_seed, seed
        self.timeline = timeline
        self.decisions = 0
        self.arriving: tuple[int, np.ndarray] | None = None  # simulated delay: the step, and the chunk (T, A)
        self.history = History(policy.spec.observation, policy.chunk.history, given)
        self.stop = stop_of(policy.spec.action)
        self._points = policy.spec.action.names == FIELDS
        self._planned_on: Mapping[str, np.ndarray] = {}  # the observation of the last decision

    def see(self, observation: dict[str, np.ndarray]) -> None:
        """Takes the present observation; a plan that ends here, or points at what is gone, is followed no longer."""
        self.history.see(observation)
        action = self.timeline.upcoming()
        if action is None or self.stop is None:
            return
        if action[0] == self.stop or (self._points and stale(action, self._planned_on, observation)):
            self.timeline.drop()

    def advance(self) -> np.ndarray | None:
        """The action (A,) of the present step; one that stops is the last of its plan."""
        action = self.timeline.advance()
        if action is not None and self.stop is not None and action[0] == self.stop:
            self.timeline.drop()
        return action

    def request(self) -> PlanRequest:
        """What the policy is asked at the present step; a decision begins with it."""
        shape = (self.policy.chunk.prediction_horizon, self.policy.spec.action.size)
        previous_TA, delay, overlap = self.timeline.previous(shape)
        drawn = noise(self.noise_seed, self.seed, self.decisions, self.policy.noise_shape)
        self.timeline.begin()
        self.decisions += 1
        histories = self.history.arrays()
        self._planned_on = {name: values[-1] for name, values in histories.items()}
        return PlanRequest(histories, drawn, previous_TA, delay, overlap)

    def decision(self, lane: int, request: PlanRequest, chunk: np.ndarray, delay: int, seconds: float) -> Decision:
        """The event that the decision which began last came to this chunk (T, A)."""
        step = self.timeline.begun
        return Decision(lane, int(self.seed), step, request.observation, request.noise, chunk, delay, seconds)

    def delay(self, delays: list[int]) -> int:
        """The simulated delay of the next decision, in control steps, drawn from these."""
        return delays[0] if len(delays) == 1 else delays[self._generator(1).integers(len(delays))]

    def _generator(self, stream: int) -> np.random.Generator:
        return generator(self.noise_seed, self.seed, self.decisions, stream)
