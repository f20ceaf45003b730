"""Demonstrations -> checkpoint -> success rate. `python train.py --help` lists everything that can be set."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import envs
import policies
from conf import cli, sweep
from conf.resume import as_it_began, completed, require_same, stored_overrides, with_names_of_now
from conf.verbs.train import TrainRoot
from flowhand.commands import eval as evaluation
from flowhand.contracts.argument import argument
from flowhand.contracts.data.episode import Episode
from flowhand.contracts.durable import claimed, exists
from flowhand.contracts.features import PREVIOUS, Spec
from flowhand.contracts.modules import imported_modules
from flowhand.contracts.planner import learnable
from flowhand.contracts.provenance import revision
from flowhand.demos.config import COLLECTED, TrainingDataConfig
from flowhand.demos.formats import open_dataset
from flowhand.demos.hub import on_hub
from flowhand.demos.mixture import Mixture
from flowhand.demos.native import Store
from flowhand.demos.observed import Observed
from flowhand.demos.reader import Reader
from flowhand.demos.recording.interventions import step_weights
from flowhand.demos.states import StateEpisodes
from policies.checkpoint import MOST_TENSOR_BYTES
from policies.device import select_device
from policies.encoders.vision import pretrained
from policies.training import start as starting
from policies.training.config import TrainingConfig
from policies.training.distributed import OneProcess, card_of, joined, started_by
from policies.training.trainer import Trainer

from . import held_out
from .collect import collect
from .runs import Save, fit
from .tasks.gather import given_by, of_sets, of_tasks
from .tasks.reading import windows_of

Demonstrations = Store | StateEpisodes | Mixture
Unseen = StateEpisodes | list[StateEpisodes | None] | None  # what is held out, of a mixture of each set


def trainer_of(
    config: TrainRoot,
    spec: Spec,
    episodes: Iterable[Episode],
    device: torch.device,
    fitted: bool = False,
    processes: OneProcess | None = None,
) -> Trainer:
    """The trainer of a run; see `Trainer`."""
    windows = windows_of(config, spec, episodes, device)
    data, numbers = (episodes.data, episodes.numbers) if isinstance(episodes, StateEpisodes) else (episodes, None)
    if isinstance(data, Store | Reader):
        chosen = range(len(data)) if numbers is None else numbers
        if (weights := step_weights(data, chosen, config.data.intervention_weight)) is not None:
            windows.weigh(weights)
    return Trainer(config.train, config.policy, spec, windows, device, config.seed, fitted, processes)


def train(
    config: TrainRoot, overrides: list[str], state: dict[str, Any] | None, processes: OneProcess | None = None
) -> int:
    """One run from demonstrations to report; returns the number of the signal that stopped it, 0 when finished.

    Of several processes the first one collects, saves, evaluates and speaks.
    """
    started, out, processes = time.perf_counter(), Path(config.out), processes or OneProcess()
    device = device_of(config.train)
    require_startable(config, state is None, processes.count)
    _, before, earlier = policies.read_config(out / "checkpoint") if state else (None, None, None)
    seconds: dict[str, float] = {}

    def prepared() -> tuple[Demonstrations, Unseen, Trainer]:
        begun = time.perf_counter()
        store, unseen = demonstrations(config)
        seconds["collect"] = time.perf_counter() - begun
        spec = observed(config, store, before)
        return store, unseen, trainer_of(config, spec, store, device, state is not None, processes)

    store, unseen, trainer = processes.in_turn(prepared)
    if state is not None:
        saved = completed(with_names_of_now(state.get("config")), OmegaConf.structured(config))
        require_same(saved, asdict(config), config.resume)
        trainer.restore(state)
    say = print if processes.first else silent
    size = sum(p.numel() for p in trainer.policy.parameters())
    say(f"{len(store)} demonstrations, {len(trainer.windows)} windows, {size:,} parameters, {device}, -> {out}")

    source = provenance(config, store, unseen, earlier)
    if earlier is None and config.init:
        say(*start(config, trainer, source), sep="\n")

    save = Save(trainer, config, overrides, source)

    def score() -> dict[str, Any]:
        records = evaluation.evaluate(trainer.ema.module, config.env, config.eval, config.execution)
        return {"n": len(records), "successes": sum(record.success for record in records)}

    speaks = evaluation.wandb_run(config.wandb, out, asdict(config), state is not None)
    with speaks if processes.first else nullcontext() as log:
        stopped = fit(trainer, save, lambda: processes.alone(score), log.log if log else lambda entry, step: None, out)
        if stopped:
            say(f"stopped at step {trainer.step}; go on with: python train.py {argument('resume', out)}")
        if stopped or not processes.first:
            return stopped
        words = ["python", "train.py", *overrides]
        for trained, kept, source_name, folder in held_out.judged_on(store, unseen, out):
            policy = policies.load(out / "checkpoint", device)
            print(held_out.conclude(policy, trained, kept, words, folder, log, source_name))
        if config.eval.episodes:
            seconds["train"] = trainer.seconds
            what = config.env, config.eval, config.execution, asdict(config)
            run = evaluation.Run(out / "checkpoint", out, *what, trainer.history, seconds, started)
            judge(run, device, log)
    return 0


def require_startable(config: TrainRoot, new: bool, processes: int) -> None:
    """Raises `ValueError`, before demonstrations are collected, for what cannot be trained."""
    out = Path(config.out)
    if new and exists(out / "checkpoint"):
        raise ValueError(
            f"{out} already holds a run; go on with it by {argument('resume', out)}, or choose another folder with out="
        )
    if new:
        config.head.require_reference()
    if processes > 1:
        config.head.require_separable()
    if processes > 1 and config.train.compile:
        raise ValueError("train.compile=true is for one process: torch cannot compile a loss that several share")


def judge(run: evaluation.Run, device: torch.device, log: Any) -> None:
    """Evaluates the checkpoint of a run that has come to its end."""
    metrics = evaluation.conclude(run, policies.load(run.checkpoint, device))
    evaluation.log_results(log, metrics, run.out)
    print(evaluation.closing_line(metrics, run.out))


def demonstrations(config: TrainRoot) -> tuple[Demonstrations, Unseen]:
    """What to train on, and what is held out to judge it.

    The world's expert collects, or they are recorded ones at data.path, of any known format: with env=none as they are,
    otherwise as the world observes their states.

    Raises:
        ValueError: without an environment, the path is missing or an evaluation is asked for.
    """
    if len(worlds := config.env.each()) > 1:
        _require_of_a_world(config.data)
        return of_tasks(worlds, config.data), None
    if config.data.mixture:
        if config.env.kind != "none":
            raise ValueError("data.mixture has no world of its own; set env=none")
        _require_no_evaluation(config)
        return of_sets(config.data, config.vision.kind != "none")
    path, sees = Path(config.data.path), config.vision.kind != "none"
    reads = config.env.kind == "none" or envs.reads_recorded(config.env)
    if config.data.path and not path.exists() and not (reads and on_hub(config.data.path)):
        made = argument("data.path", path)
        raise ValueError(
            f"there are no demonstrations at {path}; correct the path, or collect them: flowhand collect {made}"
        )
    if config.env.kind != "none":
        _require_of_a_world(config.data)
        recorded = open_dataset(config.data.path) if reads and config.data.path else None
        if isinstance(recorded, Reader):
            taken = replace(config.data, episodes=config.data.episodes * (2 if config.data.mirror else 1))
            return held_out.split(observed_in(config, recorded), taken, sees)
        if config.data.mirror:
            raise ValueError("data.mirror is for recorded demonstrations that a world observes; set data.mirror=false")
        config.data.episodes = config.data.episodes or COLLECTED
        return collect(config.env, config.data), None
    if not config.data.path:
        raise ValueError("env=none trains on recorded demonstrations; give their store with data.path=")
    _require_no_evaluation(config)
    return held_out.split(open_dataset(config.data.path), config.data, sees)


def _require_no_evaluation(config: TrainRoot) -> None:
    if config.eval.episodes:
        raise ValueError("env=none has nothing to evaluate in; set eval.episodes=0")


def observed_in(config: TrainRoot, recorded: Reader) -> Observed:
    """A recorded set as the world observes it, with its mirror image if asked for; `ValueError` if the world cannot."""
    world = envs.make(config.env)
    mirror = world.mirrored if config.data.mirror else None
    return Observed(recorded, world.features, world.observed, world.version, mirror)


def _require_of_a_world(data: TrainingDataConfig) -> None:
    """Says of the settings of recorded sets what they come to where a world judges."""
    if data.held_out > 0 or data.observation:
        name = "observation" if data.observation else "held_out"
        raise ValueError(f"data.{name} is for recorded sets, with env=none; a world has its own features and seeds")
    data.held_out = 0


def observed(config: TrainRoot, store: Demonstrations, earlier: Spec | None = None) -> Spec:
    """What the policy sees and commands; of a run that goes on, `earlier` is what it saw."""
    spec = learnable(store.spec)
    added = config.data.previous_action and not any(f.kind == PREVIOUS for f in spec.observation.values())
    return given_by(config, spec.with_previous_action() if added else spec, store, earlier)


def provenance(
    config: TrainRoot,
    store: Demonstrations,
    unseen: Unseen = None,
    earlier: policies.Provenance | None = None,
) -> policies.Provenance:
    """Where the policy comes from, for its checkpoint.

    A run that goes on has started from what its `earlier` checkpoint names, and keeps the commit that is known in an
    install without a clone.
    """
    return policies.Provenance(
        env=asdict(config.env),
        env_version=store.meta.env_version,
        task=store.meta.task,
        demonstrations=store.hash(),
        demonstration_seeds=earlier.demonstration_seeds if earlier else store.seeds,
        versions=evaluation.versions(),
        git_sha=revision() or (earlier.git_sha if earlier else ""),
        train_steps=0,
        modules=imported_modules(),
        recorded=held_out.sets(store, unseen),
        started_from=earlier.started_from if earlier else [],
        pretrained=earlier.pretrained if earlier else pretrained.described(config.vision),
    )


def start(config: TrainRoot, trainer: Trainer, source: policies.Provenance) -> list[str]:
    """Gives the trainer the weights of the checkpoint of `init`, and notes where they come from; says what differs."""
    with policies.snapshot(config.init) as files:
        old = policies.load(files, trainer.windows.device)
        digest = hashlib.sha256(files.read("model.safetensors", MOST_TENSOR_BYTES)).hexdigest()
    lines = starting.start(trainer.policy, old, config.init_statistics)
    trainer.ema.module.load_state_dict(trainer.policy.state_dict())
    before = old.provenance
    names = ("task", "demonstrations", "recorded", "train_steps")
    about = {"weights": digest, "statistics": config.init_statistics, **{each: getattr(before, each) for each in names}}
    source.started_from = [*before.started_from, about]
    source.demonstration_seeds = sorted({*before.demonstration_seeds, *source.demonstration_seeds})
    return [f"starts from {config.init}, trained for {before.train_steps} steps", *lines]


def compose(cfg: DictConfig) -> tuple[TrainRoot, list[str], dict[str, Any] | None]:
    """The typed configuration, the command line's overrides, and the state to resume from.

    A resumed run takes the overrides it was started with, defaults of then that are others now, and what is given now.
    """
    now, state, folder = list(HydraConfig.get().overrides.task), None, Path(resumed(cfg))
    overrides = now
    if resumed(cfg):
        folder = folder / "checkpoint" if folder.name != "checkpoint" else folder
        state = policies.load_train_state(folder)
        stored = stored_overrides(state, folder)
        began = as_it_began(with_names_of_now(state.get("config")), hydra.compose("train", [*stored, *now]))
        overrides = [*stored_overrides({"overrides": [*stored, *began]}, folder), *now]
        cfg = hydra.compose("train", overrides)
    config: TrainRoot = cli.typed(cfg)
    config.resume = "" if state is None else str(folder.parent)
    if config.resume:
        config.out = str(folder.parent)
        given = {override.key_or_group for override in OverridesParser.create().parse_overrides(now)}
        if ":" in str(getattr(config.env, "id", "")) and "env.id" not in given:
            raise ValueError(f"{folder} asks to import {config.env.id!r}; give env=gymnasium env.id=... yourself")  # pyright: ignore[reportAttributeAccessIssue]
    config.out = folder_of(config)
    return config, overrides, state


def folder_of(config: TrainRoot) -> str:
    """Where a run writes: in a sweep that has a folder, below that."""
    default = f"outputs/{envs.name_of(config.env)}-{config.head.kind}-{config.seed}"
    return sweep.cell_folder() or config.out or default


def resumed(cfg: DictConfig) -> str:
    """The folder of the run that is gone on with; with resume=auto, and in a sweep, the own one if it holds a run."""
    if cfg.resume != "auto" and not sweep.cell_folder():
        return str(cfg.resume)
    own = folder_of(cli.typed(cfg))
    return own if exists(Path(own) / "checkpoint") else ""


def run(cfg: DictConfig) -> int:
    """Trains as the configuration says; returns the number of the signal that stopped it, 0 when finished."""
    config, overrides, state = compose(cfg)
    if started_by()[1] > 1 and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise ValueError("torchrun starts one training, and --multirun many; give a sweep a launcher (docs/scale.md)")
    with (
        joined(device_of(config.train), config.train.timeout_s) as processes,
        claimed(config.out) if processes.first else nullcontext(),
    ):
        if state is not None:  # again, now that nobody else writes
            state = policies.load_train_state(Path(config.out) / "checkpoint")
        return train(config, overrides, state, processes)


def device_of(config: TrainingConfig) -> torch.device:
    """The device of this process: of several, each takes one CPU thread if nothing else is said."""
    count = started_by()[1]
    if count == 1:
        return select_device(config.device, config.threads)
    return select_device(card_of(config.device), config.threads or 1)


def silent(*words: object, sep: str = "") -> None:
    """Says nothing, where another process does."""


def main() -> None:
    """Entry point."""
    cli.program("train", run)
