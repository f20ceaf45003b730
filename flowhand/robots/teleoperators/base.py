"""Who drives a robot in a policy's place: a person at a keyboard, a gamepad or a leader arm, or a script."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Observation = Mapping[str, np.ndarray]


@dataclass
class DriverConfig:
    """The choice of a driver; every adapter adds its own fields."""

    kind: str = "???"  # a key of flowhand.robots.teleoperators.DRIVERS


class Driver(Protocol):
    """Says at every control step what the robot is to do. `flowhand.robots.opened` connects and disconnects it.

    Further methods are used where they exist:

        connect()            opens the device; called once, before anything else
        disconnect()         lets go of it; called once
        reset(seed)          an episode begins
        lead(action)         a device with motors is driven to this action (A,) of the robot, one small step per call,
                             so that a person who takes over begins where the robot is
        release()            its motors let go, and a person may move it
    """

    def action(self, observation: Observation) -> np.ndarray | None:
        """The action (A,) for this control step, in the units of the specification; None: nobody drives now.

        It is called once per control step, by one thread, and may raise. It must return within the period.
        """
        ...
