"""The runtime: a policy controls a robot at a fixed rate, and whatever fails, the robot gets a command in time.

Control step k begins at t0 + k * control_dt_s on the monotonic clock, so errors of waiting do not add up. Another
thread reads the robot and asks the policy (sensing.py). If its answer is not there when `budget` of the period has
passed, or is an error, or is refused by safety, the robot is sent the safe action at that time. An answer that comes
too late is noted and dropped, and control goes on from a fresh observation.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .journal import Journal
from .pace import real_time, wait_until
from .report import Report
from .safety import REFUSALS, Safety, Verdict
from .sensing import STAGES, Answer, Monitor, Policy, Robot, Senses

logger = logging.getLogger(__name__)

FAULTS = (
    *(f"late {stage}" for stage in STAGES),
    *(f"{stage} error" for stage in STAGES),
    "write error",
    "no action",  # the policy has none yet, or its chunk has run out while it decides
    "alarm",
    "stopped",
)
REASONS = ("", *REFUSALS, *FAULTS)  # of refusals, as a journal counts them
ON_OVERRUN = ("skip", "catch_up", "stop")
ON_ALARM = ("hold", "stop", "log")


@dataclass
class RuntimeConfig:
    """How control is timed, and what happens when it fails."""

    budget: float = 0.8  # share of the period after which the safe action takes the place of a missing answer
    send_at: float = 0.0  # share of the period before which no command is sent, so that they are evenly spaced; 0: none
    patience_s: float = 0.2  # after a longer gap in the answers the policy is reset: what it had planned is past
    give_up_s: float = 0.0  # end the run after so long without a command of the policy; 0: never
    on_overrun: str = "skip"  # control steps whose time has passed: skip | catch_up (make them up at once) | stop
    on_alarm: str = "hold"  # what an alarm of the monitor does: hold (safe action) | stop (end the run) | log
    stop_s: float = 1.0  # at the end, longest time to come to rest in; at least one safe action is sent
    spin_s: float = 0.0  # wait actively for so long before each step: less jitter, more CPU
    priority: int = 0  # SCHED_FIFO priority of the control thread, 1 to 99; 0: the system's ordinary scheduling
    core: int = -1  # CPU core to keep the control thread on; -1: any

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise ValueError(f"runtime.budget={self.budget} must lie in (0, 1]")
        if not 0 <= self.send_at <= self.budget:
            raise ValueError(f"runtime.send_at={self.send_at} must lie in [0, budget], and budget is {self.budget}")
        for name in ("patience_s", "give_up_s", "stop_s", "spin_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"runtime.{name}={getattr(self, name)} must be seconds, 0 or more")
        if not 0 <= self.priority <= 99:
            raise ValueError(f"runtime.priority={self.priority} must lie in 0..99")
        for name, choices in (("on_overrun", ON_OVERRUN), ("on_alarm", ON_ALARM)):
            if getattr(self, name) not in choices:
                raise ValueError(f"runtime.{name}={getattr(self, name)!r} is unknown; choices: {', '.join(choices)}")


class Runtime:
    """Controls one robot in real time, one episode after the other; `close` ends its thread and the journal.

    Args:
        robot: is read and commanded.
        policy: decides, at every control step.
        safety: has the last word on every command; its period is that of control.
        features: of the observation (`policies.Spec.observation`).
        control_dt_s: period in seconds.
        config: timing, and reactions to failures.
        monitor: is shown every observation and action, and may raise alarms.
        journal: gets a record of every control step; see `deploy.replay.open_journal`.

    Raises:
        ValueError: a limit of safety for which the policy would have to say more of its chunks.
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
    ):
        for limit, told in (("chunk_jump", "chunk_start"), ("max_chunk_age_s", "chunk_age_s")):
            if getattr(safety.config, limit) is not None and not hasattr(policy, told):
                kind = type(policy).__name__
                raise ValueError(f"safety.{limit} needs a policy with {told}, such as a Decider; {kind} has none")
        self.robot = robot
        self.safety = safety
        self.config = config or RuntimeConfig()
        self.journal = journal
        self.report = Report(control_dt_s)
        self._period_ns = round(control_dt_s * 1e9)
        self._senses = Senses(robot, policy, monitor, features)
        self._episode = -1
        self._stopped = ""  # from outside: why
        self._warned = ""  # of what

    def run(self, seconds: float, seed: int) -> str:
        """Controls the robot for one episode; at its end, whatever ends it, safe actions bring the robot to rest.

        Args:
            seconds: to control for.
            seed: of the policy's noise, in [0, 2^32).

        Returns:
            Why it ended: time, over (the robot says so), overrun, alarm, fault (`give_up_s`), journal (it could not
            be written), or what `stop` was given, such as the name of a signal.

        Raises:
            ValueError: a real-time option that the system does not permit.
        """
        self._begin(seed)
        with real_time(self.config.priority, self.config.core):
            self._t0_ns = time.monotonic_ns() + self._period_ns
            ended = ""
            try:
                while not (ended := self._ended(seconds)):
                    self._tick()
            finally:
                self.report.ended, self.report.counts = ended or "error", self.safety.counts
                if ended != "over":
                    self._come_to_rest()
        return ended

    def stop(self, reason: str) -> None:
        """Ends the run at the next control step; may be called from a signal handler or another thread."""
        self._stopped = self._stopped or reason

    def close(self) -> None:
        """Ends the thread and closes the journal."""
        self._senses.close()
        if self.journal:
            self.journal.close()

    def _begin(self, seed: int) -> None:
        self._start = getattr(self.robot, "command", None)
        self.safety.reset(self._start)
        self._episode += 1
        self._senses.begin(seed)
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
        if ended := self._stopped or self._ending or ("over" if getattr(self.robot, "over", False) else ""):
            return ended
        if self.config.give_up_s and (self._step - self._acted) * dt > self.config.give_up_s:
            return "fault"
        return "time" if self._step * dt >= seconds else ""

    def _tick(self, stopping: bool = False) -> None:
        """One control step: wait, get an answer or do without, send, note, and choose the next step."""
        due_ns = self._t0_ns + self._step * self._period_ns
        woke_ns = wait_until(due_ns, self.config.spin_s)
        late: list[Answer] = []
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
        for each in late:
            self._note(each, {})
        times = {"due_ns": due_ns, "woke_ns": woke_ns, "sent_ns": self._sent_ns}
        self._note(answer or Answer(self._step), times, verdict, problem)
        self._go_on()

    def _ask(self, deadline_ns: int, late: list[Answer]) -> Answer | None:
        """What the policy wants at this step; None where it does not say so in time."""
        gap_s = (self._step - self._taken) * self.report.control_dt_s
        request = Answer(self._step, restart=gap_s > self.config.patience_s)
        answer = self._senses.ask(request, deadline_ns, late)
        if request.taken:
            self._taken = self._step
        answers = late if answer is None else [*late, answer]
        self.report.decide_s.extend((each.decided_ns - each.observed_ns) / 1e9 for each in answers if each.asked)
        return answer

    def _judge(self, answer: Answer | None, stopping: bool) -> Verdict:
        """The command for this step."""
        fault = self._fault(answer, stopping)
        if fault or answer is None or answer.action is None:
            return self.safety.refuse(fault, answer.observation if answer else None)
        answer.observation_age_s = time.monotonic() - answer.observed_s
        ages = {"observation_age_s": answer.observation_age_s, "chunk_age_s": answer.chunk_age_s}
        verdict = self.safety.step(answer.action, answer.observation, **ages, chunk_start=answer.chunk_start)
        self._acted = self._acted if verdict.refused else self._step
        return verdict

    def _fault(self, answer: Answer | None, stopping: bool) -> str:
        """Why there is no command of the policy to follow; empty if there is one."""
        if stopping:
            return "stopped"
        if answer:
            self.report.alarms.update(set(answer.alarms).difference(self._alarms))
            self._alarms = answer.alarms
            if answer.alarms and self.config.on_alarm == "stop":
                self._ending = "alarm"
        if self._unsent:
            return "write error"
        if answer is None:
            return f"late {self._senses.stage}"
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
        except Exception as error:  # of any kind: drivers are not ours
            self._warn(f"the command was not taken: {error}")
            self.safety.rollback()
            self._unsent = True
            return f"{type(error).__name__}: {error}"
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
        logger.log(logging.DEBUG if text == self._warned else logging.WARNING, text)
        self._warned = text

    def _note(
        self, answer: Answer, times: Mapping[str, int], verdict: Verdict | None = None, problem: str = ""
    ) -> None:
        """Writes a record into the journal: of this control step or, without a verdict, of a late answer."""
        if self.journal is None:
            return
        action = answer.action
        if action is not None and np.shape(action) != (self.safety.size,):
            action = None
        values = {"episode": self._episode, "late": verdict is None, "start": self._start, "action": action}
        values |= {**times, **answer.values()}
        if verdict is not None:
            values |= {"refused": REASONS.index(verdict.refused), "safe": verdict.action, "sent": not self._unsent}
        words = [answer.error, problem, *answer.alarms]
        try:
            self.journal.append(values, verdict.clamps if verdict else {}, "; ".join(filter(None, words)))
        except OSError as error:
            logger.error("the journal ends here: %s", error)
            self.journal = None
            self._ending = "journal"
