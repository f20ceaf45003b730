"""A person drives with the keys of the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from flowhand.contracts.features import Spec

from .base import DriverConfig, Observation
from .jog import Jog
from .keys import Keys, TerminalKeys


@dataclass
class KeyboardConfig(DriverConfig):
    """Two keys for each dimension of the action: one moves it down, the other up."""

    kind: str = "keyboard"
    # For each dimension the key that makes it smaller and the one that makes it larger, with a slash between.
    keys: list[str] = field(default_factory=lambda: ["a/d", "s/w", "k/i", "j/l", "u/o", "f/g", "v/b", "n/m"])
    speed: list[float] = field(default_factory=lambda: [0.5])  # of a dimension while its key is held, per second
    mode: str = "target"  # target: the action is a position, which keys move | rate: the action is itself a speed
    held_s: float = 0.15  # for so long a press counts as held, since a terminal tells no releases

    def __post_init__(self) -> None:
        pairs = [each.split("/") for each in self.keys]
        if any(len(pair) != 2 or not all(pair) for pair in pairs):
            raise ValueError(f"driver.keys={self.keys} must be pairs such as a/d, one for each dimension")
        names = [name for pair in pairs for name in pair]
        if len(set(names)) < len(names):
            raise ValueError(f"driver.keys={self.keys} has a key twice; give every direction one of its own")
        if not 0 < self.held_s <= 10:
            raise ValueError(f"driver.held_s={self.held_s} must lie in (0, 10] seconds")


class KeyboardDriver:
    """Drives as `KeyboardConfig` says.

    Args:
        config: which keys, and how fast.
        spec: of the robot.
        keys: where they come from; None: the terminal.
        clock: seconds.

    Attributes:
        keys: for others who want keys that this driver does not take.

    Raises:
        ValueError: fewer pairs of keys than the action has dimensions, or what `Jog` raises.
    """

    def __init__(
        self,
        config: KeyboardConfig,
        spec: Spec,
        keys: Keys | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        size = spec.action.size
        if len(config.keys) < size:
            raise ValueError(f"driver.keys has {len(config.keys)} pairs of keys, the action {size} dimensions")
        self.keys = keys or TerminalKeys()
        self._ways = {
            key: (dimension, sign)
            for dimension, pair in enumerate(config.keys[:size])
            for key, sign in zip(pair.split("/"), (-1.0, 1.0), strict=True)
        }
        self._jog, self._held_s, self._clock = Jog(spec, config.speed, config.mode, config.kind), config.held_s, clock
        self._sign, self._until = np.zeros(size), np.full(size, -np.inf)

    def connect(self) -> None:
        """Takes the terminal's keys."""
        if connect := getattr(self.keys, "connect", None):
            connect()

    def disconnect(self) -> None:
        """Gives the terminal back."""
        if disconnect := getattr(self.keys, "disconnect", None):
            disconnect()

    def reset(self, seed: int) -> None:
        """Starts from where the robot stands."""
        self._jog.start()

    def lead(self, action: np.ndarray) -> None:
        """Goes on from this action."""
        self._jog.start(action)

    def action(self, observation: Observation) -> np.ndarray:
        """The action (A,) that the keys ask for."""
        now = self._clock()
        for key in self.keys.take(self._ways):
            dimension, sign = self._ways[key]
            self._sign[dimension], self._until[dimension] = sign, now + self._held_s
        return self._jog.moved(observation, np.where(self._until > now, self._sign, 0.0))
