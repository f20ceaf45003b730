"""Controls a simulated robot in real time: `flowhand control checkpoint=outputs/demo/checkpoint seconds=60`."""

from __future__ import annotations

import hashlib
import signal
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

import envs
import policies
from conf import cli, schema
from flowhand.contracts.artifact import MANIFEST
from flowhand.contracts.durable import opened
from flowhand.contracts.exported_policy import Exported, require_own_sampler
from flowhand.contracts.features import Spec
from flowhand.contracts.planner import Planner
from flowhand.contracts.strict import build
from flowhand.control.alarm import Monitor
from flowhand.control.background import Logger, divert_logging
from flowhand.control.inference_thread import Decider
from flowhand.control.replay import open_journal
from flowhand.control.runtime import Runtime
from flowhand.control.safety import Safety, SafetyConfig
from flowhand.control.timing import on_signals
from flowhand.control.workspace import Box
from flowhand.robots.simulated import SimulatedRobot
from policies.checkpoint import FILES, MOST_TENSOR_BYTES
from policies.device import cpu_threads, select_device
from policies.monitor.calibrated import load_monitor

logger = Logger(__name__)

CHECKPOINT_FILES = FILES[:2]  # on which actions depend


def control(config: Any) -> tuple[str, str]:
    """Runs episodes until the time is over, as the configuration (`conf.schema.ControlRoot`) says.

    Returns:
        The closing line, and why the last episode ended.
    """
    own, monitor = planner_of(config.checkpoint, config.artifact, config.device, config.head.changes), None
    planner: Planner = own
    if config.monitor:
        planner, monitor = _watched(own, config)
    spec, source = planner.spec, policies.read_config(config.checkpoint)[2]
    dt = 1 / config.rate_hz if config.rate_hz else spec.seconds()
    path = Path(config.journal or f"outputs/deploy/{time.strftime('%Y-%m-%d_%H-%M-%S')}.journal")
    with closing(envs.make(config.env or env_of(source.env))) as env, cpu_threads(1):
        _require_fit(spec, env)
        decider = Decider(planner, config.execution, config.noise_seed, config.asynchronous)
        config.safety = _resting(config.safety, env)
        safety = safety_of(spec, config.safety, config.workspace, dt)
        journal = open_journal(path, spec, _about(config, dt))
        robot = SimulatedRobot(env, config.stop_at_success)
        runtime = Runtime(robot, decider, safety, spec.observation, dt, config.runtime, monitor, journal)
        with closing(decider), closing(runtime), on_signals(runtime.stop):
            ended, seed = "over", config.seed
            while ended == "over" and (left_s := config.seconds - runtime.report.steps * dt) > 0:
                robot.reset(seed)
                ended = runtime.run(left_s, seed)
                seed += 1
    solved = f"{sum(o.success for o in robot.outcomes)} of {len(robot.outcomes)} episodes solved"
    speed = "" if dt == spec.control_dt_s else f" ({spec.seconds() / dt:.3g} times the checkpoint's rate)"
    return f"{env.task}: {runtime.report.line()}{speed}; {solved}; journal: {path}", ended


def _resting(config: SafetyConfig, env: envs.Env) -> SafetyConfig:
    """The limits, with what this world knows of standing still where they do not say it."""
    if config.safe_action != "hold" or config.rest is not None:
        return config
    if env.rest is None:
        logger.warning("%s does not say how its robot stands still: hold repeats the last command", env.task)
        return config
    return replace(config, rest=list(env.rest))


def env_of(stored: dict[str, Any]) -> envs.EnvConfig:
    """The world that a checkpoint was trained in; `ValueError` if there is none, or none that may be built from it."""
    kind = stored.get("kind")
    if kind not in envs.ENVS or ":" in str(stored.get("id", "")):
        raise ValueError(f"the checkpoint was trained in {kind!r}; give env=... (choices: {', '.join(envs.ENVS)})")
    return build(envs.ENVS[kind][0], stored, "provenance.env")


def _require_fit(spec: Spec, env: envs.Env) -> None:
    """Raises `ValueError` unless the world has the observation and the action that the policy was trained with."""
    world = env.features

    def form(of: Spec) -> tuple[Any, ...]:
        return {name: (feature.shape, feature.dtype) for name, feature in of.observation.items()}, of.action.shape

    if form(world) != form(spec):
        raise ValueError(f"{env.task} has observation and action {form(world)}, the policy expects {form(spec)}")


def digest(checkpoint: str | Path, artifact: str | Path = "") -> str:
    """SHA-256 of what the actions depend on; an export's manifest has the hashes of its other files."""
    content, names = hashlib.sha256(), (MANIFEST,) if artifact else CHECKPOINT_FILES
    with opened(artifact or checkpoint, names) as files:
        for name in names:
            content.update(files.read(name, MOST_TENSOR_BYTES))
    return content.hexdigest()


def planner_of(
    checkpoint: str | Path, artifact: str | Path, device: str, head: Mapping[str, Any]
) -> policies.Policy | Exported:
    """What decides: the exported policy if one is given, or the checkpoint, sampling with these fields of its head."""
    if artifact:
        from flowhand.deploy.runner import load

        require_own_sampler(artifact, head)
        return load(artifact)
    policy = policies.load(checkpoint, select_device(device, 1))
    return policy.with_head(**head) if head else policy


def _watched(planner: policies.Policy | Exported, config: Any) -> tuple[Planner, Monitor]:
    """The policy as it decides under the monitor that was calibrated for it, and the monitor."""
    if isinstance(planner, policies.Policy):
        if config.head.changes:
            raise ValueError("monitor=true was calibrated for the checkpoint's own sampler; leave head.* as it is")
        calibrated = load_monitor(config.checkpoint, planner)
    else:
        calibrated = planner.manifest.monitor
        if calibrated is None:
            raise ValueError(f"{config.artifact} has no monitor; flowhand export monitor=true exports one")
    monitor = Monitor(calibrated, planner, config.execution)
    return monitor.policy, monitor


def safety_of(spec: Spec, config: SafetyConfig, box: Box, control_dt_s: float) -> Safety:
    """The limits and the workspace of a configuration, for this specification."""
    return Safety.for_spec(spec, config, control_dt_s, workspace=box if box.dimensions else None)


def _about(config: Any, control_dt_s: float) -> dict[str, Any]:
    """What a journal's header says about a run."""
    parts = {name: asdict(getattr(config, name)) for name in ("execution", "safety", "workspace", "runtime")}
    parts["head"] = config.head.changes
    plain = {name: getattr(config, name) for name in ("noise_seed", "asynchronous", "seed", "seconds", "device")}
    place = {
        name: str(Path(getattr(config, name)).resolve()) for name in ("checkpoint", "artifact") if getattr(config, name)
    }
    place = {"artifact": "", **place, "digest": digest(config.checkpoint, config.artifact)}
    return {**place, **plain, **parts, "control_dt_s": control_dt_s, "env": asdict(config.env) if config.env else None}


def run(cfg: DictConfig) -> int:
    """Controls a robot as the configuration says; returns the number of the signal that ended it, or 0."""
    config: schema.ControlRoot = cli.typed(cfg)
    divert_logging()  # no line, of whichever library, may hold up the control
    line, ended = control(config)
    print(line)
    return signal.Signals[ended] if ended in ("SIGINT", "SIGTERM") else 0


def main() -> None:
    """Entry point."""
    cli.program("control", run)
