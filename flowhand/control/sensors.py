"""The thread in which a robot is read and the policy asked, so that neither can hold up the control loop."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np

from flowhand.contracts.features import Feature
from flowhand.contracts.history import fitting

from .background import MOST_CHARACTERS, in_words
from .limits.vectors import vector

MOST_ALARMS = 100  # of one control step
STAGES = ("observation", "inference", "monitor")  # of an answer
JOURNALED = (
    "step",
    "seed",
    "restarted",
    "observed_ns",
    "decided_ns",
    "asked",
    "chunk_start",
    "chunk_age_s",
    "arrived",
    "observation_age_s",
)
SEED_STEP = 1_000_003  # between the seeds of a policy and of its next restart in the same episode


class Robot(Protocol):
    """What is controlled. `read` is called in another thread than `write`, so one may hang while the other works.

    Further attributes are used where they exist:

        observed_at   when the last observation was made, in seconds of time.monotonic(), and of no other clock: what
                      was made in the future or years ago is not acted on; else when `read` returned
        command       (A,): what the robot holds before the first command, where that is known
        over          true once the episode has ended by itself, as it does in a simulation
    """

    def read(self) -> Mapping[str, np.ndarray]:
        """The present observation, each array (*shape); it may block and raise."""
        ...

    def write(self, action: np.ndarray) -> None:
        """Takes the command (A,) float64 in physical units; it may raise, but must return within the period."""
        ...


class Policy(Protocol):
    """What decides: `Controller`, `AsyncController`, `InferenceThread`, or any object like them.

    Further attributes are read after `step` where they exist:

        chunk_start   whether the action was the first of a chunk
        chunk_age_s   seconds since the observation was made from which its chunk was decided
        arrived       whether a decision that was computed beside the control was there at this step

    `skip(steps)` is called where it exists, before `step`, when the policy was not asked at so many control steps.
    """

    def reset(self, *, seed: int) -> None:
        """Starts an episode; the seed, in [0, 2^32), fixes all its noise."""
        ...

    def step(self, observation: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """The action (A,) for this control step; None: there is none yet."""
        ...


class Monitor(Protocol):
    """What watches whether the policy is still where it has learned to be."""

    def reset(self, seed: int, again: bool) -> None:
        """Starts an episode; or again the policy within one, of which what was said before should stand."""
        ...

    def observe(self, observation: Mapping[str, np.ndarray], action: np.ndarray) -> list[str]:
        """The alarms of this control step, in words; empty if there are none."""
        ...


@dataclass(eq=False)
class InferenceResult:
    """One control step's reading and asking: a request first, then what came of it."""

    step: int
    restart: bool = False  # reset the policy first
    seed: int = 0  # with this seed
    again: bool = False  # the policy was reset before in this episode
    taken: bool = False  # the thread was free for it
    restarted: bool = False  # the policy was reset
    observation: dict[str, np.ndarray] | None = None
    observed_s: float = 0.0  # when the observation was made, on the clock of time.monotonic
    observed_ns: int = 0  # when it was there
    observation_age_s: float = 0.0  # when safety judged the action
    decided_ns: int = 0  # when the policy had answered
    asked: bool = False  # the policy answered
    action: np.ndarray | None = None  # float64, of any shape; None where it had none
    chunk_start: bool = False
    chunk_age_s: float = 0.0
    arrived: bool = False
    alarms: list[str] = field(default_factory=list)
    failed: str = ""  # the stage that raised
    error: str = ""  # what, in words

    def values(self) -> dict[str, Any]:
        """Everything that a journal keeps under the same name, and the observation."""
        observation = {f"observation.{name}": value for name, value in (self.observation or {}).items()}
        return {**{name: getattr(self, name) for name in JOURNALED}, **observation}


class SensorThread:
    """Reads the robot and asks the policy, one control step at a time, in a thread of its own.

    Args:
        robot: is read.
        policy: is asked.
        monitor: is shown every observation and action.
        features: of the observation (`policies.Spec.observation`): their names, shapes and dtypes.
    """

    def __init__(self, robot: Robot, policy: Policy, monitor: Monitor | None, features: Mapping[str, Feature]):
        self._robot, self._policy, self._monitor, self._features = robot, policy, monitor, features
        self._requests: queue.SimpleQueue[InferenceResult | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[InferenceResult] = queue.SimpleQueue()
        self._restart = True  # reset the policy before it is asked again
        self._fresh = True  # nothing was asked in this episode
        self._seed = self._restarts = 0  # of the episode; times that the policy was reset in it
        self._asked = 0  # step at which the policy was asked last
        self.busy = False  # with an earlier step
        self.stage = STAGES[0]  # what the thread is at
        threading.Thread(target=self._work, name="sensors", daemon=True).start()

    def begin(self, seed: int) -> None:
        """Starts an episode. An answer that is still to come belongs to the one before, and is late."""
        self._seed, self._restart, self._fresh = seed, True, True

    def ask(self, request: InferenceResult, deadline_ns: int, late: list[InferenceResult]) -> InferenceResult | None:
        """The answer to the request, or None where it does not come before the deadline.

        Answers to earlier requests that come meanwhile are appended to `late`. While the thread hangs in an earlier
        request this one is not taken up, and is lost.
        """
        while True:
            if not self.busy:
                self._take(request)
            try:
                left_s = (deadline_ns - time.monotonic_ns()) / 1e9
                answer = self._answers.get(timeout=left_s) if left_s > 0 else self._answers.get_nowait()
            except queue.Empty:
                return None
            self.busy = False
            self._restarts += answer.restarted
            self._restart |= answer.failed == "inference" or answer.restart > answer.restarted
            if answer is request:
                return answer
            late.append(answer)

    def close(self) -> None:
        """Ends the thread when it is free; one that hangs ends with the process."""
        self._requests.put(None)

    def _take(self, request: InferenceResult) -> None:
        """Hands the request to the thread, as all earlier answers have left the policy."""
        self._restarts = 0 if self._fresh else self._restarts
        request.restart |= self._restart
        request.seed, request.again = (self._seed + self._restarts * SEED_STEP) % 2**32, self._restarts > 0
        self._restart = self._fresh = False
        self.busy = request.taken = True
        self._requests.put(request)

    def _work(self) -> None:
        while (request := self._requests.get()) is not None:
            try:
                self._answer(request)
            except BaseException as error:  # even SystemExit: drivers, policies and monitors are not ours
                request.failed, request.error = self.stage, in_words(error)
            self.stage = STAGES[0]
            self._answers.put(request)

    def _answer(self, request: InferenceResult) -> None:
        self.stage = "observation"
        # What is not finite is recorded too, and is for the policy to refuse.
        request.observation = fitting(self._robot.read(), self._features, finite=False)
        request.observed_ns = time.monotonic_ns()
        request.observed_s = float(getattr(self._robot, "observed_at", request.observed_ns / 1e9))
        self.stage = "inference"
        policy = self._policy
        if request.restart:
            policy.reset(seed=request.seed)
            request.restarted = True
            if self._monitor:
                self._monitor.reset(request.seed, request.again)
        pass_by(policy, 0 if request.restart else request.step - self._asked - 1)
        self._asked = request.step
        action = policy.step(request.observation)
        request.action = None if action is None else vector(action)  # a copy: what the policy does with its own is its
        request.decided_ns, request.asked = time.monotonic_ns(), True
        request.chunk_start = bool(getattr(policy, "chunk_start", False))
        request.chunk_age_s = float(getattr(policy, "chunk_age_s", 0.0))
        request.arrived = bool(getattr(policy, "arrived", False))
        self.stage = "monitor"
        if self._monitor and request.action is not None:
            request.alarms = _words(self._monitor.observe(request.observation, request.action))


def _words(alarms: str | Iterable[Any]) -> list[str]:
    """A monitor's alarms, each one line of text."""
    listed = [alarms] if isinstance(alarms, str) else islice(alarms, MOST_ALARMS)
    return [" ".join(str(alarm).split())[:MOST_CHARACTERS] for alarm in listed]


def pass_by(policy: Policy, steps: int) -> None:
    """Tells a policy that wants to know it of control steps at which it was not asked."""
    if steps > 0 and (skip := getattr(policy, "skip", None)):
        skip(steps)
