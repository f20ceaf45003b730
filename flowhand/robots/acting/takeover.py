"""A policy acts, and somebody else takes over: an expert or a person, on a key, after a time, or on an alarm.

Three things happen at the change. A leader with motors is first driven to where the follower was last sent, one small
step at a time, while the robot holds (`Driver.lead`). Then the difference between the last command and the first wish
of whoever takes over is taken off its wishes, less and less over `blend_s`, so that the command does not jump, with a
leader that has motors or without. Last, safety's own limits are kept as for any command; the first wish counts as the
start of a chunk, whose jump `safety.chunk_jump` bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowhand.control.sensors import Monitor, Policy

Condition = Callable[[Mapping[str, np.ndarray]], bool]
BY = ("", "expert", "driver")


@dataclass
class TakeOverConfig:
    """When somebody takes over from the policy, and how.

    Raises:
        ValueError: an unknown choice, or a time out of range.
    """

    by: str = ""  # who takes over: expert (of the world) | driver (a person); empty: nobody
    on_alarm: bool = False  # take over at an alarm of the checkpoint's calibrated monitor
    after_s: float = 0.0  # take over after so long in an episode, seconds; 0: not by time
    for_s: float = 0.0  # give control back after so long, seconds; 0: at the key, or when the episode ends
    blend_s: float = 0.5  # over which a jump between the last command and the first wish is spread, seconds
    lead_s: float = 3.0  # longest time to drive a leader with motors to the robot, seconds

    def __post_init__(self) -> None:
        if self.by not in BY:
            raise ValueError(f"takeover.by={self.by!r} is unknown; choices: expert, driver, or empty")
        for name in ("after_s", "for_s", "blend_s", "lead_s"):
            if not 0 <= getattr(self, name) <= 1e6:
                raise ValueError(f"takeover.{name}={getattr(self, name)} must be seconds, 0 to 1000000")
        if not self.by and (self.on_alarm or self.after_s):
            raise ValueError("takeover.on_alarm and takeover.after_s need takeover.by=expert or driver")


class TakeOver:
    """The policy of a runtime in which two act, one at a time.

    Args:
        policy: acts first.
        other: acts after a change: an actor of an expert or a person.
        config: when, and how.
        control_dt_s: time between two actions, seconds.
        discrete: which dimensions of the action are choices, (A,) bool: they do not blend.
        monitor: judges the policy's decisions; None: nobody does.
        condition: takes over where it is true of an observation; None: none.

    Attributes:
        intervention: whether the last action was not the policy's.
        paused: whether the robot holds while a leader is driven to it; such steps are no demonstration.
        changes: why each change happened, in order.
    """

    def __init__(
        self,
        policy: Policy,
        other: Any,
        config: TakeOverConfig,
        control_dt_s: float,
        discrete: np.ndarray,
        monitor: Monitor | None = None,
        condition: Condition | None = None,
    ):
        self._policy, self._other, self._config = policy, other, config
        self._monitor, self._condition, self._discrete = monitor, condition, discrete
        self._dt = control_dt_s
        self._driver = getattr(other, "driver", None)
        self.changes: list[str] = []
        self._switch = ""  # asked for by a key
        self._fresh = True
        self._clear()

    def _clear(self) -> None:
        self.intervention = self.paused = self.chunk_start = False
        self.chunk_age_s = 0.0
        self._step = self._since = 0
        self._acting = "policy"  # policy | leading | other
        self._offset: np.ndarray | None = None  # that is taken off the wishes after a change
        self._last: np.ndarray | None = None
        self._alarms: list[str] = []

    def switch(self, reason: str = "key") -> None:
        """Lets the other one act from the next control step on; may be called from another thread."""
        self._switch = reason

    def begin(self) -> None:
        """The next reset is that of an episode, and not of a policy that was not asked for too long."""
        self._fresh = True

    def reset(self, *, seed: int) -> None:
        """An episode begins with the policy; or, without `begin` before, the policy begins again within one."""
        if not self._fresh:
            if self._acting == "policy":
                self._policy.reset(seed=seed)
            return
        self._fresh = False
        self._clear()
        self._switch = ""
        self._policy.reset(seed=seed)
        self._other.reset(seed=seed)
        if self._monitor is not None:
            self._monitor.reset(seed, False)
        self._seed = seed

    def step(self, observation: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """The action (A,) of whoever acts; None: the robot holds."""
        self._change(observation)
        self._step += 1
        if self._acting == "leading" and not self._led():
            self.intervention, self.paused = False, True
            return None
        self.paused, self.intervention = False, self._acting == "other"
        actor = self._other if self.intervention else self._policy
        wish = actor.step(observation)
        if wish is None:
            return None
        action = self._blended(np.asarray(wish, np.float64))
        if self.intervention:
            self.chunk_age_s = 0.0
        else:
            self.chunk_start = self.chunk_start or bool(getattr(actor, "chunk_start", False))
            self.chunk_age_s = float(getattr(actor, "chunk_age_s", 0.0))
            self._alarms = self._monitor.observe(observation, action) if self._monitor is not None else []
        self._last = action
        return action

    def _change(self, observation: Mapping[str, np.ndarray]) -> None:
        """Lets the other one act where there is a reason."""
        self.chunk_start = False
        reason, self._switch = self._switch, ""
        lasted_s = (self._step - self._since) * self._dt
        if self._acting == "policy":
            reason = reason or self._reason(observation)
        elif not reason and self._config.for_s and lasted_s >= self._config.for_s:
            reason = "time"
        if not reason:
            return
        self.changes.append(f"step {self._step}: {reason}")
        self._since = self._step
        if self._acting == "policy":
            leads = self._last is not None and hasattr(self._driver, "lead")
            self._acting = "leading" if leads else "other"
        else:
            self._acting = "policy"
            self._policy.reset(seed=(self._seed + len(self.changes)) % 2**32)
        self._begin()

    def _begin(self) -> None:
        """The next wish is of somebody else."""
        self._offset, self._joined, self.chunk_start = None, self._step, True

    def _reason(self, observation: Mapping[str, np.ndarray]) -> str:
        """Why the policy should act no longer; empty if it should."""
        if self._config.on_alarm and self._alarms:
            return f"alarm: {self._alarms[0]}"
        if self._config.after_s and self._step * self._dt >= self._config.after_s:
            return "time"
        return "condition" if self._condition is not None and self._condition(observation) else ""

    def _led(self) -> bool:
        """Moves the leader a step towards the robot; whether a person may go on from there."""
        assert self._last is not None
        assert self._driver is not None
        there = self._driver.lead(self._last)  # None of a device that is there at once
        late = (self._step - self._since) * self._dt > self._config.lead_s
        if there is False and not late:
            return False
        if release := getattr(self._driver, "release", None):
            release()
        self._acting = "other"
        self._begin()
        return True

    def _blended(self, wish: np.ndarray) -> np.ndarray:
        """The wish, nearer to the last command the shorter ago the change was."""
        if self._last is None or not self.changes or not self._config.blend_s:
            return wish
        if self._offset is None:
            self._offset = np.where(self._discrete, 0.0, wish - self._last)
        left = 1 - (self._step - 1 - self._joined) * self._dt / self._config.blend_s
        return wish - self._offset * left if left > 0 else wish
