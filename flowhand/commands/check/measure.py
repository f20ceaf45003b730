"""Measures a robot before any policy runs: `flowhand check robot=NAME checkpoint=outputs/arm`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

import flowhand
from conf import cli
from conf.verbs.check import CheckRoot
from flowhand import robots
from flowhand.contracts.features import Spec, dimension_name
from flowhand.contracts.planner import learnable
from flowhand.contracts.world import World
from flowhand.control.background import TimeLimited
from flowhand.robots.check.findings import Checked, Fault, judged
from flowhand.robots.check.probe import STILL, Probe, Trace, image_features, thumb

READING_S = 2.0  # longest wait for a reading, in seconds
LASTING = 1_000_000  # control steps of a world's episode
MOST_EPISODES = 20  # of the demonstrations, whose first pictures are the reference


class Read:
    """A robot whose reading is not waited for without end; everything else is the robot's own."""

    def __init__(self, robot: Any):
        self._robot = robot
        self.read = TimeLimited(robot.read, READING_S)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._robot, name)


def check(config: CheckRoot) -> Checked:
    """Measures the robot, and writes the page.

    Raises:
        ValueError: there is no such robot, or nothing says what it is to be compared with.
    """
    chosen = config.robot or robots.SimulatedConfig()
    make_world = _world_of(config)
    data = flowhand.open_dataset(config.data) if config.data else None
    with closing(make_world()) if make_world else nullcontext() as world:
        wanted = _spec(config, world, data)
        own = world.features if world else _own(chosen)
        spec = wanted or own
        if spec is None:
            raise ValueError(f"robot={chosen.kind} does not say what it reads and takes; give checkpoint= or data=")
        if config.rate_hz:
            spec = replace(spec, control_dt_s=1 / config.rate_hz)
        try:
            with (
                robots.ready(chosen, spec, spec.seconds(), world, stop_at_success=False)
                if world
                else robots.ready(chosen, spec, spec.seconds()) as robot
            ):
                if begin := getattr(robot, "reset", None):
                    begin(0)
                limits = getattr(robot, "limits", lambda: None)()
                watched: Any = Read(robot)
                trace = Probe(watched, spec, config.check, config.safety).run()
        except ValueError as error:  # what is said before anything moves: names, units, calibration
            checked, trace = Checked(faults=[Fault("match", "", str(error))]), None
        else:
            checked = judged(trace, spec, config.check, limits, _reference(data, spec))
    _write(config, chosen.kind, spec, checked, trace)
    return checked


def _world_of(config: CheckRoot) -> Callable[[], World] | None:
    if config.robot is not None and config.robot.kind != "simulated":
        return None
    if config.env is None:
        raise ValueError("which robot? Give robot=NAME, or env=NAME for a world in its place")
    import envs

    # An episode must not end before the check does.
    lasting = {"max_steps": LASTING} if hasattr(config.env, "max_steps") else {}
    return partial(envs.make, replace(config.env, **lasting))


def _spec(config: CheckRoot, world: World | None, data: Any) -> Spec | None:
    """What the robot is compared with: the policy's, or that of the demonstrations; None: nothing is given."""
    if config.checkpoint:
        from ..control import planner_of

        return planner_of(config.checkpoint, "cpu", {}).spec
    return learnable(data.spec) if data is not None else None


def _own(chosen: robots.RobotConfig) -> Spec | None:
    """What the robot says of itself; it is not connected for that."""
    return robots.features_of(robots.make(chosen))


def _reference(data: Any, spec: Spec) -> dict[str, np.ndarray] | None:
    """Small pictures of every camera, from the first steps of some demonstrations."""
    cameras = list(image_features(spec))
    if data is None or not cameras:
        return None
    episodes = range(min(MOST_EPISODES, len(data.lengths)))
    found: dict[str, list[np.ndarray]] = {name: [] for name in cameras}
    for episode in episodes:
        observation = data.read(episode, 0, 1).observation
        for name in cameras:
            found[name].append(thumb(np.asarray(observation[name])[0]))
    return {name: np.mean(thumbs, axis=0) for name, thumbs in found.items()}


def _write(config: CheckRoot, kind: str, spec: Spec, checked: Checked, trace: Trace | None) -> None:
    path = Path(config.page or f"outputs/check/{time.strftime('%Y-%m-%d_%H-%M-%S')}.html")
    count = len(checked.faults)
    summary = f"{count} faults" if count else "No fault was found"
    if trace is not None:
        summary += f" in {len(trace.phase)} readings at {1 / spec.seconds():.4g} Hz; nothing of a policy ran."
    tables = {
        "Sensors": (
            ("what", "new values per second"),
            [(name, f"{rate:.3g}") for name, rate in checked.rates.items()],
        ),
        "Times": (
            ("what", "median (ms)", "99 % (ms)", "largest (ms)"),
            [(name, *(f"{value:.2f}" for value in values)) for name, values in checked.times_ms.items()],
        ),
        "Dimensions": (
            ("dimension", "commanded", "done there", "done back", "ratio", "delay (s)"),
            [
                (d.name, f"{d.way:+.3g}", f"{d.out:.2f}", f"{d.back:.2f}", f"{d.gain:.3f}", f"{d.delay_s:.3f}")
                for d in checked.dimensions
            ],
        ),
    }
    faults = [(fault.kind, fault.where, fault.text) for fault in checked.faults]
    for fault in checked.faults:
        print(f"{fault.kind}: {f'{fault.where}: ' if fault.where else ''}{fault.text}")
    try:
        from flowhand.pages.check import write_check_page
    except ImportError as error:  # a robot's computer may be without what draws
        where = f"no page, which needs matplotlib ({error})"
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        curves = _curves(trace, spec) if trace is not None else {}
        write_check_page(path, f"robot={kind}", summary, faults, checked.notes, tables, curves)
        where = f"page: {path}"
    print(f"{summary.split(';')[0].rstrip('.')}; {where}")


def _curves(trace: Trace, spec: Spec) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What each dimension was told while it was moved, and where it was."""
    phase, seconds = np.array(trace.phase), np.array(trace.read_s)
    found = {}
    for place in sorted(set(trace.phase) - {STILL}):
        window = phase == place
        command, state = np.array(trace.wanted)[window, place], np.array(trace.standing)[window, place]
        found[dimension_name(spec.action, place)] = (seconds[window] - seconds[0], command, state)
    return found


def run(cfg: DictConfig) -> int | None:
    """Checks as the configuration says; ends with exit status 1 where something is wrong."""
    config: CheckRoot = cli.typed(cfg)
    if check(config).faults:
        sys.exit(1)
    return None


def main() -> None:
    """Entry point."""
    cli.program("check", run)
