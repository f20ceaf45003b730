"""AsyncController: a robot that never waits for inference. It runs in a thread while the present chunk is executed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import SupportsIndex

import numpy as np

from flowhand.contracts.data.tasks import given
from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.history import fitting
from flowhand.contracts.observers import Observer, Publisher
from flowhand.contracts.planner import FORMS, Planner, PlanRequest
from flowhand.contracts.strict import whole

from .chunk_player import ChunkPlayer, RobotEpisode
from .controller import Limits, ask, prepare


class AsyncController:
    """Control of one robot in real time: `step` returns at once, with the chunk that is there.

    Choose it where a decision takes longer than the robot may wait; in simulation, where time stands still while the
    policy thinks, take `Controller` with a delay. Given the same delays both take the same actions, except that this
    one has none before the first chunk is there. The delay of a decision is measured in control steps, which are the
    calls of `step` and what `skip` counts, so it is at least 1; real-time chunking expects the largest of the last ten.

    Args:
        policy: gives chunks; called in one other thread only.
        noise_seed: another value gives another draw of all noise.
        execution: the mode; None executes each chunk's first actions.
        worker: where inference runs, one decision at a time; None: a thread of its own, which `close` ends.
        observers: are given every `Decision`, by the caller of `step`, when its chunk arrives.

    Attributes:
        limits: clips the actions, and counts for each dimension how often (`limits.counts`).
        starved: calls of `step` in this episode that found no action, not counting those before the first chunk.

    Raises:
        ValueError: a number out of range, a policy that cannot be executed so, or a simulated delay.
    """

    def __init__(
        self,
        policy: Planner,
        noise_seed: SupportsIndex = 0,
        execution: ExecutionConfig | None = None,
        worker: Executor | None = None,
        observers: Sequence[Observer] = (),
    ):
        execution = execution or ExecutionConfig()
        if execution.delay or execution.latencies_ms or execution.latencies_file:
            raise ValueError("AsyncController measures the delay; delay and latencies are for simulation")
        self.policy = policy
        self.execution = execution
        self.noise_seed = whole("noise_seed", noise_seed)
        self._timing = prepare(policy, execution, self.noise_seed)
        self.execution_horizon = self._timing[0]
        self.limits = Limits(policy.spec.action, execution.clip)
        self.starved = 0
        self._worker = worker or ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._episode: RobotEpisode | None = None
        self._answer: Future[tuple[np.ndarray, float]] | None = None  # the chunk (1, T, A) that is being computed
        self._request: PlanRequest | None = None  # of this chunk
        self._publisher = Publisher(observers)

    def __repr__(self) -> str:
        steps = f"a decision every {self.execution_horizon} steps"
        about = f"actions {self.limits}, {self.starved} steps without one"
        return f"AsyncController({self.execution.mode}, {steps}, {about}, of {self.policy.spec})"

    def reset(self, *, seed: SupportsIndex = 0, task: str | None = None, source: str | None = None) -> None:
        """Starts an episode; the seed, in [0, 2^32), fixes its noise. An answer still to come is not waited for.

        `task` and `source` are those of `Controller.reset`.
        """
        known = given(self.policy.spec.observation, task, source)
        player = ChunkPlayer(self.execution, *self._timing, action=self.policy.spec.action)
        self._episode = RobotEpisode(self.policy, player, self.noise_seed, seed, known)
        self.starved = 0
        if self._answer is not None:
            self._answer.cancel()
            self._answer = None

    def step(self, observation: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """The action (A,) for the present control step, in physical units; to be called once per control step.

        None: there is no action, since the first chunk is not there yet or the last one has run out. What is safe then
        is for the caller to know.

        Raises:
            ValueError: no episode, or or an observation that does not fit the features.
            Exception: what the policy raised; it is asked again when the next decision is due.
        """
        episode = self._episode
        if episode is None:
            raise ValueError("there is no episode; call reset(seed=...) first")
        try:
            episode.see(fitting(observation, self.policy.spec.sensed))
            self._receive(episode)
            if episode.timeline.due:
                form = FORMS.get(self.execution.mode, "")
                self._request = episode.request()
                self._answer = self._worker.submit(_timed_ask, self.policy, self._request, form)
        finally:
            action = episode.advance()  # whatever happens, time goes on
        self.starved += action is None and episode.timeline.started
        if action is None:
            return None
        action = self.limits(action)
        episode.history.acted(action)
        return action

    def skip(self, steps: SupportsIndex) -> None:
        """Lets so many control steps pass at which `step` was not called.

        Raises:
            ValueError: no episode.
        """
        if self._episode is None:
            raise ValueError("there is no episode; call reset(seed=...) first")
        self._episode.timeline.step += whole("steps", steps)

    def _receive(self, episode: RobotEpisode) -> None:
        """Hands over the chunk if it is there."""
        if self._answer is None or not self._answer.done():
            return
        answer, self._answer = self._answer, None
        timeline = episode.timeline
        timeline.waiting = False  # even if the policy raised
        (chunk,), seconds = answer.result()
        if self._publisher.wants("decision") and self._request is not None:
            delay = timeline.step - timeline.begun
            self._publisher.decision(episode.decision(0, self._request, chunk, delay, seconds))
        timeline.deliver(chunk)

    def close(self) -> None:
        """Ends the thread, after the decision that it is at."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> AsyncController:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _timed_ask(policy: Planner, request: PlanRequest, form: str) -> tuple[np.ndarray, float]:
    """The chunk (1, T, A) for a request, and the seconds that it took."""
    begun = time.perf_counter()
    chunk = ask(policy, [request], 1, form)
    return chunk, time.perf_counter() - begun
