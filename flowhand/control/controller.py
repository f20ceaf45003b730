"""Controller: chunks of actions to one action per control step. Evaluation and robot run this same object."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import SupportsIndex

import numpy as np

from flowhand.contracts.data.tasks import SOURCE, TextModel, given
from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.features import Feature
from flowhand.contracts.history import fitting
from flowhand.contracts.noise import generator
from flowhand.contracts.observers import Observer, Publisher
from flowhand.contracts.planner import FORMS, SEEN, Planner, PlanRequest, PrefixArrays
from flowhand.contracts.screen.plans import stop_of
from flowhand.contracts.strict import whole

from .chunk_player import ChunkPlayer, RobotEpisode


def ask(policy: Planner, requests: Sequence[PlanRequest], rows: int, form: str = "") -> np.ndarray:
    """Chunks (n, T, A) for n requests from one inference call of exactly `rows` rows; the unused ones are zero.

    Given a form of prefix, the chunks continue the previous ones. Without one, a planner that knows the form SEEN is
    shown them all the same.
    """

    def padded(values: list) -> np.ndarray:
        stacked = np.stack(values)
        return np.concatenate([stacked, np.zeros((rows - len(values), *stacked.shape[1:]), stacked.dtype)])

    observation = {name: padded([q.observation[name] for q in requests]) for name in requests[0].observation}
    noise = padded([q.noise for q in requests])
    form = form or (SEEN if SEEN in policy.continues else "")
    if not form:
        return policy.plan(observation, noise)[: len(requests)]
    previous = padded([q.previous for q in requests])
    delay, overlap = (padded([np.int64(getattr(q, name)) for q in requests]) for name in ("delay", "overlap"))
    return policy.plan(observation, noise, PrefixArrays(previous, delay, overlap, form))[: len(requests)]


def steady_rows(policy: Planner, rows: int, form: str = "") -> int:
    """Rows of an inference call in which a chunk depends on its request alone: as many as asked for, or a few more.

    Libraries multiply a matrix of few rows with kernels that sum in another order in other rows: Intel's does so with 2
    and 3 rows on processors of AMD. Nothing is assumed about a processor. Two calls prove each number: one with the
    same request in every row, and one with other requests beside it. Where none is steady, a warning says so.
    """
    for number in sorted({rows, *(-(-rows // multiple) * multiple for multiple in (4, 8, 16))}):
        if number == 1 or _steady(policy, number, form):
            return number
    warnings.warn(
        f"with {rows} rows, or a few more, a decision depends on the decisions beside it in its last bits on this "
        "machine; where equal records matter, decide for one robot at a time: inference_batch=1",
        stacklevel=2,
    )
    return rows


def _steady(policy: Planner, rows: int, form: str) -> bool:
    """Whether a made-up request gets the same chunk, to the last bit, in every row and beside any others."""
    random = np.random.default_rng(0)
    first, *others = [_made_up(policy, random, 8.0 if row else 1.0) for row in range(rows)]
    if form:
        previous = ask(policy, [first], rows)[0]
        first, *others = [
            replace(q, previous=previous, delay=min(1, policy.continues[form]), overlap=len(previous))
            for q in (first, *others)
        ]
    alone, beside = ask(policy, [first] * rows, rows, form), ask(policy, [*others, first], rows, form)
    return bool((alone == beside[-1]).all())  # not a number is not equal either


def _made_up(policy: Planner, random: np.random.Generator, spread: float) -> PlanRequest:
    """A request with random values, and noise of this spread: a scale that rows share would show."""
    observation = {}
    for name, feature in policy.spec.observation.items():
        values = 64 * random.random((policy.chunk.history, *feature.shape)) - (feature.dtype == "float32") * 32
        observation[name] = values.astype(feature.dtype)
        if feature.kind == SOURCE:  # its statistics are those of one data set, and no mixture of several
            observation[name][:] = np.eye(1, feature.size)
    previous = np.zeros((policy.chunk.prediction_horizon, policy.spec.action.size), np.float32)
    drawn = spread * random.standard_normal(policy.noise_shape, np.float32)
    return PlanRequest(observation, drawn.astype(np.float32), previous, 0, 0)


class Limits:
    """Keeps actions between the bounds of a specification, and counts how often it had to.

    Args:
        action: has the bounds.
        active: without, actions stay as they are.

    Attributes:
        counts: actions that were clipped, of each dimension, int (A,).
        actions: how many there were.
    """

    def __init__(self, action: Feature, active: bool):
        self._low, self._high = action.bounds()
        self._active = active
        self.counts, self.actions = np.zeros(action.size, int), 0

    def __call__(self, action: np.ndarray) -> np.ndarray:
        """The action (A,) between the bounds; what is no number stays so."""
        self.actions += 1
        if not self._active:
            return action
        self.counts += (action < self._low) | (action > self._high)
        return np.clip(action, self._low, self._high)

    def __repr__(self) -> str:
        return f"clipped {self.counts.tolist()} of {self.actions}" if self._active else "not clipped"


def prepare(
    policy: Planner, execution: ExecutionConfig, noise_seed: int, delay: int = 0
) -> tuple[int, int, tuple[int, ...]]:
    """What a `ChunkPlayer` needs beside the configuration: interval, longest delay of a prefix, discrete dimensions.

    Raises:
        ValueError: the policy cannot be executed in this mode, or not with a delay as long as this one.
    """
    generator(noise_seed, 0, 0)  # which refuses what is no seed
    horizon = policy.chunk.prediction_horizon
    interval = execution.interval(policy.chunk.execution_horizon, horizon, delay)
    discrete = tuple(np.flatnonzero(policy.spec.action.discrete).tolist())
    if stop_of(policy.spec.action) is not None and (delay or execution.mode != "receding_horizon"):
        raise ValueError(
            f"mode={execution.mode!r} with a delay of {delay} control steps is not possible with plans that stop: the "
            "world waits for a decision; expected mode='receding_horizon' without a delay"
        )
    if execution.mode not in FORMS:
        return interval, horizon, discrete
    form, able = FORMS[execution.mode], policy.continues
    if form not in able:
        modes = [mode for mode, known in FORMS.items() if known in able]
        known = ", ".join(["receding_horizon", "temporal_ensembling", *modes])
        takes = "trained with head.prefix_max above 0" if form == "trained" else "with head=flow and head.steps above 1"
        raise ValueError(
            f"mode={execution.mode!r} is not possible with this policy, only {known}; it takes a policy {takes}"
        )
    if delay > able[form]:
        raise ValueError(
            f"mode={execution.mode!r} with a delay of {delay} control steps: the policy takes at most {able[form]}"
        )
    return interval, able[form], discrete


class Controller:
    """Control of any number of robots ("lanes") with one policy, in the mode and with the delay of `ExecutionConfig`.

    All lanes that must decide share inference calls of exactly `inference_batch` rows (unused rows are padding; where
    the rows of such a call are not computed alike on this machine, there are a few more of them), and the noise and
    simulated delay of a decision are a function of (noise seed, episode seed, number of the decision) alone. So a
    lane's actions do not depend on how many lanes run beside it. Actions are clipped to the bounds of the policy's
    specification unless `execution.clip` is off. Where an action can stop, a plan is followed until its next action
    does, or points at an element that is there no more; then it is decided anew. A stop is executed only where a new
    plan begins with it: the world waits. A robot that must not wait for inference takes
    `AsyncController`, whose actions are those of this one with the delays that occur there.

    Args:
        policy: gives chunks.
        execution_horizon: control steps from one decision to the next, instead of that of `execution`.
        inference_batch: rows of every inference call.
        noise_seed: another value gives another draw of all noise.
        execution: mode and simulated delay; None executes each chunk's first actions without delay.
        observers: are given every `Decision`.
        text_model: gives the vector of a task's text that the policy does not know; None: there is none.

    Attributes:
        limits: clips the actions, and counts for each dimension how often (`limits.counts`).

    Raises:
        ValueError: a number out of range, or a policy that cannot be executed so.
    """

    def __init__(
        self,
        policy: Planner,
        execution_horizon: SupportsIndex | None = None,
        inference_batch: SupportsIndex = 1,
        noise_seed: SupportsIndex = 0,
        execution: ExecutionConfig | None = None,
        observers: Sequence[Observer] = (),
        text_model: TextModel | None = None,
    ):
        self.text_model = text_model
        execution = execution or ExecutionConfig()
        inference_batch, noise_seed = whole("inference_batch", inference_batch), whole("noise_seed", noise_seed)
        if execution_horizon is not None:
            execution_horizon = whole("execution_horizon", execution_horizon)
            if not 1 <= execution_horizon <= policy.chunk.prediction_horizon:
                raise ValueError(
                    f"execution_horizon={execution_horizon} must lie in 1..{policy.chunk.prediction_horizon}"
                )
            execution = replace(execution, execution_horizon=execution_horizon)
        if inference_batch < 1:
            raise ValueError(f"inference_batch={inference_batch} must be at least 1")
        self.policy = policy
        self.execution = execution
        self.noise_seed = noise_seed
        self._delays = execution.delays(policy.spec.control_dt_s)
        self._timing = prepare(policy, execution, noise_seed, max(self._delays))
        self.execution_horizon = self._timing[0]
        self.inference_batch = steady_rows(policy, inference_batch, FORMS.get(execution.mode, ""))
        self.limits = Limits(policy.spec.action, execution.clip)
        self._episodes: dict[int, RobotEpisode] = {}
        self._publisher = Publisher(observers)

    def __repr__(self) -> str:
        steps = f"a decision every {self.execution_horizon} steps"
        return f"Controller({self.execution.mode}, {steps}, actions {self.limits}, of {self.policy.spec})"

    def reset(
        self, lane: int = 0, seed: SupportsIndex = 0, *, task: str | None = None, source: str | None = None
    ) -> None:
        """Starts an episode in a lane; the seed, in [0, 2^32), fixes all the randomness of the episode.

        Args:
            lane: of the robot.
            seed: of the episode.
            task: its text, for a policy that is told one.
            source: the data set whose statistics are taken, for a policy that has those of several; it is the task
                where these are of each task.

        Raises:
            ValueError: a task or source that is missing, unknown or not asked for.
        """
        known = given(self.policy.spec.observation, task, source, self.text_model)
        player = ChunkPlayer(self.execution, *self._timing, action=self.policy.spec.action)
        self._episodes[lane] = RobotEpisode(self.policy, player, self.noise_seed, seed, known)

    def step(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """The action (A,) for the observation of a single robot (lane 0)."""
        return self.act({0: observation})[0]

    def skip(self, steps: SupportsIndex, lane: int = 0) -> None:
        """Lets so many control steps pass in a lane at which it was not asked.

        Raises:
            ValueError: the lane has no episode.
        """
        self._episode(lane).timeline.step += whole("steps", steps)

    def act(self, observations: Mapping[int, Mapping[str, np.ndarray]]) -> dict[int, np.ndarray]:
        """One action (A,), in physical units, for every lane given; each lane must have been reset.

        Raises:
            ValueError: an observation that does not fit the features in names, shapes or dtypes, or is not finite.
        """
        episodes = {lane: self._episode(lane) for lane in observations}
        fitted = {lane: fitting(each, self.policy.spec.sensed) for lane, each in observations.items()}
        for lane, observation in fitted.items():
            episodes[lane].see(observation)
        self._deliver(episodes.values())
        waiting = [(lane, episode) for lane, episode in episodes.items() if episode.timeline.due]
        for start in range(0, len(waiting), self.inference_batch):
            self._decide(*zip(*waiting[start : start + self.inference_batch], strict=True))
        return {lane: self._advance(episode) for lane, episode in episodes.items()}

    def _episode(self, lane: int) -> RobotEpisode:
        if lane not in self._episodes:
            raise ValueError(f"lane {lane} has no episode; call reset(lane, seed) first")
        return self._episodes[lane]

    def _deliver(self, episodes: Iterable[RobotEpisode]) -> None:
        """Hands over the chunks that arrive at the present step of their lanes."""
        for episode in episodes:
            if episode.arriving is not None and episode.arriving[0] <= episode.timeline.step:
                episode.timeline.deliver(episode.arriving[1])
                episode.arriving = None

    def _decide(self, lanes: Sequence[int], episodes: Sequence[RobotEpisode]) -> None:
        """Has at most `inference_batch` lanes decide with one inference call; without delay the chunks arrive at once.

        So does the first one of an episode: until it is there, the robot has not begun.
        """
        delays = [episode.delay(self._delays) for episode in episodes]
        requests = [episode.request() for episode in episodes]
        begun = time.perf_counter()
        chunks = ask(self.policy, requests, self.inference_batch, FORMS.get(self.execution.mode, ""))
        seconds = time.perf_counter() - begun
        for lane, episode, request, chunk_TA, delay in zip(lanes, episodes, requests, chunks, delays, strict=True):
            if self._publisher.wants("decision"):
                self._publisher.decision(episode.decision(lane, request, chunk_TA, delay, seconds))
            if delay == 0 or episode.decisions == 1:
                episode.timeline.deliver(chunk_TA, delay)
            else:
                episode.arriving = (episode.timeline.step + delay, chunk_TA)

    def _advance(self, episode: RobotEpisode) -> np.ndarray:
        action = episode.advance()
        assert action is not None  # `prepare` made sure that the chunks bridge every delay
        action = self.limits(action)
        episode.history.acted(action)
        return action
