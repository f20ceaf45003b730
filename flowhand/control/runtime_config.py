"""Timing of the runtime, and its reactions to failures."""

from __future__ import annotations

from dataclasses import dataclass

ON_OVERRUN = ("skip", "catch_up", "stop")
ON_ALARM = ("hold", "stop", "ask", "log")


@dataclass
class RuntimeConfig:
    """How control is timed, and what happens when it fails."""

    budget: float = 0.8  # share of the period after which the safe action takes the place of a missing answer
    send_at: float = 0.0  # share of the period before which no command is sent, so that they are evenly spaced; 0: none
    patience_s: float = 0.2  # after a longer gap in the answers the policy is reset: what it had planned is past
    give_up_s: float = 0.0  # end the run after so long without a command of the policy; 0: never
    on_overrun: str = "skip"  # control steps whose time has passed: skip | catch_up (make them up at once) | stop
    on_alarm: str = "hold"  # the monitor's alarm: hold (safe action) | stop (the run) | ask (stop, then ask) | log it
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
            if not 0 <= getattr(self, name) <= 1e6:
                raise ValueError(f"runtime.{name}={getattr(self, name)} must be seconds, 0 to 1000000")
        if not 0 <= self.priority <= 99:
            raise ValueError(f"runtime.priority={self.priority} must lie in 0..99")
        for name, choices in (("on_overrun", ON_OVERRUN), ("on_alarm", ON_ALARM)):
            if getattr(self, name) not in choices:
                raise ValueError(f"runtime.{name}={getattr(self, name)!r} is unknown; choices: {', '.join(choices)}")
