"""LeRobot's teleoperators: leader arms, gamepads, phones, with lerobot's own classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowhand.contracts.features import Spec

from ..lerobot import DeviceConfig, device, motors, require_file, uncalibrated, vector_feature
from ..matching import vector
from .base import DriverConfig, Observation

CLOSE = 0.03  # of a full turn, or of a range in percent: a leader that is nearer stands where it was led


@dataclass
class TeleoperatorConfig(DeviceConfig, DriverConfig):
    """One of LeRobot's teleoperators."""

    kind: str = "lerobot"
    convert: bool = False  # convert values whose units differ from the robot's; false: refuse them
    unit: str = ""  # of its values, where lerobot's class does not say it; empty: as the class says
    lead_speed: float = 60.0  # largest speed at which a leader's motors move it, in its own units per second

    def __post_init__(self) -> None:
        if not 0 < self.lead_speed <= 1e4:
            raise ValueError(f"driver.lead_speed={self.lead_speed} must be positive")


class LeRobotDriver:
    """A teleoperator of lerobot, whose values are the action of the robot.

    Attributes:
        leads: whether it has motors that can move it.

    Raises:
        ValueError: what lerobot does not take, a value of the action that it does not give, or units that differ.
    """

    def __init__(self, config: TeleoperatorConfig, spec: Spec, made: Any = None):
        self.config = config
        room = ("teleoperators", "TeleoperatorConfig", "make_teleoperator_from_config")
        self.device = device(config, *room) if made is None else made
        if odd := [key for key, kind in self.device.action_features.items() if kind not in (float, int, bool)]:
            raise ValueError(f"{config.type} gives {odd[0]!r}, which is no single number; a leader arm gives numbers")
        self._keys, self._spec, self._step = list(self.device.action_features), spec, config.lead_speed * spec.seconds()
        self.leads = bool(self.device.feedback_features)
        self._matched()
        self._goal: np.ndarray | None = None  # where its motors hold it

    def _matched(self) -> None:
        own = vector_feature(self._keys, dict(motors(self.device)), self.config.unit)
        convert = self.config.convert
        self._action = vector("action", {"action": own}, self._spec.action, convert, "the driver", "the robot")
        if own.size > self._spec.action.size:
            raise ValueError(
                f"the driver gives {', '.join(self._keys)}, the robot takes {self._spec.action.size} values"
            )

    def connect(self) -> None:
        """Connects the device.

        Raises:
            ValueError: it is not calibrated.
        """
        require_file(self.device, self.config, "teleop")
        self.device.connect(calibrate=False)
        if not self.device.is_calibrated:
            self.device.disconnect()
            raise ValueError(uncalibrated(self.config, "teleop"))
        self._matched()  # with the ranges, which calibration says

    def disconnect(self) -> None:
        """Lets go of the device."""
        if self.device.is_connected:
            self.device.disconnect()

    def action(self, observation: Observation) -> np.ndarray:
        """Where the device stands, as the robot's action."""
        return self._action.of({"action": self._standing()}).astype(float)

    def lead(self, action: np.ndarray) -> bool:
        """Moves the device's motors one step towards the robot's action; whether it is there.

        A device without motors stays where it is, and the answer says whether that is there.
        """
        there, here = self._action.back(np.asarray(action, float)), self._standing()
        if self.leads:
            if self._goal is None:
                self._goal = here
                if enable := getattr(self.device, "enable_torque", None):
                    enable()
            # From the last goal, not from where it stands: its weight keeps it a little below every goal.
            self._goal = self._goal + np.clip(there - self._goal, -self._step, self._step)
            self.device.send_feedback({key: float(value) for key, value in zip(self._keys, self._goal, strict=True)})
        sizes = np.array([360.0 if "deg" in self._unit(key) else 100.0 for key in self._keys])
        return bool((np.abs(there - here) <= CLOSE * sizes).all())

    def release(self) -> None:
        """Takes the torque off the motors, so that a person may move them."""
        if self._goal is not None and (disable := getattr(self.device, "disable_torque", None)):
            disable()
        self._goal = None

    def _unit(self, key: str) -> str:
        return dict(motors(self.device)).get(key, ("", 0, 0))[0]

    def _standing(self) -> np.ndarray:
        given: Mapping[str, Any] = self.device.get_action()
        return np.array([float(given[key]) for key in self._keys])
