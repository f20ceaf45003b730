"""A planner as the policy of a runtime, with what the runtime must know of its chunks. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.observers import Observer
from flowhand.contracts.planner import Planner, PrefixArrays

from .async_controller import AsyncController
from .controller import Controller
from .observers.threads import in_threads

WARM_UP = 3  # decisions before the first that counts: the first ones allocate, compile and cache


class InferenceThread:
    """Asks a planner (a `policies.Policy`, an exported one, a remote one) for chunks and plays them.

    Choose `asynchronous=True` where no control step may wait for a decision: it is computed in a thread beside the
    control, and its delay is what it is. `asynchronous=False` decides within the control step, which must be long
    enough for it.

    Args:
        planner: gives chunks.
        execution: the mode; its simulated delays must be zero.
        noise_seed: another value gives another draw of all noise.
        asynchronous: whether decisions are computed beside the control.
        replaying: compute every decision at once, but hand it over at the step before which `arrived` is set.
        observers: are given every `Decision`, each in a thread of its own.

    Attributes:
        task: what the policy is told at every `reset` from then on, see `Controller.reset`.
        source: the same.
        chunk_start: whether the last action was the first of a chunk.
        chunk_age_s: seconds since the observation was made from which the chunk of the last action was decided.
        arrived: the same; in a replay, set before a step, whether a decision is to be there at it.
    """

    def __init__(
        self,
        planner: Planner,
        execution: ExecutionConfig | None = None,
        noise_seed: int = 0,
        asynchronous: bool = True,
        replaying: bool = False,
        observers: Iterable[Observer] = (),
    ):
        execution = execution or ExecutionConfig()
        if execution.delay or execution.latencies_ms or execution.latencies_file:
            raise ValueError("a robot's delay is what it is; execution.delay and latencies are for simulation")
        self.task: str | None = None
        self.source: str | None = None
        self.chunk_start = self.arrived = False
        self.chunk_age_s = 0.0
        self._begun_s = self._chunk_s = 0.0  # when the last decision began, and that of the present chunk
        self._planner = _Watched(planner)
        self._worker = _Worker(replaying) if asynchronous else None
        self._controller: AsyncController | Controller
        watching = in_threads(observers)
        if self._worker:
            self._controller = AsyncController(self._planner, noise_seed, execution, self._worker, watching)
        else:
            self._controller = Controller(self._planner, None, 1, noise_seed, execution, watching)
        if not replaying:
            self._warm_up()

    def __repr__(self) -> str:
        where = "beside the control" if self._worker else "within the control step"
        return f"{type(self).__name__}(decides {where}, {self._controller!r})"

    def reset(self, *, seed: int) -> None:
        """Starts an episode; the seed, in [0, 2^32), fixes all its noise."""
        self._controller.reset(seed=seed, task=self.task, source=self.source)

    def step(self, observation: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """The action (A,) for this control step, in physical units; None: there is none yet.

        Raises:
            ValueError: an observation that does not fit.
            Exception: what the planner raised.
        """
        now_s = time.monotonic()
        watched = self._worker or self._planner
        watched.begin_step(self.arrived)
        action = self._controller.step(observation)
        self.arrived = self.chunk_start = watched.arrived
        if self.chunk_start:  # decided when the last decision began, which is now if it was not beside the control
            self._chunk_s = self._begun_s if self._worker else now_s
        if watched.requested:
            self._begun_s = now_s
        self.chunk_age_s = now_s - self._chunk_s
        return action

    def skip(self, steps: int) -> None:
        """Lets so many control steps pass at which `step` was not called; what the chunks have for them is left out."""
        self._controller.skip(steps)

    def close(self) -> None:
        """Ends the thread, after the decision that it is at."""
        if self._worker:
            self._worker.shutdown(wait=False, cancel_futures=True)

    def _warm_up(self) -> None:
        """Decides from zeros, in the thread that is going to decide."""
        history = {
            name: np.zeros((1, self._planner.chunk.history, *feature.shape), feature.dtype)
            for name, feature in self._planner.spec.observation.items()
        }
        noise = np.zeros((1, *self._planner.noise_shape), np.float32)
        for _ in range(WARM_UP):
            if self._worker:
                self._worker.submit(self._planner.plan, history, noise).result()
            else:
                self._planner.plan(history, noise)


class _Watched:
    """A planner that notes whether it was requested within a step, and so has answered."""

    def __init__(self, planner: Planner):
        self.spec, self.chunk, self.noise_shape = planner.spec, planner.chunk, planner.noise_shape
        self.continues = planner.continues
        self.requested = self.arrived = False
        self._plan = planner.plan

    def begin_step(self, expected: bool) -> None:
        self.requested = self.arrived = False

    def plan(
        self, observation: Mapping[str, np.ndarray], noise: np.ndarray, prefix: PrefixArrays | None = None
    ) -> np.ndarray:
        self.requested = self.arrived = True
        return self._plan(observation, noise, prefix)


class _Worker(Executor):
    """Runs decisions in one thread, and notes whether one was requested within a step, or seen to be there."""

    def __init__(self, replaying: bool):
        self.requested = self.arrived = False
        self.expected = False  # in a replay: what `arrived` was when it was recorded
        self.replaying = replaying
        self._thread = ThreadPoolExecutor(1, "inference")

    def begin_step(self, expected: bool) -> None:
        self.requested, self.arrived, self.expected = False, False, expected

    def submit(self, work: Callable[..., Any], /, *arguments: Any) -> Future[Any]:  # pyright: ignore
        self.requested = True
        answer = _Answer(self)
        if self.replaying:
            answer.run(work, arguments)
        else:
            self._thread.submit(answer.run, work, arguments)
        return answer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._thread.shutdown(wait=wait, cancel_futures=cancel_futures)


class _Answer(Future[Any]):
    def __init__(self, worker: _Worker):
        super().__init__()
        self._worker = worker

    def run(self, work: Callable[..., Any], arguments: tuple) -> None:
        if not self.set_running_or_notify_cancel():
            return
        try:
            self.set_result(work(*arguments))
        except BaseException as error:  # as every Future does: it is raised where the result is awaited
            self.set_exception(error)

    def done(self) -> bool:
        there = self._worker.expected if self._worker.replaying else super().done()
        self._worker.arrived |= there
        return there
