"""What every robot offers, how one is chosen, and how it is opened and left.

A robot is any object with `read` and `write` (`flowhand.control.sensors.Robot`). Used where they exist, beside what is
said there:

    connect()      opens what the robot needs; called once, before anything else
    disconnect()   leaves the robot so that nobody has to catch it, and lets go of what it holds; called once
    features       a `Spec`: names, shapes, dtypes, units and ranges of what it observes and takes; None: not known
    concurrent     true where reading and commanding at the same time is safe; else calls come one after the other
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from flowhand.contracts.features import Spec
from flowhand.control.sensors import Robot


@dataclass
class RobotConfig:
    """The choice of a robot; every adapter adds its own fields."""

    kind: str = "???"  # a key of flowhand.robots.ROBOTS
    convert: bool = False  # convert values whose units differ from the policy's; false: refuse them


Device = TypeVar("Device")


@contextmanager
def opened(device: Device) -> Iterator[Device]:
    """Connects a robot or a driver, where it has to be, and disconnects it when the block is left, however it is.

    Raises:
        Exception: what `connect` or `disconnect` raised. A robot that was half connected is disconnected.
    """
    try:
        if connect := getattr(device, "connect", None):
            connect()
        yield device
    finally:
        if disconnect := getattr(device, "disconnect", None):
            disconnect()


def features_of(robot: Robot) -> Spec | None:
    """What the robot says that it observes and takes; None where it says nothing."""
    return getattr(robot, "features", None)
