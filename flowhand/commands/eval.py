"""Checkpoint -> success rate with interval, per-episode records, videos, report. `python eval.py --help` lists all."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from omegaconf import DictConfig

import envs
import flowhand
import policies
from conf import cli, sweep
from conf.verbs.eval import EvalRoot, EvaluationConfig
from flowhand.contracts.durable import claimed, write_whole
from flowhand.contracts.execution import ExecutionConfig, pace_s
from flowhand.contracts.export.artifact import is_export
from flowhand.contracts.export.exported_policy import require_own_sampler
from flowhand.contracts.features import dimension_name
from flowhand.contracts.planner import FORMS, LoadedPlanner
from flowhand.contracts.provenance import versions
from flowhand.demos.config import DataConfig
from flowhand.evaluation.records import EpisodeRecord, lines
from flowhand.evaluation.rollout import rollout
from flowhand.evaluation.statistics import summarize
from flowhand.evaluation.unfinished import discard_unfinished, fingerprint, unfinished
from flowhand.pages.evaluation import ChunkComparison, Clip, ReportData, closing_line, write_report
from flowhand.pages.video import Film, encode_mp4
from policies.device import cpu_threads, hardware, select_device
from policies.training.train_state import require_history

from . import held_out
from .collect import attempt
from .lerobot.planner import is_lerobot, open_lerobot
from .runs import log_results, wandb_run
from .tasks.episodes import agent_of, evaluate, evaluate_expert, seeds_of, world_of
from .tasks.judge import Judged, gathered, write_joint
from .tasks.plans import compare_plans
from .tasks.told import Words, words_for
from .viewing import viewing

T = TypeVar("T")
CHUNKS_SHOWN = 16  # sampled per state in the report
FRAME_EVERY = 4  # control steps per video frame


def compare_chunks(
    policy: LoadedPlanner, env_config: envs.EnvConfig, seeds: Sequence[int], words: Words
) -> list[ChunkComparison]:
    """Chunks that the policy samples along the expert's own path on held-out seeds, beside what the expert did."""
    chunk, comparisons = policy.chunk, []
    with closing(envs.make(env_config)) as env, cpu_threads(1):
        names = [dimension_name(policy.spec.action, i) for i in range(policy.spec.action.size)]
        for seed in seeds:
            episode = attempt(env, DataConfig(noise=0.0, after_success=chunk.prediction_horizon), seed)
            if episode is None:  # the expert failed on this seed, so there is nothing to compare with
                continue
            windows = policies.Windows([episode], policy.spec.recorded, chunk.history, chunk.prediction_horizon)
            for step in (0, len(episode) // 3, 2 * len(episode) // 3):
                batch = windows.gather(torch.full((CHUNKS_SHOWN,), step))
                noise = torch.randn((CHUNKS_SHOWN, *policy.noise_shape), generator=torch.Generator().manual_seed(seed))
                seen = {name: v.numpy() for name, v in batch.observation.items()}
                for name, value in words.given(policy.spec, seed).items():
                    seen[name] = np.tile(value, (CHUNKS_SHOWN, chunk.history, 1))
                sampled = policy.plan(seen, noise.numpy())
                expert = batch.action[0].numpy()
                comparisons.append(ChunkComparison(seed, step, sampled, expert, pace_s(policy.spec), names))
    return comparisons


def film(
    policy: LoadedPlanner,
    env: envs.EnvConfig,
    config: EvaluationConfig,
    execution: ExecutionConfig,
    records: Sequence[EpisodeRecord],
) -> tuple[list[Clip], str]:
    """Videos of a few episodes of every outcome, and a note where there are none.

    The episodes are run again: they come out the same, since an outcome depends on the seed alone.
    """
    chosen: dict[int, str] = {}
    for record in records:
        outcome = record.failure or "success"
        if sum(label == outcome for label in chosen.values()) < config.videos:
            chosen[record.seed] = outcome
    if not chosen:
        return [], "eval.videos=0 asked for none; eval.videos=3 films three episodes of each outcome."
    every = FRAME_EVERY if policy.spec.control_dt_s else 1  # each answer of a world that waits counts
    kept = Film(chosen, every)
    try:
        with cpu_threads(1):  # as in the evaluation, so that the episodes come out the same to the last bit
            rollout(
                world_of(policy, env, config),
                agent_of(policy, env, config, execution),
                sorted(chosen),
                stop_at_success=config.stop_at_success,
                observers=[kept],
            )
    except envs.RenderingUnavailable as error:
        return [], str(error)
    fps = 1 / (pace_s(policy.spec) * every)
    clips = [Clip(seed, chosen[seed], encode_mp4(frames, fps)) for seed, frames in kept.frames.items()]
    return clips, f"The first {config.videos} episodes of each outcome, in the order of the seeds."


@dataclass
class Run:
    """What an evaluation is about and where its results go."""

    checkpoint: Path  # or the folder of an export
    out: Path  # folder for episodes.jsonl, metrics.json and report.html
    env: envs.EnvConfig
    eval: EvaluationConfig
    execution: ExecutionConfig
    config: dict[str, Any]  # everything that was set, for the report
    history: list[dict[str, Any]]  # log entries of the training
    seconds: dict[str, float]  # what was measured before: collect, train
    started: float  # time.perf_counter() at the start of the command
    view: int | None = None  # port of the live view; None: there is none


def conclude(run: Run, policy: LoadedPlanner) -> dict[str, Any]:
    """Evaluates a loaded policy and writes episodes.jsonl, metrics.json and report.html; returns the metrics.

    Of many tasks, each has such files of its own below `tasks`, and these ones join them.
    """
    if len(worlds := run.env.each()) > 1:
        return conclude_all(run, policy, worlds)
    metrics, *_ = conclude_one(run, policy)
    discard_unfinished(run.out)
    sweep.note(metrics, run.out)
    return metrics


def conclude_all(run: Run, policy: LoadedPlanner, worlds: Sequence[envs.EnvConfig]) -> dict[str, Any]:
    """`conclude` of many tasks."""
    judged = []
    for world in worlds:
        name = envs.name_of(world)
        own = replace(run, env=world, out=run.out / "tasks" / name, history=[], seconds={}, started=time.perf_counter())
        judged.append(Judged(name, words_for(policy.spec, world, run.eval).texts, *conclude_one(own, policy)))
        for what, seconds in own.seconds.items():
            run.seconds[what] = run.seconds.get(what, 0.0) + seconds
    records, expert = [r for each in judged for r in each.records], [r for each in judged for r in each.expert]
    metrics = summary(run, policy, policy.changed_head, records, expert) | gathered(envs.name_of(run.env), judged)
    write_joint(run.out, judged, metrics, policy.words, run.history)
    for each in judged:  # only now, so that an evaluation that is killed repeats no task
        discard_unfinished(run.out / "tasks" / each.name)
    sweep.note(metrics, run.out)
    return metrics


def conclude_one(run: Run, policy: LoadedPlanner) -> tuple[dict[str, Any], list[EpisodeRecord], list[EpisodeRecord]]:
    """`conclude` of one task; with the records of the policy and of the expert."""
    source, changed = policy.provenance, policy.changed_head
    used = set(seeds_of(run.eval)) & set(source.demonstration_seeds)
    if used:
        raise ValueError(f"evaluation seeds {sorted(used)[:3]} were demonstrated; choose another eval.seed")
    view = viewing(run.view, lambda: policy, policy.spec, world_of(policy, run.env, run.eval))
    with unfinished(run.out, settled(run, policy)) as (kept, kept_expert):
        with view as watching:
            parts = policy, run.env, run.eval, run.execution, kept, watching.observers
            records = timed(run, "evaluate", lambda: evaluate(*parts))
        asked = run.eval.expert
        expert = timed(run, "expert", lambda: evaluate_expert(run.env, run.eval, kept_expert) if asked else [])
    # The report is extra: its states lie beyond the evaluated seeds.
    beyond = run.eval.seed + run.eval.episodes
    words = words_for(policy.spec, run.env, run.eval)
    states = run.env, range(beyond, beyond + 2)
    on_screen = policy.spec.action.uses is not None  # there a plan is shown over the screen, and not over time
    chunks = compare_chunks(policy, *states, words) if expert and not on_screen else []
    plans = compare_plans(policy, *states) if expert and on_screen else []
    clips, note = timed(run, "film", lambda: film(policy, run.env, run.eval, run.execution, records))
    metrics = summary(run, policy, changed, records, expert)

    (run.out / "metrics.json").unlink(missing_ok=True)  # it comes last, so that it never stands beside an older report
    write_whole(run.out / "episodes.jsonl", lines(records))
    data = ReportData(
        title=f"{records[0].task}: {policy.words}{metrics['conditions']}",
        task=source.task or "; ".join(words.texts),
        command=sweep.command_line(),
        records=records,
        expert_records=expert or None,
        goal_visible=getattr(run.env, "goal_visible", None),
        control_dt_s=policy.spec.control_dt_s,
        history=run.history,
        chunks=chunks,
        plans=plans,
        clips=clips,
        clip_note=note,
        checkpoint=str(run.checkpoint),
        dataset_hash=source.demonstrations,
        hardware=metrics["hardware"],
        timings=run.seconds,
        versions=versions(),
        config=run.config,
    )
    write_report(data, run.out / "report.html")
    write_whole(run.out / "metrics.json", (json.dumps(metrics, indent=1) + "\n").encode())
    return metrics, records, expert


def settled(run: Run, policy: LoadedPlanner) -> str:
    """The fingerprint of everything that an outcome depends on beside its seed."""
    about, tensors = policy.settled()
    about |= {"env": asdict(run.env), "compile": run.config.get("compile"), "versions": versions()}
    words = words_for(policy.spec, run.env, run.eval)
    about["told"] = [*words.texts, words.source]
    free = ("episodes", "seed", "n_envs", "workers", "expert", "videos")
    about["eval"] = {name: value for name, value in asdict(run.eval).items() if name not in free}
    about["execution"] = asdict(run.execution)
    return fingerprint(about, tensors)


def timed(run: Run, name: str, work: Callable[[], T]) -> T:
    """Does the work and notes the seconds it took under the name."""
    start = time.perf_counter()
    result = work()
    run.seconds[name] = time.perf_counter() - start
    return result


def summary(
    run: Run, policy: LoadedPlanner, changed: dict[str, Any], records: list[EpisodeRecord], expert: list[EpisodeRecord]
) -> dict[str, Any]:
    """The numbers of metrics.json; `changed` is what the policy samples with instead of its checkpoint's own."""
    expert_summary = summarize(expert) if expert else None
    return {
        "task": records[0].task,
        **asdict(summarize(records)),
        "expert_successes": expert_summary.successes if expert_summary else None,
        "expert_rate": expert_summary.rate if expert_summary else None,
        "expert_asked": run.eval.expert,
        **{f"{name}_seconds": round(seconds, 2) for name, seconds in run.seconds.items()},
        "total_seconds": round(time.perf_counter() - run.started, 2),
        "checkpoint": str(run.checkpoint),
        "seed": run.eval.seed,
        "conditions": conditions(run.eval, run.execution, changed, sum(record.solved_before for record in records)),
        "head": changed,
        "perturbation": records[0].perturbation,
        "execution": asdict(run.execution),
        "versions": versions(),
        "hardware": hardware(torch.device(policy.device_name)),
        "export": policy.identity,
    }


def conditions(
    config: EvaluationConfig, execution: ExecutionConfig, head: dict[str, Any], solved_before: int = 0
) -> str:
    """In words, what makes this evaluation harder, easier or other than the plain one; empty if nothing does."""
    parts = [f"head.{name}={value}" for name, value in head.items()]
    parts += [execution.mode] if execution.mode != "receding_horizon" else []
    parts += [f"delay {execution.delay} steps"] if execution.delay else []
    parts += ["measured latencies"] if execution.latencies_ms or execution.latencies_file else []
    parts += [config.perturb.describe()] if config.perturb.describe() else []
    parts += [f"{solved_before} of the episodes solved at the start"] if solved_before else []
    return f" ({', '.join(parts)})" if parts else ""


def run(cfg: DictConfig) -> None:
    """Evaluates as the configuration says and prints the closing line."""
    print(evaluate_checkpoint(cfg, time.perf_counter()))


def main() -> None:
    """Entry point."""
    cli.program("eval", run)


def evaluate_checkpoint(cfg: DictConfig, started: float) -> str:
    """Evaluates what the command line asks for; returns the closing line."""
    cli.require_given(cfg, "checkpoint")
    config: EvalRoot = cli.typed(cfg)
    if not config.eval.episodes:
        raise ValueError("eval.episodes=0 leaves nothing to evaluate; give 1 or more")
    device = select_device(config.device, config.threads)
    checkpoint = Path(config.checkpoint)
    exported, foreign = is_export(checkpoint), is_lerobot(checkpoint)
    checkpoint = checkpoint if exported or foreign else policies.checkpoint_in(checkpoint)
    opens: Any = open_lerobot if foreign else open_export if exported else partial(open_checkpoint, device=device)
    policy: LoadedPlanner = opens(config)
    if config.data.path:
        return held_out.judged_again(config, policy, checkpoint)
    name = f"eval-{config.eval.seed}-{config.eval.episodes}"
    name += f"-{envs.name_of(config.env)}" if config.env else ""
    if exported:
        name = f"{checkpoint.name}-{name}"  # several exports of one checkpoint lie beside it
    else:
        name += "".join(f"-{field}-{value}" for field, value in policy.changed_head.items())
    name += "".join(f"-{field}-{value}" for field, value in changes(config.execution).items())
    name += "".join(f"-{field}-{value}" for field, value in changes(config.eval.perturb).items())
    told = (Path(config.eval.wordings).stem, config.eval.source, config.compile.removeprefix("no"))
    name = "-".join([name, *(part for part in told if part)])
    name = re.sub(r"[^\w.-]+", "-", name)
    out = Path(sweep.cell_folder() or config.out or checkpoint.parent / name)
    # A checkpoint made lighter for a robot has no training state, and so no learning curve to show.
    has_state = (checkpoint / "train_state.pt").is_file()
    history = require_history(policies.load_train_state(checkpoint).get("history")) if has_state else []
    env = config.env or envs.env_of(policy.provenance)
    run = Run(checkpoint, out, env, config.eval, config.execution, asdict(config), history, {}, started)
    run.view = config.view_port if config.view else None
    with claimed(out), wandb_run(config.wandb, out, asdict(config)) as log:
        metrics = conclude(run, policy)
        log_results(log, metrics, out)
    return closing_line(metrics, out)


def changes(config: Any) -> dict[str, Any]:
    """The fields of a configuration that differ from their defaults."""
    plain = type(config)()
    return {name: value for name, value in asdict(config).items() if value != getattr(plain, name)}


def open_checkpoint(config: EvalRoot, device: torch.device) -> policies.Policy:
    """The policy of the checkpoint, with another sampler and compiled if the configuration says so."""
    policy = policies.load(config.checkpoint, device)
    if config.head.changes:
        policy = policy.with_head(**config.head.changes)
    if config.compile != "no":
        policy.compile(config.compile)
    return policy


def open_export(config: EvalRoot) -> LoadedPlanner:
    """The exported policy; `ValueError` where the evaluation asks for something that only its checkpoint can do."""
    if config.device not in ("auto", "cpu"):
        raise ValueError(f"{config.checkpoint} is an export: it runs on the CPU, and device={config.device} cannot be")
    require_own_sampler(config.checkpoint, config.head.changes)
    if config.compile != "no":
        raise ValueError(f"{config.checkpoint} is an export, which is what it is; compile={config.compile} cannot be")
    if config.execution.mode in FORMS:
        raise ValueError(
            f"execution.mode={config.execution.mode} continues chunks, which an export cannot; give the checkpoint"
        )
    return flowhand.load(config.checkpoint, trust=config.trust)
