"""One call on a robot at a time: a motor bus is half-duplex, and drivers have no lock of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from flowhand.control.sensors import Robot


class OneAtATime:
    """The same robot, which is never read and commanded at once; its other attributes are those of the robot.

    A command waits for a reading that is under way, but no longer than `wait_s`: then it raises `TimeoutError`, so that
    whoever controls the robot knows within the period that it was not sent.

    Args:
        robot: whose calls are to come one after the other.
        wait_s: longest wait of a command, in seconds; a small share of the control period.

    Attributes:
        blocked: commands that could not be sent since the robot was still being read.
    """

    def __init__(self, robot: Robot, wait_s: float):
        self.robot, self.wait_s, self.blocked = robot, wait_s, 0
        self._lock = threading.Lock()
        self._since_s = 0.0  # when the reading that is under way began

    def read(self) -> Mapping[str, np.ndarray]:
        """What the robot reads; it waits for a command that is under way."""
        with self._lock:
            self._since_s = time.monotonic()
            return self.robot.read()

    def write(self, action: np.ndarray) -> None:
        """Sends the command.

        Raises:
            TimeoutError: the robot is still being read.
        """
        if not self._lock.acquire(timeout=self.wait_s):
            self.blocked += 1
            raise TimeoutError("the robot does not answer a reading, and takes no command until it does")
        try:
            self.robot.write(action)
        finally:
            self._lock.release()

    def connect(self) -> None:
        """Connects the robot, where it has to be."""
        if connect := getattr(self.robot, "connect", None):
            connect()

    def disconnect(self) -> None:
        """Disconnects the robot, where it has to be, after the call that is under way.

        Raises:
            TimeoutError: that call does not return within 2 s; the robot then stays as it is.
        """
        if not (disconnect := getattr(self.robot, "disconnect", None)):
            return
        if not self._lock.acquire(timeout=LEAVE_S):
            hung_s = time.monotonic() - self._since_s
            raise TimeoutError(
                f"the robot has not answered for {hung_s:.1f} s and cannot be disconnected: its motors keep the last "
                "command; switch them off by hand"
            )
        try:
            disconnect()
        finally:
            self._lock.release()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.robot, name)


LEAVE_S = 2.0  # longest wait for a call that is under way when the robot is to be left
