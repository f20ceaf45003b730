"""Who drives a robot: the keyboard, a gamepad, a leader arm, a script."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowhand.contracts.features import Spec
from flowhand.contracts.strict import nearest

from .base import Driver, DriverConfig
from .gamepad import GamepadConfig, GamepadDriver
from .keyboard import KeyboardConfig, KeyboardDriver
from .keys import Keys, TerminalKeys, WaitingKeys
from .lerobot import LeRobotDriver, TeleoperatorConfig
from .scripted import ScriptedDriver

# A config is always given to the function beside its own class, which the type cannot say.
DRIVERS: dict[str, tuple[type[DriverConfig], Callable[[Any, Spec], Driver]]] = {
    "gamepad": (GamepadConfig, GamepadDriver),
    "keyboard": (KeyboardConfig, KeyboardDriver),
    "lerobot": (TeleoperatorConfig, LeRobotDriver),
}


def make(config: DriverConfig, spec: Spec) -> Driver:
    """The driver that the config describes, for a robot of this specification, not yet connected.

    Raises:
        ValueError: the kind is unknown, the config is not of the class that belongs to the kind, or the driver cannot
            give the actions of this robot.
    """
    if config.kind not in DRIVERS:
        raise ValueError(f"unknown kind of driver {config.kind!r}: {nearest(config.kind, DRIVERS)}")
    config_class, build = DRIVERS[config.kind]
    if not isinstance(config, config_class):
        raise ValueError(f"driver kind {config.kind!r} takes a {config_class.__name__}, got a {type(config).__name__}")
    return build(config, spec)


__all__ = [
    "DRIVERS",
    "Driver",
    "DriverConfig",
    "GamepadConfig",
    "GamepadDriver",
    "KeyboardConfig",
    "KeyboardDriver",
    "Keys",
    "ScriptedDriver",
    "TeleoperatorConfig",
    "TerminalKeys",
    "WaitingKeys",
    "make",
]
