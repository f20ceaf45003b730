"""A command that a person moves with keys or sticks, each of which moves one dimension at some speed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flowhand.contracts.features import Spec

from .base import Observation

MODES = ("target", "rate")


class Jog:
    """The command so far, moved along.

    Args:
        spec: of the robot.
        speed: of each dimension at full deflection, per second in its unit; one number serves all.
        mode: target (the action is a position, and moves) | rate (the action is itself a speed).
        who: is driving, for error messages.

    Raises:
        ValueError: an unknown mode, a number of speeds that is not the action's, or a specification that does not say
            where the robot stands before its first command.
    """

    def __init__(self, spec: Spec, speed: Sequence[float], mode: str, who: str):
        size = spec.action.size
        if mode not in MODES:
            raise ValueError(f"driver.mode={mode!r} is unknown; choices: {', '.join(MODES)}")
        if len(speed) not in (1, size):
            raise ValueError(f"driver.speed has {len(speed)} numbers, expected 1 or {size}, one for each dimension")
        self._speed = np.broadcast_to(np.asarray(speed, float), (size,))
        self._low, self._high = (end.astype(float) for end in spec.action.bounds())
        self._rate, self._dt = mode == "rate", spec.seconds()
        self._places = None if self._rate else _places(spec, who)
        self._target: np.ndarray | None = None

    def start(self, action: np.ndarray | None = None) -> None:
        """Goes on from this action (A,); None: from where the next observation shows the robot."""
        self._target = None if action is None else np.array(action, float)

    def moved(self, observation: Observation, deflection: np.ndarray) -> np.ndarray:
        """The action (A,) of this control step.

        Args:
            observation: of the robot.
            deflection: (A,) of each dimension, -1 to 1.
        """
        if self._places is None:
            return np.clip(deflection * self._speed, self._low, self._high)
        if self._target is None:
            self._target = np.array([float(observation[name][place]) for name, place in self._places])
        self._target = np.clip(self._target + deflection * self._speed * self._dt, self._low, self._high)
        return self._target.copy()


def _places(spec: Spec, who: str) -> list[tuple[str, int]]:
    """Where the observation has the present value of each dimension of the action: in the state of the same name."""
    known: dict[str, list[tuple[str, int]]] = {}
    for name, feature in spec.observation.items():
        if feature.kind == "state" and len(feature.shape) == 1:
            for place, dimension in enumerate(feature.names or ()):
                known.setdefault(dimension, []).append((name, place))
    found = [known.get(name, []) for name in spec.action.names or [""] * spec.action.size]
    for dimension, places in enumerate(found):
        if len(places) != 1:
            name = spec.action.names[dimension] if spec.action.names else f"dimension {dimension} of the action"
            raise ValueError(
                f"driver={who} driver.mode=target begins where the robot stands, and no single state says that of "
                f"{name}; name the dimensions of state and action alike, or set driver.mode=rate"
            )
    return [places[0] for places in found]
