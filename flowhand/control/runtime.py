"""The runtime: a policy controls a robot at a fixed rate, and whatever fails, the robot gets a command in time.

Control step k begins at t0 + k * control_dt_s on the monotonic clock, so errors of waiting do not add up. Another
thread reads the robot and asks the policy (sensors.py). If its answer is not there when `budget` of the period has
passed, or is an error, or is refused by safety, the robot is sent the safe action at that time. An answer that comes
too late is noted and dropped, and control goes on from a fresh observation.

Nothing that can wait for somebody stands in the control thread but `robot.write`: log lines and records are handed to
other threads (background.py), and functions of a user are waited for no longer than half a period.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from flowhand.contracts.observers import EpisodeBegins, EpisodeEnds, Observer, Publisher, Stopped

from .background import LINES, Logger, TimeLimited, in_words, warnings_logged
from .journal import Journal
from .limits.vectors import vector
from .limits.workspace import Box
from .observers.journaling import ControlStep, JournalWriter
from .observers.threads import in_threads
from .run_report import Report
from .runtime_config import RuntimeConfig
from .safety import REFUSALS, Safety, Verdict
from .sensors import STAGES, InferenceResult, Monitor, Policy, Robot, SensorThread
from .timing import real_time, wait_until

logger = Logger(__name__)

WRITTEN_S = 2.0  # longest wait for the journal, with the robot at rest

FAULTS = (
    *(f"late {stage}" for stage in STAGES),
    *(f"{stage} error" for stage in STAGES),
    "write error",
    "no action",  # the policy has none yet, or its chunk has run out while it decides
    "alarm",
    "stopped",
)
REASONS = ("", *REFUSALS, *FAULTS)  # of refusals, as a journal counts them


class Runtime:
    """Controls one robot in real time, one episode after the other; `close` ends its threads and the journal.

    Args:
        robot: is read and commanded.
        policy: decides, at every control step.
        safety: has the last word on every command; its period is that of control.
        features: of the observation (`policies.Spec.observation`).
        control_dt_s: period in seconds.
        config: timing, and reactions to failures.
        monitor: is shown every observation and action, and may raise alarms.
        journal: gets a record of every control step; see `replay.open_journal`. Where it cannot be written, it ends,
            and control goes on.
        observers: are given what happens, each in a thread of its own; one that raises or is too slow misses events,
            and ends no control.

    Raises:
        ValueError: a limit of safety for which the policy would have to say more of its chunks, or a period that is
            none.
    """

    def __init__(
        self,
        robot: Robot,
        policy: Policy,
        safety: Safety,
        features: Mapping[str, Any],
        control_dt_s: float,
        config: RuntimeConfig | None = None,
        monitor: Monitor | None = None,
        journal: Journal | None = None,
        observers: Sequence[Observer] = (),
    ):
        for limit, needed in (("chunk_jump", "chunk_start"), ("max_chunk_age_s", "chunk_age_s")):
            if getattr(safety.config, limit) is not None and not hasattr(policy, needed):
                kind = type(policy).__name__
                raise ValueError(
                    f"safety.{limit} needs a policy with {needed}, such as InferenceThread; {kind} has none"
                )
        if not 1e-6 <= control_dt_s <= 3600:
            raise ValueError(f"control_dt_s={control_dt_s} must lie in 1e-6..3600 seconds")
        self.robot = robot
        self.safety = _bounded(safety, control_dt_s / 2)
        self.config = config or RuntimeConfig()
        self.journal = journal
        self.report = Report(control_dt_s)
        self._period_ns = round(control_dt_s * 1e9)
        self._sensors = SensorThread(robot, policy, monitor, features)
        self._writer = JournalWriter(journal, safety.size, REASONS) if journal else None
        self._publisher = Publisher([*([self._writer] if self._writer else []), *in_threads(observers)])
        self._stopped = ""  # from outside: why
        self._warned = ""  # of what

    def run(self, seconds: float, seed: int) -> str:
        """Controls the robot for one episode; at its end, whatever ends it, safe actions bring the robot to rest.

        Args:
            seconds: to control for.
            seed: of the policy's noise, in [0, 2^32).

        Returns:
            Why it ended: time, over (the robot says so), overrun, alarm, fault (`give_up_s`), or what `stop` was given,
            such as the name of a signal.

        Raises:
            ValueError: a real-time option that the system does not permit, a command of the robot that safety cannot
                start from, or no number of seconds.
        """
        if not seconds >= 0:
            raise ValueError(f"seconds={seconds} must be 0 or more")
        self._begin(seed)
        with real_time(self.config.priority, self.config.core), warnings_logged():
            self._t0_ns = time.monotonic_ns() + self._period_ns
            ended = ""
            try:
                while not (ended := self._ended(seconds)):
                    self._tick()
            finally:
                self.report.ended, self.report.counts = ended or "error", self.safety.counts
                if ended != "over":
                    self._come_to_rest()
                self._publisher.episode_ends(EpisodeEnds(0, seed, self._step, ended or "error"))
        if self._writer and not self._writer.drain(WRITTEN_S):
            logger.warning("the journal is still being written after %g s; control does not wait for it", WRITTEN_S)
        self.report.unlogged += LINES.dropped - self._dropped
        self.report.unwritten = self._writer.lost if self._writer else 0
        return ended

    def stop(self, reason: str) -> None:
        """Ends the run at the next control step; may be called from a signal handler or another thread."""
        self._stopped = self._stopped or reason

    def end_episode(self, reason: str) -> None:
        """Ends the present episode alone at the next control step; may be called from another thread."""
        self._ending = self._ending or reason

    def close(self) -> None:
        """Ends the threads and closes the journal."""
        self._sensors.close()
        for function in (self.safety.workspace, self.safety.safe_action):
            if isinstance(function, TimeLimited):
                function.close()
        self._publisher.stop(Stopped(self._stopped))
        if self._writer:
            self._writer.drain(WRITTEN_S)

    def _begin(self, seed: int) -> None:
        start = getattr(self.robot, "command", None)
        self.safety.reset(start)
        self._start = None if start is None else vector(start)
        self._dropped = LINES.dropped
        self._seed = seed
        if self._writer:
            self._writer.begin(self._start)
        self._publisher.episode_begins(EpisodeBegins(0, seed, "", None))
        self._sensors.begin(seed)
        self._ending = ""  # why this episode cannot go on
        self._alarms: list[str] = []  # that stand
        self._step = 0
        self._taken = 0  # step of the last request to which the thread was free
        self._acted = 0  # step of the last command of the policy
        self._unsent = False  # the robot has not taken the last command
        self._sent_ns = 0

    def _ended(self, seconds: float) -> str:
        """Why the episode is to end now; empty if it is not."""
        dt = self.report.control_dt_s
        if ended := self._stopped or self._ending or ("over" if self._over() else ""):
            return ended
        if self.config.give_up_s and (self._step - self._acted) * dt > self.config.give_up_s:
            return "fault"
        return "time" if self._step * dt >= seconds else ""

    def _over(self) -> bool:
        """Whether the robot says that the episode has ended by itself."""
        try:
            return bool(getattr(self.robot, "over", False))
        except BaseException as error:  # even SystemExit: a robot's properties are not ours
            if isinstance(error, KeyboardInterrupt):
                raise
            self._warn(f"whether the episode is over cannot be told: {in_words(error)}")
            return False

    def _tick(self, stopping: bool = False) -> None:
        """One control step: wait, get an answer or do without, send, note, and choose the next step."""
        due_ns = self._t0_ns + self._step * self._period_ns
        woke_ns = wait_until(due_ns, self.config.spin_s)
        late: list[InferenceResult] = []
        budget_ns = round(self.config.budget * self._period_ns)
        # Woken late by the system, what is left of the period is still given to the answer, but never more than that.
        deadline_ns = max(due_ns + budget_ns, woke_ns + self._period_ns - budget_ns)
        answer = None if stopping else self._ask(deadline_ns, late)
        verdict = self._judge(answer, stopping)
        wait_until(due_ns + round(self.config.send_at * self._period_ns), self.config.spin_s)
        problem = self._send(verdict)
        sent_ns = time.monotonic_ns()
        self.report.add(due_ns, woke_ns, sent_ns, sent_ns - self._sent_ns if self._sent_ns else 0)
        self._sent_ns = sent_ns if verdict.action is not None and not self._unsent else 0
        if self._publisher.wants("step"):
            self._publisher.step(self._event(answer, late, verdict, problem, due_ns, woke_ns))
        self._go_on()

    def _ask(self, deadline_ns: int, late: list[InferenceResult]) -> InferenceResult | None:
        """What the policy wants at this step; None where it does not say so in time."""
        gap_s = (self._step - self._taken) * self.report.control_dt_s
        request = InferenceResult(self._step, restart=gap_s > self.config.patience_s)
        answer = self._sensors.ask(request, deadline_ns, late)
        if request.taken:
            self._taken = self._step
        answers = late if answer is None else [*late, answer]
        self.report.decide_s.extend((each.decided_ns - each.observed_ns) / 1e9 for each in answers if each.asked)
        return answer

    def _judge(self, answer: InferenceResult | None, stopping: bool) -> Verdict:
        """The command for this step."""
        fault = self._fault(answer, stopping)
        if fault or answer is None or answer.action is None:
            return self.safety.refuse(fault, answer.observation if answer else None)
        answer.observation_age_s = time.monotonic() - answer.observed_s  # negative where the robot has another clock
        ages = {"observation_age_s": answer.observation_age_s, "chunk_age_s": answer.chunk_age_s}
        verdict = self.safety.step(answer.action, answer.observation, **ages, chunk_start=answer.chunk_start)
        self._acted = self._acted if verdict.refused else self._step
        return verdict

    def _fault(self, answer: InferenceResult | None, stopping: bool) -> str:
        """Why there is no command of the policy to follow; empty if there is one."""
        if stopping:
            return "stopped"
        if answer:
            self.report.alarms.update(set(answer.alarms).difference(self._alarms))
            self._alarms = answer.alarms
            if answer.alarms and self.config.on_alarm in ("stop", "ask"):
                self._ending = "alarm"
        if self._unsent:
            return "write error"
        if answer is None:
            return f"late {self._sensors.stage}"
        if answer.failed:
            self._warn(f"{answer.failed} failed: {answer.error}")
            return f"{answer.failed} error"
        if answer.alarms and self.config.on_alarm != "log":
            return "alarm"
        return "" if answer.action is not None else "no action"

    def _send(self, verdict: Verdict) -> str:
        """Sends the command, if there is one; what the robot raised, in words."""
        self._unsent = False
        if verdict.action is None:
            return ""
        try:
            self.robot.write(verdict.action.copy())
        except BaseException as error:  # even SystemExit: drivers are not ours
            if isinstance(error, KeyboardInterrupt):
                raise
            words = in_words(error)
            self._warn(f"the command was not taken: {words}")
            self.safety.rollback()
            self._unsent = True
            return words
        self.report.sent += 1
        return ""

    def _go_on(self) -> None:
        """Chooses the next control step: the following one, or the first whose time has not passed."""
        self._step += 1
        behind = (time.monotonic_ns() - self._t0_ns) // self._period_ns - self._step
        if behind > 0 and self.config.on_overrun != "catch_up":
            self._step += behind
            self.report.skipped += behind
            self.report.misses += behind
            if self.config.on_overrun == "stop":
                self._ending = "overrun"

    def _come_to_rest(self) -> None:
        """Sends safe actions until the robot rests, but for no longer than `stop_s`."""
        end_ns = time.monotonic_ns() + round(self.config.stop_s * 1e9)
        self._tick(stopping=True)
        while (self._unsent or not self.safety.resting) and time.monotonic_ns() < end_ns:
            self._tick(stopping=True)

    def _warn(self, text: str) -> None:
        """Warns of a failure once, however often it comes in a row."""
        logger.log(logging.DEBUG if text == self._warned else logging.WARNING, "%s", text)
        self._warned = text

    def _event(
        self,
        answer: InferenceResult | None,
        late: list[InferenceResult],
        verdict: Verdict,
        problem: str,
        due_ns: int,
        woke_ns: int,
    ) -> ControlStep:
        """The control step for those who watch."""
        taken = verdict.action is not None and not self._unsent
        return ControlStep(
            0,
            self._seed,
            self._step,
            answer.observation if answer else None,
            answer.action if answer else None,
            verdict.action if taken else None,
            picture=getattr(self.robot, "picture", None),
            answer=answer,
            late=late,
            verdict=verdict,
            taken=not self._unsent,
            problem=problem,
            due_ns=due_ns,
            woke_ns=woke_ns,
            sent_ns=self._sent_ns,
        )


def _bounded(safety: Safety, limit_s: float) -> Safety:
    """The same, with the functions of a user waited for no longer than the limit; a box computes and returns."""
    for name in ("workspace", "safe_action"):
        function = getattr(safety, name)
        if function is not None and not isinstance(function, Box | TimeLimited):
            setattr(safety, name, TimeLimited(function, limit_s))
    return safety
