"""Plays a recorded episode in a world or on a robot, through safety, and compares."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conf.verbs.replay import ReplayRoot
from flowhand.contracts.data.episode import Episode
from flowhand.contracts.features import Spec
from flowhand.contracts.world import World
from flowhand.control.runtime import Runtime
from flowhand.control.timing import on_signals
from flowhand.demos.formats import open_dataset
from flowhand.demos.native import Store
from flowhand.demos.reader import Reader
from flowhand.demos.recording.files import rows_of
from flowhand.robots import RobotConfig, SimulatedConfig, ready
from flowhand.robots.acting.playback import PlaybackActor, Reached, errors
from flowhand.robots.acting.stepped import SteppedRuntime

from ..control import resting, safety_of

IN_WORLD = 1e-4  # tolerance in a world, in the units of the states


@dataclass
class Replayed:
    """What came of an episode that was played again."""

    steps: int  # control steps that were played
    errors: dict[str, np.ndarray]  # by observation (n, D), see `playback.errors`
    compared: list[int]  # the control steps of the rows of `errors`
    tolerance: float  # 0: nothing is judged
    changed: int  # actions that safety changed
    counts: Counter[str]  # of safety
    ended: str  # why it ended
    success: bool | None  # of a world; None: a robot

    @property
    def first(self) -> tuple[int, str, float] | None:
        """The first control step that differs by more than the tolerance, the observation, and by how much."""
        for row, step in enumerate(self.compared):
            for name, rows in self.errors.items():
                if row < len(rows) and rows[row].max() > self.tolerance > 0:
                    return step, name, float(rows[row].max())
        return None

    @property
    def first_error(self) -> float:
        """The largest difference after the first action; NaN where nothing was compared then."""
        if 1 not in self.compared or not self.errors:
            return float("nan")
        row = self.compared.index(1)
        return max(float(rows[row].max()) for rows in self.errors.values())

    @property
    def largest(self) -> float:
        """The largest difference of all."""
        return max((float(rows.max()) for rows in self.errors.values()), default=float("nan"))


def seed_of(data: Store | Reader, episode: int) -> int | None:
    """The seed of the world in which an episode was recorded; None where it is not known."""
    if isinstance(data, Store):
        return data.seeds[episode]
    if (Path(data.path) / "meta" / "episodes").is_dir():
        return rows_of(Path(data.path))[data.numbers[episode]].get("seed")
    return None


def replay(config: ReplayRoot, *, world: World | None = None, robot: Any = None) -> Replayed:
    """Plays the episode that the configuration names.

    Args:
        config: which episode, where, how.
        world: in place of the one that the configuration describes.
        robot: in place of the one that the configuration describes; it is connected already.

    Raises:
        ValueError: there is no such episode, or the world or robot takes other actions.
    """
    data = open_dataset(config.where, **({"rate_hz": config.rate_hz} if config.rate_hz else {}))
    if not 0 <= config.episode < len(data):
        raise ValueError(f"{config.where} has no episode {config.episode}; it has 0 to {len(data) - 1}")
    states = [n for n, f in data.spec.observation.items() if f.kind == "state"]
    episode = (data if isinstance(data, Store) else data.select(states)).read(config.episode)
    with ExitStack() as stack:
        if world is None and robot is None and (config.robot is None or config.robot.kind == "simulated"):
            if config.env is None:
                raise ValueError("replay where? Give env=... (a world) or robot=... (a robot)")
            import envs

            world = stack.enter_context(closing(envs.make(config.env)))
        if world is not None:
            seed = config.seed if config.seed >= 0 else seed_of(data, config.episode)
            return in_world(world, episode, data.spec, seed, config)
        return _on_robot(config, episode, data.spec, robot, stack)


def in_world(
    world: World, episode: Episode, recorded: Spec, seed: int | None, config: ReplayRoot | None = None
) -> Replayed:
    """Plays an episode in a world from its start state, and compares every state reached.

    Args:
        world: that takes the actions.
        episode: what was recorded.
        recorded: its specification.
        seed: of the start state; None: the world begins at the recorded first state.
        config: tolerance and limits.

    Raises:
        ValueError: the world takes other actions, or cannot begin there.
    """
    config = config or ReplayRoot()
    _require_action(recorded, world.features, world.task)
    dt = world.features.control_dt_s
    with ready(SimulatedConfig(), world.features, dt or 1.0, world, stop_at_success=False) as robot:
        if seed is None:
            robot.begin_at({name: values[0] for name, values in episode.observation.items()})  # pyright: ignore[reportAttributeAccessIssue]
        else:
            robot.reset(seed)  # pyright: ignore[reportAttributeAccessIssue]
        own = getattr(world, "as_recorded", None)
        shared = own is not None and set(own()) & set(episode.observation)
        reached = Reached(own if shared else lambda: robot.read())
        safety = safety_of(world.features, resting(config.safety, world), config.workspace, dt or 1.0)
        actor = PlaybackActor(episode.action.astype(np.float64))
        runtime = SteppedRuntime(robot, actor, safety, world.features.observation, dt, [reached])
        ended = runtime.run(len(episode) * (dt or 1.0), seed or 0, len(episode))
        success = bool(robot.success)  # pyright: ignore[reportAttributeAccessIssue]
    return _result(reached, episode, recorded, config.tolerance or IN_WORLD, safety.counts, ended, success)


def _on_robot(config: ReplayRoot, episode: Episode, recorded: Spec, given: Any, stack: ExitStack) -> Replayed:
    dt = recorded.seconds()
    chosen: RobotConfig = config.robot
    robot: Any = given if given is not None else stack.enter_context(ready(chosen, recorded, dt))
    safety = safety_of(recorded, config.safety, config.workspace, dt)
    start, steps = None, round(config.approach_s / dt)
    if steps:
        start = _standing(robot, recorded)
    actor, reached = PlaybackActor(episode.action.astype(np.float64), start, steps), Reached(first=steps)
    runtime = Runtime(robot, actor, safety, recorded.observation, dt, config.runtime, observers=[reached])
    with closing(runtime), on_signals(runtime.stop):
        ended = runtime.run((steps + len(episode)) * dt, 0)
    return _result(reached, episode, recorded, config.tolerance, safety.counts, ended, None)


def _standing(robot: Any, spec: Spec) -> np.ndarray:
    """(A,) the action at which the robot stands now: its own word, or the state of the same names."""
    command = getattr(robot, "command", None)
    if command is not None:
        return np.asarray(command, np.float64)
    observed = robot.read()
    for name, feature in spec.observation.items():
        if feature.kind == "state" and feature.names and feature.names == spec.action.names:
            return np.asarray(observed[name], np.float64)
    raise ValueError(
        "where the robot stands is not known (no command of its own, no state with the action's names), so it cannot "
        "be moved to where the episode begins; bring it there and give approach_s=0"
    )


def _require_action(recorded: Spec, driven: Spec, what: str) -> None:
    if recorded.action.shape != driven.action.shape:
        raise ValueError(f"{what} takes actions of shape {driven.action.shape}, recorded were {recorded.action.shape}")
    a, b = recorded.control_dt_s, driven.control_dt_s
    if a and b and abs(a / b - 1) > 1e-3:
        raise ValueError(f"{what} acts every {b:g} s, recorded was every {a:g} s")


def _result(
    reached: Reached, episode: Episode, recorded: Spec, tolerance: float, counts: Counter[str], ended: str,
    success: bool | None,
) -> Replayed:  # fmt: skip
    wraps = {name: feature.wraps or () for name, feature in recorded.observation.items()}
    found = errors(reached, episode.observation, wraps)
    compared = [step for step in reached.steps if step < len(episode)]
    steps = len(reached.steps)
    return Replayed(steps, found, compared, tolerance, len(reached.changed), Counter(counts), ended, success)
