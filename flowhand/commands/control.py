"""Controls a robot in real time, or a simulated one: `flowhand control checkpoint=outputs/demo seconds=60`."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

import flowhand
from conf import cli
from conf.verbs.control import ControlRoot
from conf.verbs.record import RecordRoot
from flowhand import robots
from flowhand.contracts.data.tasks import SOURCE, TASK, given
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
    planner: Planner = own
    spec = own.spec
    dt = 1 / config.rate_hz if config.rate_hz else pace_s(spec)
    if spec.control_dt_s is None:
        _wait_for_events(config, dt)
    path = Path(config.journal or f"outputs/deploy/{time.strftime('%Y-%m-%d_%H-%M-%S')}.journal")
    fresh = partial(planner_of, config.checkpoint, config.device, config.head.changes)  # the fan's own
    make_env = _world_of(config, own)
    port = config.view_port if config.view else None
    with (
        closing(make_env()) if make_env else nullcontext() as env,
        one_thread(own),
        viewing(port, fresh, spec, make_env, control_dt_s=dt) as view,
    ):
        if config.monitor:
            planner, monitor = watched(own, config, view.observers)
        inference_thread = InferenceThread(
            planner, config.execution, config.noise_seed, config.asynchronous, observers=view.observers
        )
        told(inference_thread, spec, config, env)
        if env:
            if config.robot is None:  # then nothing is converted, and the world has just what the policy knows
                require_drives(spec, env.features, env.task)
            config.safety = resting(config.safety, env)
        safety = safety_of(spec, config.safety, config.workspace, dt)
        chosen = config.robot or robots.SimulatedConfig()
        simulated = {"stop_at_success": config.stop_at_success, "picture_every": view.picture_every} if env else {}
        with closing(inference_thread), robots.ready(chosen, spec, dt, env, **simulated) as robot:
            journal = open_journal(path, spec, _about(config, dt))
            runtime = Runtime(
                robot, inference_thread, safety, spec.sensed, dt, config.runtime, monitor, journal, view.observers
            )
            view.stop = runtime.stop
            with closing(runtime), on_signals(runtime.stop):
                ended = _episodes(runtime, robot, config, dt)
    speed = "" if dt == pace_s(spec) else f" ({pace_s(spec) / dt:.3g} times the checkpoint's rate)"
    name = env.task if env else chosen.kind
    return f"{name}: {runtime.report.line()}{speed}; {_outcome(robot)}; journal: {path}", ended


def _world_of(config: ControlRoot, own: LoadedPlanner) -> Callable[[], World] | None:
    """What builds the simulated robot's world; None where a robot is controlled."""
    if config.robot is not None and config.robot.kind != "simulated":
        if config.env is not None:
            raise ValueError(f"robot={config.robot.kind} acts in no world; leave out env, or say robot=simulated")
        return None
    import envs  # after the policy: only a simulated robot needs a world

    return partial(envs.make, config.env or envs.env_of(own.provenance))


def _episodes(runtime: Runtime, robot: Any, config: ControlRoot, dt: float) -> str:
    """Episodes until the time is over; why the last one ended. A robot that no `reset` starts has one."""
    ended, seed, begin = "over", config.seed, getattr(robot, "reset", None)
    while ended == "over" and (left_s := config.seconds - runtime.report.steps * dt) > 0:
        if begin:
            begin(seed)
        ended = runtime.run(left_s, seed)
        while ended == "alarm" and config.runtime.on_alarm == "ask" and _told_to_go_on(runtime):
            left_s = max(0.0, config.seconds - runtime.report.steps * dt)
            ended = runtime.run(left_s, seed)  # in the same episode, watched anew
        seed += 1
        if not begin:
            break
    return ended


def _outcome(robot: Any) -> str:
    """What came of it: episodes solved in a world, commands that a robot could not take."""
    if (outcomes := getattr(robot, "outcomes", None)) is not None:
        return f"{sum(o.success for o in outcomes)} of {len(outcomes)} episodes solved"
    return f"{getattr(robot, 'blocked', 0)} commands not sent while the robot was being read"


def told(inference_thread: InferenceThread, spec: Spec, config: ControlRoot, env: World | None) -> None:
    """Has the policy told its task and its source, where it takes them.

    Raises:
        ValueError: it needs them and they are not known, or it does not take them.
    """
    task, source = config.task or None, config.source or None
    sources = spec.observation[SOURCE].names or () if SOURCE in spec.observation else ()
    if task is None and env and (TASK in spec.observation or env.task_text in sources):
        task = env.task_text
    given(spec.observation, task, source)  # which refuses it before the robot moves
    inference_thread.task, inference_thread.source = task, source
    config.task, config.source = task or "", source or ""  # as the journal has them


def _wait_for_events(config: ControlRoot, control_dt_s: float) -> None:
    """Has every decision wait for the world's answer to the last action, and no action left out where one took long."""
    config.asynchronous = False
    runtime = config.runtime
    on_overrun = "catch_up" if runtime.on_overrun == "skip" else runtime.on_overrun
    config.runtime = replace(runtime, on_overrun=on_overrun, patience_s=max(runtime.patience_s, 1.5 * control_dt_s))


def _told_to_go_on(runtime: Runtime) -> bool:
    """Asks at the terminal whether to go on after an alarm; where nobody is there, no."""
    if not sys.stdin.isatty():
        return False
    print(f"{'; '.join(runtime.report.alarms)}. Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def resting(config: SafetyConfig, env: World) -> SafetyConfig:
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


def watched(planner: Any, config: ControlRoot | RecordRoot, observers: Sequence[Observer]) -> tuple[Planner, Monitor]:
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
    parts["told"] = {name: getattr(config, name) for name in ("task", "source")}
    plain = {name: getattr(config, name) for name in ("noise_seed", "asynchronous", "seed", "seconds", "device")}
    where, kind = (
        Path(config.checkpoint).resolve(),
        "artifact" if artifact.is_export(config.checkpoint) else "checkpoint",
    )
    place = {"artifact": "", "checkpoint": "", kind: str(where), "digest": digest(where)}
    return {
        **place,
        **plain,
        **parts,
        "control_dt_s": control_dt_s,
        "env": asdict(config.env) if config.env else None,
        "robot": asdict(config.robot) if config.robot else None,
    }


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
