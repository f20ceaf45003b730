"""Calibrates a checkpoint's monitor: `flowhand calibrate checkpoint=outputs/demo/checkpoint alpha=0.05`.

The density learns the demonstrations' embeddings; the policy, undisturbed and as it will be executed, runs on seeds
that neither demonstrations (below 1,000,000) nor evaluation (1,000,000 on) nor the robot in simulation (2,000,000 on)
use; and the scores of its successes become the band that is stored in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

import envs
import policies
from conf import cli
from conf.resume import with_names_of_now
from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.export.band import fit
from flowhand.contracts.features import GIVEN
from flowhand.contracts.strict import build, mapping
from flowhand.control.alarm import Trace, WatchedAgent
from flowhand.demos.config import DataConfig, TrainingDataConfig
from flowhand.demos.native import Store
from flowhand.evaluation.records import EpisodeRecord
from flowhand.evaluation.rollout import rollout
from policies.checkpoint import TRAIN_STATE, checkpoint_in
from policies.device import cpu_threads
from policies.monitor.calibrated import CalibratedMonitor, Calibration, save_monitor
from policies.monitor.density import Density, DensityConfig, embedding, learn_density
from policies.monitor.scores import SCORES
from policies.monitor.watched_policy import WatchedPolicy, possible
from policies.training.windows import Windows

from .collect import collect

ENCODED_AT_ONCE = 256  # windows


def default_scores(policy: policies.Policy, execution: ExecutionConfig) -> list[str]:
    """The scores of a policy for which none are chosen."""
    return ["acceleration"] if "acceleration" in possible(policy, execution) else ["logpzo"]


def demonstrations(checkpoint: Path, config: DataConfig | None) -> Store:
    """The demonstrations of a checkpoint: those on the disk, or collected again.

    Args:
        checkpoint: its training state says how they were collected, its provenance where, and what they must be.
        config: how to collect them, instead.

    Raises:
        ValueError: how they were collected is not known, or they are not those of the training.
    """
    if config is None:
        with policies.snapshot(checkpoint) as files:
            state = policies.load_train_state(files) if TRAIN_STATE in files else {}
        if "config" not in state:
            raise ValueError(f"{checkpoint} does not say how its demonstrations were collected; give data.path=...")
        config = build(TrainingDataConfig, with_names_of_now(mapping(state["config"], "config")).get("data"), "data")
    _, _, source = policies.read_config(checkpoint)
    recorded = config.path and Path(config.path).exists()
    if recorded:
        store = Store.open(config.path)
        store = store.head(config.episodes or len(store))
    else:
        store = collect(envs.env_of(source), config, False)
    if store.hash() != source.demonstrations:
        raise ValueError(f"{store.path} does not hold what {checkpoint} was trained on; give data.path=...")
    return store


def learn(policy: policies.Policy, store: Store, config: DensityConfig) -> Density:
    """The density of the embeddings of all windows of the demonstrations."""
    chunk = policy.chunk
    windows = Windows(store, policy.spec, chunk.history, chunk.prediction_horizon)
    with torch.no_grad():
        parts = torch.arange(len(windows)).split(ENCODED_AT_ONCE)
        embedding_NE = torch.cat([embedding(policy.encode(windows.gather(part).observation)) for part in parts])
    return learn_density(embedding_NE.float(), config)


def watched_episodes(
    watch: partial[WatchedPolicy],
    world: partial[envs.Env],
    execution: ExecutionConfig,
    seeds: Sequence[int],
    noise_seed: int = 0,
    **lanes: Any,
) -> list[tuple[EpisodeRecord, Trace]]:
    """Records and scores of one episode per seed; `lanes` are options of `flowhand.evaluation.rollout.rollout`."""
    agent = WatchedAgent(watch, execution, noise_seed)
    with cpu_threads(1):
        records = rollout(world, agent, seeds, **lanes)
    return [(record, agent.traces[record.seed]) for record in records]


def calibrate(config: Any) -> str:
    """Calibrates and stores the monitor as the configuration (`CalibrateRoot`) says; the closing line."""
    checkpoint = checkpoint_in(config.checkpoint)
    with policies.snapshot(checkpoint) as files:
        policy, source = policies.load(files), policies.read_config(files)[2]
    if set(GIVEN) & policy.spec.observation.keys():
        raise ValueError("calibrate does not yet know policies that are told a task or a source; train one without")
    env = config.env or envs.env_of(source)
    execution, seeds = config.execution, range(config.seed, config.seed + config.episodes)
    chosen = config.calibration
    chosen.scores = chosen.scores or default_scores(policy, execution)
    used = set(seeds) & set(source.demonstration_seeds)
    if used:
        raise ValueError(f"calibration seeds {sorted(used)[:3]} were demonstrated; choose another seed")
    density = None
    if any("density" in SCORES[name].needs for name in chosen.scores):
        with cpu_threads(1):
            density = learn(policy, demonstrations(checkpoint, config.data), chosen.density)
    watch = partial(WatchedPolicy, policy, chosen.scores, execution, chosen.samples, density)
    lanes = {"n_envs": config.n_envs, "workers": config.workers, "stop_at_success": config.stop_at_success}
    episodes = watched_episodes(watch, partial(envs.make, env), execution, seeds, config.noise_seed, **lanes)
    good = successes(episodes)
    band = fit(good, chosen.alpha, chosen.confidence)
    about = Calibration(chosen, execution.mode, watch().interval, asdict(env), config.seed, config.episodes, len(good))
    folder = save_monitor(checkpoint, CalibratedMonitor(about, band, density))
    sure = f" with confidence {chosen.confidence:g}" if chosen.confidence else " on average over calibrations"
    return (
        f"{folder}: {', '.join(chosen.scores)}; at most {chosen.alpha:.1%} of successful episodes like the "
        f"{len(good)} of {config.episodes} calibrated on raise a false alarm{sure}"
    )


def successes(episodes: Sequence[tuple[EpisodeRecord, Trace]]) -> list[np.ndarray]:
    """The scores (decisions, D) of the successful episodes."""
    return [np.array(trace.scores) for record, trace in episodes if record.success]


def run(config: DictConfig) -> None:
    """Calibrates as the configuration says and prints one line about it."""
    cli.require_given(config, "checkpoint")
    print(calibrate(cli.typed(config)))


def main() -> None:
    """Entry point."""
    cli.program("calibrate", run)
