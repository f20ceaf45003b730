"""A person drives with a gamepad, read from Linux's joystick device."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field

import numpy as np

from flowhand.contracts.features import Spec

from .base import DriverConfig, Observation
from .jog import Jog

EVENT = struct.Struct("IhBB")  # milliseconds, value, type, number (Linux, Documentation/input/joydev/joystick-api)
BUTTON, AXIS, INITIAL = 1, 2, 0x80
FULL = 32767  # deflection of an axis


@dataclass
class GamepadConfig(DriverConfig):
    """What moves each dimension: an axis, or two buttons."""

    kind: str = "gamepad"
    device: str = "/dev/input/js0"  # of the gamepad
    # For each dimension: axis3 | -axis3 (the other way round) | buttons4/5 (the one down, the other up) | none
    controls: list[str] = field(
        default_factory=lambda: ["axis0", "-axis1", "axis3", "-axis4", "axis6", "buttons4/5", "-axis7"]
    )
    speed: list[float] = field(default_factory=lambda: [0.5])  # of a dimension at full deflection, per second
    mode: str = "target"  # target: the action is a position, which the sticks move | rate: the action is a speed
    dead: float = 0.1  # deflection below which a stick counts as centred, share of the full one

    def __post_init__(self) -> None:
        if not 0 <= self.dead < 1:
            raise ValueError(f"driver.dead={self.dead} must lie in [0, 1)")


class GamepadDriver:
    """Drives as `GamepadConfig` says.

    Raises:
        ValueError: a control that is none, fewer controls than dimensions, or what `Jog` raises.
    """

    def __init__(self, config: GamepadConfig, spec: Spec):
        size = spec.action.size
        if len(config.controls) < size:
            raise ValueError(f"driver.controls has {len(config.controls)} entries, the action {size} dimensions")
        self._controls = [_control(each) for each in config.controls[:size]]
        self._device, self._dead = config.device, config.dead
        self._jog = Jog(spec, config.speed, config.mode, config.kind)
        self._state: dict[tuple[int, int], float] = {}  # type and number -> deflection
        self._file = -1

    def connect(self) -> None:
        """Opens the device."""
        try:
            self._file = os.open(self._device, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise ValueError(f"driver.device={self._device} cannot be opened ({error.strerror}); plug it in") from error

    def disconnect(self) -> None:
        """Closes the device."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def reset(self, seed: int) -> None:
        """Starts from where the robot stands."""
        self._jog.start()

    def lead(self, action: np.ndarray) -> None:
        """Goes on from this action."""
        self._jog.start(action)

    def action(self, observation: Observation) -> np.ndarray:
        """The action (A,) that the sticks ask for."""
        self._update()
        return self._jog.moved(observation, np.array([self._deflection(each) for each in self._controls]))

    def _update(self) -> None:
        while True:
            try:
                data = os.read(self._file, EVENT.size * 64)
            except BlockingIOError:
                return
            for _, value, kind, number in EVENT.iter_unpack(data[: len(data) // EVENT.size * EVENT.size]):
                kind &= ~INITIAL
                self._state[kind, number] = value / FULL if kind == AXIS else float(value)
            if len(data) < EVENT.size * 64:
                return

    def _deflection(self, control: list[tuple[int, int, float]]) -> float:
        total = sum(sign * self._state.get((kind, number), 0.0) for kind, number, sign in control)
        return float(np.clip(total, -1, 1)) if abs(total) > self._dead else 0.0


def _control(text: str) -> list[tuple[int, int, float]]:
    """Type, number and sign of what moves a dimension."""
    sign, name = (-1.0, text[1:]) if text.startswith("-") else (1.0, text)
    if name == "none":
        return []
    if name.startswith("axis") and name[4:].isdecimal():
        return [(AXIS, int(name[4:]), sign)]
    numbers = name.removeprefix("buttons").split("/")
    if name.startswith("buttons") and len(numbers) == 2 and all(each.isdecimal() for each in numbers):
        return [(BUTTON, int(numbers[0]), -sign), (BUTTON, int(numbers[1]), sign)]
    raise ValueError(f"driver.controls has {text!r}; expected axis3, -axis3, buttons4/5 or none")
