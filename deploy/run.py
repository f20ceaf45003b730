"""Controls a simulated robot in real time: `python -m deploy.run checkpoint=outputs/demo/checkpoint seconds=60`."""

from __future__ import annotations

import hashlib
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import envs
import policies
from policies.checkpoint import FILES, MOST_TENSOR_BYTES
from policies.config import build
from policies.controller import Planner
from policies.device import cpu_threads, select_device
from policies.execution import ExecutionConfig
from policies.folder import opened
from policies.monitor import load_monitor

from .artifact import MANIFEST, Exported
from .background import Logger, divert_logging
from .deciding import Decider
from .exported import require_own_sampler
from .journal import read
from .monitor import Monitor
from .pace import on_signals
from .replay import Replayed, open_journal, replay
from .runtime import Runtime
from .safety import Safety, SafetyConfig
from .simulated import SimulatedRobot
from .workspace import Box

logger = Logger(__name__)

CHECKPOINT_FILES = FILES[:2]  # on which actions depend


RECORDED = {  # of a journal's header, what a replay needs
    **dict.fromkeys(("checkpoint", "artifact", "digest", "device"), str),
    **dict.fromkeys(("execution", "safety", "workspace", "head"), dict),
    "noise_seed": int,
    "asynchronous": bool,
    "control_dt_s": float,
}


def control(config: Any) -> tuple[str, str]:
    """Runs episodes until the time is over, as the configuration (`conf.schema.DeployRoot`) says.

    Returns:
        The closing line, and why the last episode ended.
    """
    own, monitor = _planner(config.checkpoint, config.artifact, config.device, config.head.changes), None
    planner: Planner = own
    if config.monitor:
        planner, monitor = _watched(own, config)
    spec, source = planner.spec, policies.read_config(config.checkpoint)[2]
    dt = 1 / config.rate_hz if config.rate_hz else spec.control_dt_s
    path = Path(config.journal or f"outputs/deploy/{time.strftime('%Y-%m-%d_%H-%M-%S')}.journal")
    with closing(envs.make(config.env or env_of(source.env))) as env, cpu_threads(1):
        _require_fit(spec, env)
        decider = Decider(planner, config.execution, config.noise_seed, config.asynchronous)
        config.safety = _resting(config.safety, env)
        safety = _safety(spec, config.safety, config.workspace, dt)
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
    speed = "" if dt == spec.control_dt_s else f" ({spec.control_dt_s / dt:.3g} times the checkpoint's rate)"
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


def _require_fit(spec: policies.Spec, env: envs.Env) -> None:
    """Raises `ValueError` unless the world has the observation and the action that the policy was trained with."""
    world = policies.Spec.from_dict(env.features)

    def form(of: policies.Spec) -> tuple[Any, ...]:
        return {name: (feature.shape, feature.dtype) for name, feature in of.observation.items()}, of.action.shape

    if form(world) != form(spec):
        raise ValueError(f"{env.task} has observation and action {form(world)}, the policy expects {form(spec)}")


def again(path: str | Path, checkpoint: str | Path = "", artifact: str | Path = "") -> Replayed:
    """Replays a journal of `python -m deploy.run`.

    Args:
        path: of the journal.
        checkpoint: where the checkpoint is now; empty: where it was then.
        artifact: where the exported policy is now, if one decided; empty: where it was then.

    Raises:
        ValueError: another policy than then, or a decision that differs.
    """
    recording = read(path)
    about = recording.header
    if missing := sorted({field for field, kind in RECORDED.items() if not isinstance(about.get(field), kind)}):
        raise ValueError(
            f"{path} does not say {', '.join(missing)}, so it is no journal of `python -m deploy.run`; "
            "deploy.replay.replay takes any journal, with its policy and safety"
        )
    checkpoint, artifact = checkpoint or about["checkpoint"], artifact or about["artifact"]
    if digest(checkpoint, artifact) != about["digest"]:
        name, place = ("artifact", artifact) if artifact else ("checkpoint", checkpoint)
        raise ValueError(f"{place} is not the {name} that {path} was recorded with; give {name}=...")
    planner = _planner(checkpoint, artifact, about["device"], about["head"])
    execution = build(ExecutionConfig, about["execution"], "execution")
    try:
        limits, box = SafetyConfig(**about["safety"]), Box(**about["workspace"])
    except (TypeError, OverflowError) as error:  # of another version, or no number
        raise ValueError(f"{path}: {error}") from error
    safety = _safety(planner.spec, limits, box, about["control_dt_s"])
    decider = Decider(planner, execution, about["noise_seed"], about["asynchronous"], replaying=True)
    with closing(decider), cpu_threads(1):
        return replay(recording, decider, safety)


def digest(checkpoint: str | Path, artifact: str | Path = "") -> str:
    """SHA-256 of what the actions depend on; an export's manifest has the hashes of its other files."""
    content, names = hashlib.sha256(), (MANIFEST,) if artifact else CHECKPOINT_FILES
    with opened(artifact or checkpoint, names) as files:
        for name in names:
            content.update(files.read(name, MOST_TENSOR_BYTES))
    return content.hexdigest()


def _planner(
    checkpoint: str | Path, artifact: str | Path, device: str, head: Mapping[str, Any]
) -> policies.Policy | Exported:
    """What decides: the exported policy if one is given, or the checkpoint, sampling with these fields of its head."""
    if artifact:
        from .runner import load  # onnxruntime is an extra

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
            raise ValueError(f"{config.artifact} has no monitor; python -m deploy.export monitor=true exports one")
    monitor = Monitor(calibrated, planner, config.execution)
    return monitor.policy, monitor


def _safety(spec: policies.Spec, config: SafetyConfig, box: Box, control_dt_s: float) -> Safety:
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


def main() -> None:
    """Controls or replays as the Hydra config says, and prints one line about it."""
    import hydra
    from omegaconf import DictConfig

    from conf import cli, schema

    schema.register()

    @hydra.main(version_base="1.3", config_path="../conf", config_name="deploy")
    def run(cfg: DictConfig) -> None:
        with cli.one_line_errors():
            config: Any = cli.typed(cfg)
            divert_logging()  # no line, of whichever library, may hold up the control
            if config.replay:
                done = again(config.replay, config.checkpoint, config.artifact)
                line, ended = f"{config.replay}: {done.line()}", ""
            elif config.checkpoint:
                line, ended = control(config)
            else:
                raise ValueError("give checkpoint=PATH to control a robot, or replay=JOURNAL to check what was decided")
            print(line)  # noqa: T201
            if ended in ("SIGINT", "SIGTERM"):
                sys.exit(128 + signal.Signals[ended])  # as a shell tells that a signal ended a program

    cli.run(run)


if __name__ == "__main__":
    main()
