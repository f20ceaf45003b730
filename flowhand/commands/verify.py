"""Checks a journal, decision by decision: `flowhand verify journal=outputs/deploy/2026-01-01_12-00-00.journal`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from omegaconf import DictConfig

from conf import cli
from conf.verbs.verify import VerifyRoot
from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.strict import build
from flowhand.control.inference_thread import InferenceThread
from flowhand.control.journal import read
from flowhand.control.limits.config import SafetyConfig
from flowhand.control.limits.workspace import Box
from flowhand.control.replay import Replayed, replay

from .control import digest, one_thread, planner_of, safety_of

RECORDED = {  # of a journal's header, what a replay needs
    **dict.fromkeys(("checkpoint", "artifact", "digest", "device"), str),
    **dict.fromkeys(("execution", "safety", "workspace", "head"), dict),
    "noise_seed": int,
    "asynchronous": bool,
    "control_dt_s": float,
}


def verify(path: str | Path, where: str | Path = "") -> Replayed:
    """Decides again what a journal of `flowhand control` says was decided.

    Args:
        path: of the journal.
        where: the checkpoint or the exported policy that decided, as it lies now; empty: where it was then.

    Raises:
        ValueError: another policy than then, or a decision that differs.
    """
    recording = read(path)
    about = recording.header
    if missing := sorted({field for field, kind in RECORDED.items() if not isinstance(about.get(field), kind)}):
        raise ValueError(
            f"{path} does not say {', '.join(missing)}, so it is no journal of `flowhand control`; "
            "flowhand.control.replay.replay takes any journal, with its policy and safety"
        )
    where = where or about["artifact"] or about["checkpoint"]
    if digest(where) != about["digest"]:
        raise ValueError(f"{where} is not the policy that {path} was recorded with; give checkpoint=...")
    planner = planner_of(where, about["device"], about["head"])
    execution = build(ExecutionConfig, about["execution"], "execution")
    try:
        limits, box = SafetyConfig(**about["safety"]), Box(**about["workspace"])
    except (TypeError, OverflowError) as error:  # of another version, or no number
        raise ValueError(f"{path}: {error}") from error
    safety = safety_of(planner.spec, limits, box, about["control_dt_s"])
    inference_thread = InferenceThread(planner, execution, about["noise_seed"], about["asynchronous"], replaying=True)
    told = {name: text for name, text in dict(about.get("told") or {}).items() if text}
    inference_thread.task, inference_thread.source = told.get("task"), told.get("source")
    with closing(inference_thread), one_thread(planner):
        return replay(recording, inference_thread, safety)


def run(cfg: DictConfig) -> None:
    """Verifies as the configuration says and prints one line about it."""
    cli.require_given(cfg, "journal")
    config: VerifyRoot = cli.typed(cfg)
    print(f"{config.journal}: {verify(config.journal, config.checkpoint).line()}")


def main() -> None:
    """Entry point."""
    cli.program("verify", run)
