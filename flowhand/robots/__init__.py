"""The body: robots, simulated worlds in their place, and who drives them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flowhand.contracts.features import Spec
from flowhand.contracts.strict import nearest
from flowhand.contracts.world import World
from flowhand.control.sensors import Robot

from .base import RobotConfig, features_of, opened
from .lerobot import LeRobotConfig, LeRobotRobot
from .matching import matched
from .one_at_a_time import OneAtATime
from .simulated import SimulatedConfig, SimulatedRobot

# A config is always given to the function beside its own class, which the type cannot say.
ROBOTS: dict[str, tuple[type[RobotConfig], Callable[[Any], Robot]]] = {
    "lerobot": (LeRobotConfig, LeRobotRobot),
    "simulated": (SimulatedConfig, lambda _: _without_world()),
}


def make(config: RobotConfig, world: World | None = None) -> Robot:
    """The robot that the config describes, not yet connected: `with opened(make(config)) as robot`.

    Args:
        config: which robot.
        world: that takes the robot's place, for `simulated`.

    Raises:
        ValueError: the kind is unknown, the config is not of the class that belongs to the kind, or what the robot's
            own class says against it.
    """
    if config.kind not in ROBOTS:
        raise ValueError(f"unknown kind of robot {config.kind!r}: {nearest(config.kind, ROBOTS)}")
    config_class, build = ROBOTS[config.kind]
    if not isinstance(config, config_class):
        raise ValueError(f"robot kind {config.kind!r} takes a {config_class.__name__}, got a {type(config).__name__}")
    if isinstance(config, SimulatedConfig) and world is not None:
        return SimulatedRobot(world)
    return build(config)


BLOCKED = 0.1  # share of the control period for which a command waits for a reading that is under way


@contextmanager
def ready(
    config: RobotConfig, spec: Spec, control_dt_s: float, world: World | None = None, **simulated: Any
) -> Iterator[Robot]:
    """The robot that the config describes, as the specification knows it, connected while the block runs.

    Its calls come one after the other, unless the robot says that it is `concurrent`.

    Args:
        config: which robot.
        spec: of who controls it.
        control_dt_s: time between two commands, in seconds.
        world: that takes the robot's place, for `simulated`.
        simulated: further arguments of `SimulatedRobot`.

    Raises:
        ValueError: what `make` and `matched` raise.
    """
    robot: Any = SimulatedRobot(world, **simulated) if world and config.kind == "simulated" else make(config, world)
    if not getattr(robot, "concurrent", False):
        robot = OneAtATime(robot, BLOCKED * control_dt_s)
    robot = matched(robot, spec, config.convert)
    with opened(robot):
        yield robot


def _without_world() -> Robot:
    raise ValueError("robot=simulated has no world to be simulated in; give env=...")


__all__ = [
    "ROBOTS",
    "LeRobotConfig",
    "OneAtATime",
    "Robot",
    "RobotConfig",
    "SimulatedConfig",
    "SimulatedRobot",
    "features_of",
    "make",
    "matched",
    "opened",
    "ready",
]
