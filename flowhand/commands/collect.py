"""Lets an environment's scripted expert record demonstrations: `flowhand collect env=metaworld ...`.

Execution noise pushes the arm off the expert's path while the recorded label stays what the expert would do there, so
the policy sees how to recover (Laskey et al. 2017, DART). With a checkpoint the policy acts, and what is stored of
every state is what the expert would do there (Ross et al. 2011, DAgger, whose parameter-free form this is: the first
collection is the expert's, later ones are the policy's). Everything follows from the recipe: the same recipe gives the
same episodes, however often the collection was interrupted or extended and however many processes shared the work.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from envs import Env, EnvConfig, make
from flowhand.contracts.data.episode import Episode
from flowhand.contracts.features import Spec
from flowhand.contracts.observers import EpisodeEnds, StepTaken
from flowhand.contracts.strict import whole
from flowhand.contracts.world import WorldError
from flowhand.demos.config import COLLECTED, NOISE, SEEDS_PER_COLLECTION, DataConfig
from flowhand.demos.meta import StoreMeta
from flowhand.demos.native import Store
from flowhand.demos.recording.rollouts import EpisodeRecorder, StoreWriter, too_few
from flowhand.evaluation.lanes import Begin, Finished, Lane, LaneOptions
from flowhand.evaluation.rollout import Agent, NoisyExpert, rollout

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from conf.verbs.collect import CollectRoot


COLLECTOR_VERSION = 1  # part of every recipe: raise it when the same settings give other episodes than before

MakeEnv = Callable[[Any], Env]  # takes the config class of its own environment


class Actor(NamedTuple):
    """Who acts instead of the expert."""

    agent: Agent
    name: str  # tells it from others, in the recipe
    spec: Spec  # what it sees and commands


def collect(
    env_config: EnvConfig,
    config: DataConfig,
    progress: bool = True,
    *,
    make_env: MakeEnv = make,
    actor: Actor | None = None,
) -> Store:
    """Return `config.episodes` demonstrations: those on the disk, and new ones for the rest.

    Args:
        env_config: the environment; its expert acts, unless an actor is given.
        config: how many, from which seeds, with how much noise, where to.
        progress: show a progress bar with the success rate.
        make_env: builds the environment; with several workers it must be importable by them.
        actor: acts; the expert says of every state what it would do, and that is what is stored.

    Raises:
        ValueError: the environment has no expert, its expert fails too often, or the store does not fit the request.
    """
    config = replace(config, episodes=config.episodes or COLLECTED)
    with closing(make_env(env_config)) as env:
        config = replace(config, noise=_noise(config, env, actor))
        meta = _meta(env, env_config, config, actor)
        store = _find_store(env, meta, config)
    if len(store) < config.episodes:
        with store.writing():  # a second process with the same recipe waits here, then finds the episodes
            _extend(store, config, partial(make_env, env_config), progress, actor)
    return store.head(config.episodes)


def _noise(config: DataConfig, env: Env, actor: Actor | None = None) -> float:
    """The noise of what the expert executes."""
    if actor is None and env.features.action.uses is None:
        return NOISE if config.noise is None else float(config.noise)
    if config.noise:
        why = "the expert does not act" if actor else "an action of this world is right or wrong"
        raise ValueError(f"data.noise is {config.noise:g}, and {why}: expected 0")
    return 0.0


def attempts(store: Store) -> int:
    """Number of attempts it took to collect the store's episodes; 0 for a store that was not collected."""
    recipe = store.meta.recipe
    if not len(store) or "collector_version" not in recipe or not isinstance(recipe.get("seed"), int):
        return 0
    return max(0, store[len(store) - 1].seed - recipe["seed"] * SEEDS_PER_COLLECTION + 1)


def _meta(env: Env, env_config: EnvConfig, config: DataConfig, actor: Actor | None = None) -> StoreMeta:
    recipe = {
        "collector_version": COLLECTOR_VERSION,
        "env": _settings(env_config),
        "env_version": env.version,
        "seed": config.seed,
        "noise": _noise(config, env, actor) + 0.0,  # -0.0 is no other recipe than 0.0
        "after_success": config.after_success,
    }
    if actor is not None:
        recipe["actor"] = actor.name
    return StoreMeta(
        features=env.features.to_dict(),
        task=env.task_text,
        env=f"{env_config.kind} {_task_name(env_config)}",
        env_version=env.version,
        recipe=recipe,
    )


def _settings(config: EnvConfig) -> dict[str, Any]:
    """Of the world, without those that came later and say what was so before: they make no other recipe."""
    later = {f.name: f.metadata["before"] for f in fields(config) if "before" in f.metadata}
    return {key: value for key, value in asdict(config).items() if key not in later or value != later[key]}


def _task_name(env_config: EnvConfig) -> str:
    """What the adapter calls `task` or `id`."""
    return getattr(env_config, "task", "") or getattr(env_config, "id", "") or env_config.kind


def _find_store(env: Env, meta: StoreMeta, config: DataConfig) -> Store:
    """Open the store that the config asks for, or create it."""
    folder = re.sub(r"[^\w.-]+", "-", meta.env.split(" ", 1)[1])
    path = Path(config.path or config.collected_dir / f"{folder}-{meta.recipe_hash[:12]}")
    if not (path / "meta.json").exists():
        env.reset(seed=config.first_seed)  # which makes the expert
        if env.expert is None:
            raise ValueError(
                f"{meta.env} has no scripted expert: record demonstrations with demos.Store.create(path, meta) and "
                f"store.append(episode), then set data.path to the store (it is {config.path!r} now)"
            )
        _require_seeds(path, config)
        with suppress(FileExistsError):  # of another process that was quicker
            Store.create(path, meta)
    store = Store.open(path)
    _check_fits(store, meta, config)
    return store


def _check_fits(store: Store, meta: StoreMeta, config: DataConfig) -> None:
    if store.spec != meta.spec():
        raise ValueError(
            f"{store.path} does not fit {meta.env}, use another store or environment: its features differ in "
            f"{_differences(store.spec.to_dict(), meta.features)}"
        )
    if len(store) < config.episodes and store.meta.recipe_hash != meta.recipe_hash:
        raise ValueError(
            f"{store.path} has {len(store)} episodes, data.episodes asks for {config.episodes}, and its recipe is not "
            "this one, so it cannot be extended: ask for fewer, or use another data.path"
        )
    if len(store) < config.episodes:
        _require_seeds(store.path, config)


def _require_seeds(path: Path, config: DataConfig) -> None:
    if config.episodes > SEEDS_PER_COLLECTION:
        raise ValueError(
            f"{path} has fewer than the {config.episodes} episodes that data.episodes asks for, and a collection ends "
            f"at {SEEDS_PER_COLLECTION}: ask for fewer"
        )


def _differences(got: Any, expected: Any, name: str = "") -> str:
    """Name the entries in which two nested dicts differ, with both values."""
    if not (isinstance(got, dict) and isinstance(expected, dict)):
        return f"{name} ({got} in the store, {expected} in the environment)"
    keys = sorted(key for key in got.keys() | expected.keys() if got.get(key) != expected.get(key))
    return ", ".join(_differences(got.get(key), expected.get(key), f"{name}.{key}".lstrip(".")) for key in keys)


def _extend(store: Store, config: DataConfig, make_env: Callable[[], Env], progress: bool, actor: Actor | None) -> None:
    """Append episodes until there are enough; the caller holds the writer's lock."""
    # A gap between two kept seeds stands for failures; what failed after the last kept one is tried again.
    seeds = range(config.first_seed + attempts(store), config.first_seed + SEEDS_PER_COLLECTION)
    bar = tqdm(total=config.episodes, initial=len(store), desc=store.meta.env, unit="ep", disable=not progress)
    with bar:
        if seeds and len(store) < config.episodes:
            rollout(
                make_env,
                actor.agent if actor else NoisyExpert(config.noise or 0.0),
                seeds,
                n_envs=config.workers,
                workers="inline" if config.workers == 1 else "process",
                processes=config.workers,
                after_success=config.after_success,
                observers=[StoreWriter(store, config, seeds, bar, relabel=actor is not None)],
                spec=actor.spec if actor else None,
                ask_expert=actor is not None,
            )
    if len(store) < config.episodes:
        raise ValueError(too_few(store, config, SEEDS_PER_COLLECTION))


def attempt(env: Env, config: DataConfig, seed: int) -> Episode | None:
    """Let the expert act once from the seed's start state; None if it fails. Uses only the noise and after_success.

    Raises:
        ValueError: the environment has no expert.
    """
    lane = Lane(env, LaneOptions(config.after_success, NoisyExpert(_noise(config, env)), watched=True))
    reply = lane.run(Begin(whole("seed", seed)))
    if isinstance(reply, WorldError):
        raise reply
    assert isinstance(reply, Finished)  # the expert acts until the end
    recorder = EpisodeRecorder(env.task_text, env.features.control_dt_s)
    for event in reply.events:
        if isinstance(event, StepTaken):
            recorder.step(event)
        else:
            recorder.episode_begins(event)
    return recorder.episode(EpisodeEnds(0, seed, reply.record.steps, reply.record.failure, reply.record))


def run(config: DictConfig) -> None:
    """Collects demonstrations as the configuration says and prints one line about them, task by task."""
    from conf import cli

    root: CollectRoot = cli.typed(config)
    actor = _policy(root.checkpoint) if root.checkpoint else None
    worlds = root.env.each()
    if len(worlds) > 1 and root.data.path:
        raise ValueError("many tasks have a store each, in data.cache_dir; leave out data.path")
    for world in worlds:
        start = time.perf_counter()
        store = collect(world, root.data, actor=actor)
        tried = attempts(store)
        rate = f"{len(store)} of {tried} attempts succeeded ({len(store) / tried:.0%})" if tried else "recorded"
        rate = "of the policy, relabelled by the expert" if actor else rate
        print(f"{store.path}: {len(store)} episodes, {rate}, {time.perf_counter() - start:.1f} s")


def _policy(where: str) -> Actor:
    """The policy of a checkpoint or an export, as the one who acts."""
    import flowhand  # here, because the processes that collect need no more than the world
    from flowhand.control.controller import Controller
    from flowhand.evaluation.unfinished import fingerprint

    policy = flowhand.load(where)
    return Actor(Controller(policy), fingerprint(*policy.settled()), policy.spec)


def main() -> None:
    """Entry point."""
    from conf import cli  # here, because the processes that collect need no more than the world

    cli.program("collect", run)
