"""Demonstrations -> checkpoint -> success rate. `python train.py --help` lists everything that can be set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

import envs
import policies
from conf import cli
from conf.resume import as_it_began, completed, require_same, stored_overrides, with_names_of_now
from conf.verbs.train import TrainRoot
from flowhand.commands import eval as evaluation
from flowhand.contracts.argument import argument
from flowhand.contracts.data.episode import Episode
from flowhand.contracts.durable import claimed, exists
from flowhand.contracts.features import Spec
from flowhand.contracts.modules import imported_modules
from flowhand.contracts.planner import learnable
from flowhand.contracts.provenance import revision
from flowhand.demos.formats import open_dataset
from flowhand.demos.hub import is_repo_id
from flowhand.demos.native import Store
from flowhand.demos.observed import Observed
from flowhand.demos.reader import Reader
from flowhand.demos.states import StateEpisodes
from policies.device import select_device
from policies.training.trainer import Trainer

from .collect import collect
from .runs import StopRequest


def trainer_of(
    config: TrainRoot, spec: Spec, episodes: Iterable[Episode], device: torch.device, fitted: bool = False
) -> Trainer:
    """The trainer of a run; see `Trainer`."""
    return Trainer(config.train, config.policy, spec, episodes, device, config.seed, fitted)


def fit(
    trainer: Trainer, save: Callable[[], None], score: Callable[[], dict[str, Any]], log: Callable[..., None]
) -> int:
    """Trains to the last step, or until a signal arrives; returns the signal's number, 0 when finished."""
    config = trainer.config
    logged, started, chooser = trainer.step, time.perf_counter(), trainer.thread_chooser()
    bar = tqdm(total=config.steps, initial=trainer.step, desc="train", unit="step", mininterval=1)
    with bar, StopRequest() as stop:
        while trainer.step < config.steps and not stop.signal:
            loss = trainer.advance()
            step = trainer.step
            bar.update()
            evaluate = config.eval_every > 0 and step % config.eval_every == 0 and step < config.steps
            if step % config.log_every == 0 or step == config.steps or evaluate:
                trainer.require_finite()
                seconds = time.perf_counter() - started
                rate = (step - logged) * config.batch_size / seconds
                entry: dict[str, Any] = {"step": step, "loss": loss.item(), "lr": trainer.learning_rate()}
                entry |= {"samples_per_s": rate, "threads": trainer.threads[-1][1]}
                bar.set_postfix_str(f"loss {entry['loss']:.4f}, {rate:,.0f} samples/s")
                if evaluate:
                    entry["success"] = score()
                trainer.seconds += seconds
                trainer.history.append(entry)
                log(entry, step=step)
                logged, started = step, time.perf_counter()
            switched = step < config.steps and chooser.after_step(trainer.gradient_s)
            if switched:
                trainer.use_threads(chooser.count)
            if switched or (step % config.save_every == 0 and step < config.steps):
                save()
        save()
    return stop.signal


def train(config: TrainRoot, overrides: list[str], state: dict[str, Any] | None) -> int:
    """One run from demonstrations to report; returns the number of the signal that stopped it, 0 when finished."""
    started, out = time.perf_counter(), Path(config.out)
    device = select_device(config.train.device, config.train.threads)
    if state is None and exists(out / "checkpoint"):
        raise ValueError(
            f"{out} already holds a run; go on with it by {argument('resume', out)}, or choose another folder with out="
        )
    if state is None:
        config.head.require_reference()  # before the demonstrations are collected
    store = demonstrations(config)
    collect_seconds = time.perf_counter() - started
    trainer = trainer_of(config, learnable(store.spec), store, device, fitted=state is not None)
    if state is not None:
        require_same(
            completed(with_names_of_now(state.get("config")), OmegaConf.structured(config)),
            asdict(config),
            config.resume,
        )
        trainer.restore(state)
    size = sum(p.numel() for p in trainer.policy.parameters())
    print(f"{len(store)} demonstrations, {len(trainer.windows)} windows, {size:,} parameters, {device}, -> {out}")

    golden = trainer.windows.gather(torch.arange(4, device=device) * (len(trainer.windows) // 4)).observation
    source = provenance(config, store, policies.read_config(out / "checkpoint")[2].git_sha if state else "")

    def save() -> None:
        trainer.require_finite()
        source.train_steps = trainer.step
        extra = {"overrides": overrides, "config": asdict(config)}
        policies.save(out / "checkpoint", trainer.ema.module, source, golden, {**trainer.state(), **extra})

    def score() -> dict[str, Any]:
        records = evaluation.evaluate(trainer.ema.module, config.env, config.eval, config.execution)
        return {"n": len(records), "successes": sum(record.success for record in records)}

    with evaluation.wandb_run(config.wandb, out, asdict(config)) as log:
        stopped = fit(trainer, save, score, log.log if log else lambda entry, step: None)
        if stopped:
            print(f"stopped at step {trainer.step}; go on with: python train.py {argument('resume', out)}")
            return stopped
        if config.eval.episodes:
            seconds = {"collect": collect_seconds, "train": trainer.seconds}
            what = config.env, config.eval, config.execution, asdict(config)
            run = evaluation.Run(out / "checkpoint", out, *what, trainer.history, seconds, started)
            metrics = evaluation.conclude(run, policies.load(out / "checkpoint", device))
            evaluation.log_results(log, metrics, out)
            print(evaluation.closing_line(metrics, out))
    return 0


def demonstrations(config: TrainRoot) -> Store | StateEpisodes:
    """Collected by the environment's expert, or recorded ones at data.path, of any known format.

    With env=none these are taken as they are, and otherwise as the world observes their states.

    Raises:
        ValueError: without an environment, the path is missing or an evaluation is asked for.
    """
    path, reads = Path(config.data.path), config.env.kind == "none" or envs.reads_recorded(config.env)
    if config.data.path and not path.exists() and not (reads and is_repo_id(config.data.path)):
        made = argument("data.path", path)
        raise ValueError(
            f"there are no demonstrations at {path}; correct the path, or collect them: flowhand collect {made}"
        )
    if config.env.kind != "none":
        recorded = open_dataset(config.data.path) if reads and config.data.path else None
        if isinstance(recorded, Reader):
            seen = observed_in(config.env, recorded, config.data.mirror)
            return first_states(seen, config.data.episodes * (2 if config.data.mirror else 1))
        if config.data.mirror:
            raise ValueError("data.mirror is for recorded demonstrations that a world observes; set data.mirror=false")
        return collect(config.env, config.data)
    if not config.data.path:
        raise ValueError("env=none trains on recorded demonstrations; give their store with data.path=")
    if config.eval.episodes:
        raise ValueError("env=none has nothing to evaluate in; set eval.episodes=0")
    data = open_dataset(config.data.path)
    if isinstance(data, Store):
        return data.head(config.data.episodes)
    return first_states(data, config.data.episodes)


def first_states(data: Reader, count: int) -> StateEpisodes:
    """States and actions of the first episodes; prints what is not used."""
    states = StateEpisodes(data, count)
    print(*states.lines, sep="\n", end="\n" if states.lines else "")
    return states


def observed_in(config: envs.EnvConfig, recorded: Reader, mirror: bool) -> Observed:
    """A recorded set as the world observes it, with its mirror image if asked for; `ValueError` if the world cannot."""
    world = envs.make(config)
    return Observed(recorded, world.features, world.observed, world.version, world.mirrored if mirror else None)


def provenance(config: TrainRoot, store: Store | StateEpisodes, git_sha: str = "") -> policies.Provenance:
    """Where the policy comes from, for its checkpoint; an install without a clone leaves the commit that is known."""
    return policies.Provenance(
        env=asdict(config.env),
        env_version=store.meta.env_version,
        task=store.meta.task,
        demonstrations=store.hash(),
        demonstration_seeds=store.seeds,
        versions=evaluation.versions(),
        git_sha=revision() or git_sha,
        train_steps=0,
        modules=imported_modules(),
    )


def compose(cfg: DictConfig) -> tuple[TrainRoot, list[str], dict[str, Any] | None]:
    """The typed configuration, the command line's overrides, and the state to resume from.

    A resumed run takes the overrides it was started with, defaults of then that are others now, and what is given now.
    """
    now, state, folder = list(HydraConfig.get().overrides.task), None, Path(cfg.resume)
    overrides = now
    if cfg.resume:
        folder = folder / "checkpoint" if folder.name != "checkpoint" else folder
        state = policies.load_train_state(folder)
        stored = stored_overrides(state, folder)
        began = as_it_began(with_names_of_now(state.get("config")), hydra.compose("train", [*stored, *now]))
        overrides = [*stored_overrides({"overrides": [*stored, *began]}, folder), *now]
        cfg = hydra.compose("train", overrides)
    config: TrainRoot = cli.typed(cfg)
    if config.resume:
        config.out = str(folder.parent)
        given = {override.key_or_group for override in OverridesParser.create().parse_overrides(now)}
        if ":" in str(getattr(config.env, "id", "")) and "env.id" not in given:
            raise ValueError(f"{folder} asks to import {config.env.id!r}; give env=gymnasium env.id=... yourself")  # pyright: ignore[reportAttributeAccessIssue]
    config.out = config.out or f"outputs/{envs.name_of(config.env)}-{config.head.kind}-{config.seed}"
    return config, overrides, state


def run(cfg: DictConfig) -> int:
    """Trains as the configuration says; returns the number of the signal that stopped it, 0 when finished."""
    config, overrides, state = compose(cfg)
    with claimed(config.out):
        if state is not None:  # again, now that nobody else writes
            state = policies.load_train_state(Path(config.out) / "checkpoint")
        return train(config, overrides, state)


def main() -> None:
    """Entry point."""
    cli.program("train", run)
