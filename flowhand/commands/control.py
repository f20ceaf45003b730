"""Controls a simulated robot in real time: `flowhand control checkpoint=outputs/demo/checkpoint seconds=60`."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

import flowhand
from conf import cli
from conf.verbs.control import ControlRoot
from flowhand.contracts.durable import opened
from flowhand.contracts.execution import pace_s
from flowhand.contracts.export import artifact, exported_policy
from flowhand.contracts.features import Spec
from flowhand.contracts.observers import Observer
from flowhand.contracts.planner import LoadedPlanner, Planner, require_drives
from flowhand.contracts.world import World
from flowhand.control.alarm import Monitor
from flowhand.control.background import Logger, divert_logging
from flowhand.control.inference_thread import InferenceThread
from flowhand.control.limits.config import SafetyConfig
from flowhand.control.limits.workspace import Box
from flowhand.control.replay import open_journal
from flowhand.control.runtime import Runtime
from flowhand.control.safety import Safety
from flowhand.control.timing import on_signals
from flowhand.robots.simulated import SimulatedRobot

from .viewing import viewing

logger = Logger(__name__)

DECISIVE = ("config.json", "model.safetensors")  # files of a checkpoint on which actions depend
MOST_BYTES = 2**33  # of one of them


def control(config: ControlRoot) -> tuple[str, str]:
    """Runs episodes until the time is over, as the configuration says.

    Returns:
        The closing line, and why the last episode ended.
    """
    own, monitor = planner_of(config.checkpoint, config.device, config.head.changes), None
    import envs  # after the policy: only a simulated robot needs a world

    planner: Planner = own
    spec = own.spec
    dt = 1 / config.rate_hz if config.rate_hz else pace_s(spec)
    if spec.control_dt_s is None:
        _wait_for_events(config, dt)
    path = Path(config.journal or f"outputs/deploy/{time.strftime('%Y-%m-%d_%H-%M-%S')}.journal")
    fresh = partial(planner_of, config.checkpoint, config.device, config.head.changes)  # the fan's own
    make_env = partial(envs.make, config.env or envs.env_of(own.provenance))
    port = config.view_port if config.view else None
    with (
        closing(make_env()) as env,
        one_thread(own),
        viewing(port, fresh, spec, make_env, control_dt_s=dt) as view,
    ):
        if config.monitor:
            planner, monitor = _watched(own, config, view.observers)
        require_drives(spec, env.features, env.task)
        inference_thread = InferenceThread(
            planner, config.execution, config.noise_seed, config.asynchronous, observers=view.observers
        )
        config.safety = _resting(config.safety, env)
        safety = safety_of(spec, config.safety, config.workspace, dt)
        journal = open_journal(path, spec, _about(config, dt))
        robot = SimulatedRobot(env, config.stop_at_success, view.picture_every)
        runtime = Runtime(
            robot, inference_thread, safety, spec.sensed, dt, config.runtime, monitor, journal, view.observers
        )
        view.stop = runtime.stop
        with closing(inference_thread), closing(runtime), on_signals(runtime.stop):
            ended, seed = "over", config.seed
            while ended == "over" and (left_s := config.seconds - runtime.report.steps * dt) > 0:
                robot.reset(seed)
                ended = runtime.run(left_s, seed)
                while ended == "alarm" and config.runtime.on_alarm == "ask" and _told_to_go_on(env.task, runtime):
                    left_s = max(0.0, config.seconds - runtime.report.steps * dt)
                    ended = runtime.run(left_s, seed)  # in the same episode, watched anew
                seed += 1
    solved = f"{sum(o.success for o in robot.outcomes)} of {len(robot.outcomes)} episodes solved"
    speed = "" if dt == pace_s(spec) else f" ({pace_s(spec) / dt:.3g} times the checkpoint's rate)"
    return f"{env.task}: {runtime.report.line()}{speed}; {solved}; journal: {path}", ended


def _wait_for_events(config: ControlRoot, control_dt_s: float) -> None:
    """Has every decision wait for the world's answer to the last action, and no action left out where one took long."""
    config.asynchronous = False
    runtime = config.runtime
    on_overrun = "catch_up" if runtime.on_overrun == "skip" else runtime.on_overrun
    config.runtime = replace(runtime, on_overrun=on_overrun, patience_s=max(runtime.patience_s, 1.5 * control_dt_s))


def _told_to_go_on(task: str, runtime: Runtime) -> bool:
    """Asks at the terminal whether to go on after an alarm; where nobody is there, no."""
    if not sys.stdin.isatty():
        return False
    print(f"{task}: {'; '.join(runtime.report.alarms)}. Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _resting(config: SafetyConfig, env: World) -> SafetyConfig:
    """The limits, with what this world knows of standing still where they do not say it."""
    if config.safe_action != "hold" or config.rest is not None:
        return config
    if env.rest is None:
        logger.warning("%s does not say how its robot stands still: hold repeats the last command", env.task)
        return config
    return replace(config, rest=list(env.rest))


def digest(where: str | Path) -> str:
    """SHA-256 of what the actions depend on; an export's manifest has the hashes of its other files."""
    names = (artifact.MANIFEST,) if artifact.is_export(where) else DECISIVE
    with opened(where, names) as files:
        return files.digest(names, MOST_BYTES)


def planner_of(where: str | Path, device: str, head: Mapping[str, Any]) -> LoadedPlanner:
    """What decides: the exported policy or the checkpoint that lies there, sampling with these fields of its head."""
    if artifact.is_export(where):
        exported_policy.require_own_sampler(where, head)
        return flowhand.load(where)
    if not Path(where).exists():
        raise ValueError(f"there is no policy at {where}; give the folder of a checkpoint or of an export")
    import policies
    from policies.device import select_device

    policy = policies.load(where, select_device(device, 1))
    return policy.with_head(**head) if head else policy


def one_thread(planner: LoadedPlanner) -> AbstractContextManager[None]:
    """Has torch, where it decides, compute with one thread inside the block."""
    if planner.identity is not None:  # an export computes with the threads that it was loaded with
        return nullcontext()
    from policies.device import cpu_threads

    return cpu_threads(1)


def _watched(planner: Any, config: ControlRoot, observers: Sequence[Observer]) -> tuple[Planner, Monitor]:
    """The policy as it decides under the monitor that was calibrated for it, and the monitor."""
    if planner.identity is not None:
        calibrated: Any = planner.manifest.monitor
        if calibrated is None:
            raise ValueError(f"{config.checkpoint} has no monitor; flowhand export monitor=true exports one")
    else:
        if config.head.changes:
            raise ValueError("monitor=true was calibrated for the checkpoint's own sampler; leave head.* as it is")
        from policies.monitor.calibrated import load_monitor

        calibrated = load_monitor(config.checkpoint, planner)
    monitor = Monitor(calibrated, planner, config.execution, observers)
    return monitor.policy, monitor


def safety_of(spec: Spec, config: SafetyConfig, box: Box, control_dt_s: float) -> Safety:
    """The limits and the workspace of a configuration, for this specification."""
    return Safety.for_spec(spec, config, control_dt_s, workspace=box if box.dimensions else None)


def _about(config: ControlRoot, control_dt_s: float) -> dict[str, Any]:
    """What a journal's header says about a run."""
    parts = {name: asdict(getattr(config, name)) for name in ("execution", "safety", "workspace", "runtime")}
    parts["head"] = config.head.changes
    plain = {name: getattr(config, name) for name in ("noise_seed", "asynchronous", "seed", "seconds", "device")}
    where, kind = (
        Path(config.checkpoint).resolve(),
        "artifact" if artifact.is_export(config.checkpoint) else "checkpoint",
    )
    place = {"artifact": "", "checkpoint": "", kind: str(where), "digest": digest(where)}
    return {**place, **plain, **parts, "control_dt_s": control_dt_s, "env": asdict(config.env) if config.env else None}


def run(cfg: DictConfig) -> int:
    """Controls a robot as the configuration says; returns the number of the signal that ended it, or 0."""
    cli.require_given(cfg, "checkpoint")
    config: ControlRoot = cli.typed(cfg)
    divert_logging()  # no line, of whichever library, may hold up the control
    line, ended = control(config)
    print(line)
    return signal.Signals[ended] if ended in ("SIGINT", "SIGTERM") else 0


def main() -> None:
    """Entry point."""
    cli.program("control", run)
