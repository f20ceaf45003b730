"""Brings the requests of concurrent robots into shared inference calls, in a thread beside the event loop."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from policies.controller import Planner

from .background import Logger
from .metrics import Metrics
from .server_config import ServerConfig
from .session import noise

LOG = Logger(__name__)


class RequestError(Exception):
    """A request gets no actions, for a reason of one word; `goes_on` says whether the connection does."""

    def __init__(self, reason: str, text: str, goes_on: bool):
        super().__init__(f"{reason}: {text}")
        self.reason = reason
        self.goes_on = goes_on


@dataclass
class _Request:
    observation: dict[str, np.ndarray]  # histories, each (O, *shape)
    seed: int
    decision: int
    deadline: float  # on the clock of time.monotonic
    answer: asyncio.Future[tuple[np.ndarray, float]] = field(default_factory=asyncio.Future)


class Batcher:
    """Inference in one worker thread, in calls of exactly `inference_batch` rows.

    While a call runs, further requests gather and share the next one. Rows without a request are zero. Every call has
    the same number of rows, so a request's actions do not depend on who shares its call.

    Args:
        policy: decides; only the worker thread calls it.
        config: batch, queue and noise seed.
        metrics: told about queue and calls.
    """

    def __init__(self, policy: Planner, config: ServerConfig, metrics: Metrics):
        self._policy = policy
        self._config = config
        self._metrics = metrics
        self._waiting: queue.Queue[_Request | None] = queue.Queue(config.max_waiting)
        self._busy_since: float | None = None  # start of the call that is running
        self._stopped = False
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._work, name="inference", daemon=True).start()

    async def plan(self, observation: dict[str, np.ndarray], seed: int, decision: int) -> tuple[np.ndarray, float]:
        """A chunk (T, A) for one robot, and the duration of its inference call in seconds.

        Raises:
            RequestError: "busy", as many requests wait as may; "late", the deadline has passed; "failed", the policy
                raised an error or gave NaN.
        """
        limit_s = self._config.deadline_s
        request = _Request(observation, seed, decision, time.monotonic() + limit_s)
        try:
            self._waiting.put_nowait(request)
        except queue.Full:
            text = f"{self._config.max_waiting} requests wait already; ask again later"
            raise RequestError("busy", text, goes_on=True) from None
        late = RequestError("late", f"no inference within {limit_s} s", goes_on=True)
        timer = self._loop.call_later(limit_s, self._deliver, [request], [late])
        try:
            return await request.answer
        finally:
            timer.cancel()

    def depth(self) -> int:
        """Requests that wait."""
        return self._waiting.qsize()

    def stuck_s(self) -> float:
        """Seconds since the start of the call that is running, 0 if none is."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def stop(self) -> None:
        """Lets the worker end after the call that is running."""
        self._stopped = True
        with suppress(queue.Full):  # then it is awake
            self._waiting.put_nowait(None)

    def _work(self) -> None:
        """The worker thread."""
        while (first := self._waiting.get()) is not None and not self._stopped:
            requests = self._gather(first)
            now = time.monotonic()
            timely = [request for request in requests if request.deadline > now]
            if timely:
                self._busy_since = now
                answers = self._infer(timely)
                self._busy_since = None
                with suppress(RuntimeError):  # the event loop may have ended meanwhile
                    self._loop.call_soon_threadsafe(self._deliver, timely, answers)

    def _gather(self, first: _Request) -> list[_Request]:
        """The requests of the next call: those that wait, and those that come within the time to wait."""
        requests, until = [first], time.monotonic() + self._config.max_wait_ms / 1e3
        while len(requests) < self._config.inference_batch:
            try:
                left = until - time.monotonic()
                request = self._waiting.get(timeout=left) if left > 0 else self._waiting.get_nowait()
            except queue.Empty:
                break
            if request is None:
                break
            requests.append(request)
        return requests

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
