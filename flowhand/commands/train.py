"""Demonstrations -> checkpoint -> success rate. `python train.py --help` lists everything that can be set."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
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
from flowhand.contracts.resize import resized
from flowhand.demos.config import COLLECTED, TrainingDataConfig
from flowhand.demos.decoded.rows import read_features, row_bytes, training_rows
from flowhand.demos.formats import open_dataset
from flowhand.demos.hub import on_hub
from flowhand.demos.interventions import step_weights
from flowhand.demos.native import Store
from flowhand.demos.observed import Observed
from flowhand.demos.reader import Reader
from flowhand.demos.states import StateEpisodes
from policies.checkpoint import MOST_TENSOR_BYTES
from policies.device import select_device
from policies.encoders import image_sizes
from policies.encoders.vision import pretrained
from policies.training import start as starting
from policies.training.stream import Stream, WindowSource
from policies.training.trainer import Trainer
from policies.training.windows import Windows

from . import held_out
from .collect import collect
from .runs import StopRequest


def trainer_of(
    config: TrainRoot, spec: Spec, episodes: Iterable[Episode], device: torch.device, fitted: bool = False
) -> Trainer:
    """The trainer of a run; see `Trainer`."""
    windows = windows_of(config, spec, episodes, device)
    data, numbers = (episodes.data, episodes.numbers) if isinstance(episodes, StateEpisodes) else (episodes, None)
    if isinstance(data, Store | Reader):
        chosen = range(len(data)) if numbers is None else numbers
        if (weights := step_weights(data, chosen, config.data.intervention_weight)) is not None:
            windows.weigh(weights)
    return Trainer(config.train, config.policy, spec, windows, device, config.seed, fitted)


def windows_of(config: TrainRoot, spec: Spec, episodes: Iterable[Episode], device: torch.device) -> WindowSource:
    """The demonstrations as windows: all on the device where they fit into `data.memory_gb`, else read from the disk.

    Recorded frames are decoded once, to the size that the policy reads.
    """
    shape, room = (config.chunk.history, config.chunk.prediction_horizon), int(config.data.memory_gb * 1e9)
    data, numbers = (episodes.data, episodes.numbers) if isinstance(episodes, StateEpisodes) else (episodes, None)
    if not isinstance(data, Store | Reader):  # held in memory as they are
        return Windows(episodes, spec, *shape, device)
    numbers = range(len(data)) if numbers is None else numbers
    sizes = image_sizes(config.vision, spec)
    features = read_features(spec, sizes)
    lengths = data.lengths
    fits = sum(lengths[number] for number in numbers) * row_bytes(features) <= room
    if fits and not sizes:
        return Windows(episodes, spec, *shape, device)
    rows = training_rows(data, numbers, features, config.data)
    if not fits:
        return Stream(rows, *shape, device, room, config.data.prefetch)
    observation = {name: features[name] for name in spec.observation}
    return Windows(rows, replace(spec, observation=observation), *shape, device)


def golden_observation(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Four histories that are stored beside the action that they give; images of the size that the camera has."""
    index = torch.arange(4, device=trainer.windows.device) * (len(trainer.windows) // 4)
    observation = trainer.windows.gather(index).observation
    for name in trainer.policy.image_sizes:
        shape, images = trainer.policy.spec.observation[name].shape, observation[name]
        values = images.cpu().numpy().reshape(*images.shape[:4], -1)  # depth may have no axis of channels
        whole = resized(values, (shape[0], shape[1])).reshape(*images.shape[:2], *shape)
        observation[name] = torch.from_numpy(whole).to(images.device)
    return observation


def fit(
    trainer: Trainer, save: Callable[[], None], score: Callable[[], dict[str, Any]], log: Callable[..., None]
) -> int:
    """Trains to the last step, or until a signal arrives; returns the signal's number, 0 when finished."""
    config = trainer.config
    logged, started, chooser = trainer.step, time.perf_counter(), trainer.thread_chooser()
    waited = trainer.waited_s
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
                waits = (trainer.waited_s - waited) / seconds  # share of the time that the training waits for data
                entry |= {"samples_per_s": rate, "data_wait": waits, "threads": trainer.threads[-1][1]}
                bar.set_postfix_str(f"loss {entry['loss']:.4f}, {rate:,.0f} samples/s, {waits:.0%} waiting for data")
                if evaluate:
                    entry["success"] = score()
                trainer.seconds += seconds
                trainer.history.append(entry)
                log(entry, step=step)
                logged, started, waited = step, time.perf_counter(), trainer.waited_s
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
    store, unseen = demonstrations(config)
    collect_seconds = time.perf_counter() - started
    trainer = trainer_of(config, observed(config, store), store, device, fitted=state is not None)
    if state is not None:
        require_same(
            completed(with_names_of_now(state.get("config")), OmegaConf.structured(config)),
            asdict(config),
            config.resume,
        )
        trainer.restore(state)
    size = sum(p.numel() for p in trainer.policy.parameters())
    print(f"{len(store)} demonstrations, {len(trainer.windows)} windows, {size:,} parameters, {device}, -> {out}")

    golden = golden_observation(trainer)
    earlier = policies.read_config(out / "checkpoint")[2] if state else None
    source = provenance(config, store, unseen, earlier)
    if earlier is None and config.init:
        start(config, trainer, source)

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
        if unseen is not None and isinstance(store, StateEpisodes):
            words, policy = ["python", "train.py", *overrides], policies.load(out / "checkpoint", device)
            print(held_out.conclude(policy, store, unseen, words, out, log))
        if config.eval.episodes:
            seconds = {"collect": collect_seconds, "train": trainer.seconds}
            what = config.env, config.eval, config.execution, asdict(config)
            run = evaluation.Run(out / "checkpoint", out, *what, trainer.history, seconds, started)
            metrics = evaluation.conclude(run, policies.load(out / "checkpoint", device))
            evaluation.log_results(log, metrics, out)
            print(evaluation.closing_line(metrics, out))
    return 0


def demonstrations(config: TrainRoot) -> tuple[Store | StateEpisodes, StateEpisodes | None]:
    """What to train on, and what is held out to judge it.

    The world's expert collects, or they are recorded ones at data.path, of any known format: with env=none as they are,
    otherwise as the world observes their states.

    Raises:
        ValueError: without an environment, the path is missing or an evaluation is asked for.
    """
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
    if config.eval.episodes:
        raise ValueError("env=none has nothing to evaluate in; set eval.episodes=0")
    return held_out.split(open_dataset(config.data.path), config.data, sees)


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


def observed(config: TrainRoot, store: Store | StateEpisodes) -> Spec:
    """What the policy sees and commands."""
    spec = learnable(store.spec)
    added = config.data.previous_action and isinstance(store, Store)
    return spec.with_previous_action() if added else spec


def provenance(
    config: TrainRoot,
    store: Store | StateEpisodes,
    unseen: StateEpisodes | None = None,
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
        recorded=[held_out.described(store, unseen)] if isinstance(store, StateEpisodes) else [],
        started_from=earlier.started_from if earlier else [],
        pretrained=earlier.pretrained if earlier else pretrained.described(config.vision),
    )


def start(config: TrainRoot, trainer: Trainer, source: policies.Provenance) -> None:
    """Gives the trainer the weights of the checkpoint of `init`, says what differs, and notes where they come from."""
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
    print(f"starts from {config.init}, trained for {before.train_steps} steps", *lines, sep="\n")


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
