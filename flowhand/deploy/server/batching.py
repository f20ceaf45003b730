"""Brings the requests of concurrent robots into shared inference calls, in a thread beside the event loop."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from flowhand.contracts.noise import noise
from flowhand.contracts.planner import Planner
from flowhand.control.background import Logger

from .config import ServerConfig
from .fairness import FairQueue
from .metrics import Metrics

LOG = Logger(__name__)


class RequestError(Exception):
    """A request gets no actions, for a reason of one word; `goes_on` says whether the connection does."""

    def __init__(self, reason: str, text: str, goes_on: bool):
        super().__init__(f"{reason}: {text}")
        self.reason = reason
        self.goes_on = goes_on


class Caller(Protocol):
    """Who waits for an answer."""

    principal: Hashable  # with whom it shares its turns
    on_left: Callable[[], None] | None  # what to call when it stops waiting

    def has_left(self) -> bool:
        """Whether nobody waits there any more; asked by any thread."""
        ...


@dataclass(eq=False)
class _Request:
    caller: Caller
    observation: dict[str, np.ndarray]  # histories, each (O, *shape)
    seed: int
    decision: int
    deadline: float  # on the clock of time.monotonic
    answer: asyncio.Future[tuple[np.ndarray, float]] = field(default_factory=asyncio.Future)


class Batcher:
    """Inference in one worker thread, in calls of exactly `inference_batch` rows.

    While a call runs, further requests gather and share the next one; the principals take turns. What nobody waits for
    any more is not computed. Rows without a request are zero. Every call has the same number of rows, so a request's
    actions do not depend on who shares its call.

    Args:
        policy: decides; only the worker thread calls it.
        config: batch, queue and noise seed.
        metrics: told about queue and calls.
    """

    def __init__(self, policy: Planner, config: ServerConfig, metrics: Metrics):
        self._policy = policy
        self._config = config
        self._metrics = metrics
        self._waiting: FairQueue[_Request] = FairQueue(config.max_waiting)
        self._busy_since: float | None = None  # start of the call that is running
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._work, name="inference", daemon=True).start()

    async def plan(
        self, observation: dict[str, np.ndarray], seed: int, decision: int, caller: Caller
    ) -> tuple[np.ndarray, float]:
        """A chunk (T, A) for one robot, and the duration of its inference call in seconds.

        Raises:
            RequestError: "busy", as many requests wait as may, and none has more of them than this principal; "late",
                the deadline has passed; "gone", the caller has left; "failed", the policy raised an error or gave NaN.
        """
        limit_s = self._config.deadline_s
        request = _Request(caller, observation, seed, decision, time.monotonic() + limit_s)
        late = RequestError("late", f"no inference within {limit_s} s", goes_on=True)
        timer = self._loop.call_later(limit_s, self._deliver, [request], [late])
        caller.on_left = lambda: self._deliver([request], [_gone()])
        try:
            if caller.has_left():
                raise _gone()
            if (excess := self._waiting.put(caller.principal, request)) is not None:
                text = f"{self._config.max_waiting} requests wait already; ask again later"
                self._deliver([excess], [RequestError("busy", text, goes_on=True)])
            return await request.answer
        finally:
            timer.cancel()
            caller.on_left = None
            self._waiting.drop(caller.principal, request)

    def depth(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    def stuck_s(self) -> float:
        """Seconds since the start of the call that is running, 0 if none is."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def stop(self) -> None:
        """Lets the worker end after the call that is running."""
        self._waiting.close()

    def _work(self) -> None:
        """The worker thread."""
        while requests := self._gather():
            self._busy_since = time.monotonic()
            answers = self._infer(requests)
            self._busy_since = None
            self._hand_over(requests, answers)

    def _gather(self) -> list[_Request]:
        """The requests of the next call: those that wait, and those that come within the time to wait; none at the end.

        Those whose time is up or whose caller has left take no place in it.
        """
        requests: list[_Request] = []
        until = math.inf  # the first one is waited for as long as it takes
        while len(requests) < self._config.inference_batch:
            left_s = max(0.0, until - time.monotonic()) if requests else None
            if (request := self._waiting.get(left_s)) is None:
                break
            if request.caller.has_left():
                self._hand_over([request], [_gone()])
            elif request.deadline > time.monotonic():
                requests.append(request)
                until = min(until, time.monotonic() + self._config.max_wait_ms / 1e3)
        return requests

    def _hand_over(self, requests: list[_Request], answers: Sequence[tuple[np.ndarray, float] | RequestError]) -> None:
        """From the worker thread: has the event loop deliver the answers."""
        with suppress(RuntimeError):  # the event loop may have ended meanwhile
            self._loop.call_soon_threadsafe(self._deliver, requests, answers)

    def _infer(self, requests: list[_Request]) -> list[tuple[np.ndarray, float] | RequestError]:
        """Chunk and duration for every request, or what went wrong with it."""
        try:
            observation, draws = self._stack(requests)
            start = time.perf_counter()
            chunks = np.asarray(self._policy.plan(observation, draws), np.float32)
            seconds = time.perf_counter() - start
            shape = (self._config.inference_batch, self._policy.chunk.prediction_horizon, self._policy.spec.action.size)
            if chunks.shape != shape:
                raise ValueError(f"the policy gave actions of shape {chunks.shape}, expected {shape}")
        except BaseException as error:  # even SystemExit, of a policy of any kind; the worker must go on
            LOG.error("inference failed", error=error)
            return [_failed("inference failed; the server's log says why") for _ in requests]
        self._metrics.batch_rows.observe(len(requests))
        self._metrics.infer_seconds.observe(seconds)
        bad = "the policy gave NaN or infinity for this observation"
        own = chunks[: len(requests)]  # the other rows are padding
        own = np.clip(own, *self._policy.spec.action.bounds()) if self._config.clip else own
        return [(chunk, seconds) if np.isfinite(chunk).all() else _failed(bad) for chunk in own]

    def _stack(self, requests: list[_Request]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Histories (rows, O, *shape) by name, and noise (rows, *noise_shape)."""
        rows, policy = self._config.inference_batch, self._policy
        stacked = {
            name: np.zeros((rows, policy.chunk.history, *feature.shape), feature.dtype)
            for name, feature in policy.spec.observation.items()
        }
        draws = np.zeros((rows, *policy.noise_shape), np.float32)
        for row, request in enumerate(requests):
            for name, values in stacked.items():
                values[row] = request.observation[name]
            draws[row] = noise(self._config.noise_seed, request.seed, request.decision, policy.noise_shape)
        return stacked, draws

    @staticmethod
    def _deliver(requests: list[_Request], answers: Sequence[tuple[np.ndarray, float] | RequestError]) -> None:
        """On the event loop: hands every answer to the one who waits for it, if somebody still does."""
        for request, answer in zip(requests, answers, strict=True):
            if request.answer.done():
                continue
            if isinstance(answer, RequestError):
                request.answer.set_exception(answer)
            else:
                request.answer.set_result(answer)


def _failed(text: str) -> RequestError:
    return RequestError("failed", text, goes_on=False)


def _gone() -> RequestError:
    return RequestError("gone", "nobody waits for the answer", goes_on=False)
