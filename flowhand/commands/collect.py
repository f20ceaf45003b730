"""Lets an environment's scripted expert record demonstrations: `flowhand collect env=metaworld ...`.

Execution noise pushes the arm off the expert's path while the recorded label stays what the expert would do there, so
the policy sees how to recover (Laskey et al. 2017, DART). Everything follows from the recipe: the same recipe gives the
same episodes, however often the collection was interrupted or extended and however many processes shared the work.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from envs import Env, EnvConfig, make
from flowhand.contracts import world
from flowhand.contracts.data.episode import Episode
from flowhand.contracts.modules import import_modules, imported_modules
from flowhand.contracts.strict import whole
from flowhand.contracts.world import WorldError
from flowhand.demos.config import COLLECTED, SEEDS_PER_COLLECTION, DataConfig
from flowhand.demos.meta import StoreMeta
from flowhand.demos.native import Store

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from conf.verbs.collect import CollectRoot


COLLECTOR_VERSION = 1  # part of every recipe: raise it when the same settings give other episodes than before
NOISE_STREAM = 1  # keeps the noise independent of what the environment draws from the same seed
MIN_ATTEMPTS = 20  # before the success rate is judged

MakeEnv = Callable[[Any], Env]  # takes the config class of its own environment
Attempt = tuple[int, Episode | None]  # seed, and the episode if it succeeded
Step = tuple[dict[str, np.ndarray], np.ndarray, float, bool]  # observation, clean action, reward, success
AttemptAll = Callable[[Iterable[int]], Generator[Attempt]]

_worker_env: Env  # of a worker process, kept between attempts


def collect(env_config: EnvConfig, config: DataConfig, progress: bool = True, *, make_env: MakeEnv = make) -> Store:
    """Return `config.episodes` demonstrations: those on the disk, and new ones for the rest.

    Args:
        env_config: the environment; its expert acts.
        config: how many, from which seeds, with how much noise, where to.
        progress: show a progress bar with the success rate.
        make_env: builds the environment; with several workers it must be importable by them.

    Raises:
        ValueError: the environment has no expert, its expert fails too often, or the store does not fit the request.
    """
    config = replace(config, episodes=config.episodes or COLLECTED)
    with closing(make_env(env_config)) as env:
        meta = _meta(env, env_config, config)
        store = _find_store(env, meta, config)
        if config.workers == 1:
            attempt_all = partial(_attempt_here, env, config)
        else:
            attempt_all = partial(_attempt_in_processes, partial(make_env, env_config), config)
        if len(store) < config.episodes:
            with store.writing():  # a second process with the same recipe waits here, then finds the episodes
                _extend(store, config, attempt_all, progress)
    return store.head(config.episodes)


def attempts(store: Store) -> int:
    """Number of attempts it took to collect the store's episodes; 0 for a store that was not collected."""
    recipe = store.meta.recipe
    if not len(store) or "collector_version" not in recipe or not isinstance(recipe.get("seed"), int):
        return 0
    return max(0, store[len(store) - 1].seed - _first_seed(recipe["seed"]) + 1)


def _first_seed(seed: int) -> int:
    return seed * SEEDS_PER_COLLECTION


def _meta(env: Env, env_config: EnvConfig, config: DataConfig) -> StoreMeta:
    recipe = {
        "collector_version": COLLECTOR_VERSION,
        "env": asdict(env_config),
        "env_version": env.version,
        "seed": config.seed,
        "noise": float(config.noise) + 0.0,  # -0.0 is no other recipe than 0.0
        "after_success": config.after_success,
    }
    return StoreMeta(
        features=env.features.to_dict(),
        task=env.task_text,
        env=f"{env_config.kind} {_task_name(env_config)}",
        env_version=env.version,
        recipe=recipe,
    )


def _task_name(env_config: EnvConfig) -> str:
    """What the adapter calls `task` or `id`."""
    return getattr(env_config, "task", "") or getattr(env_config, "id", "") or env_config.kind


def _find_store(env: Env, meta: StoreMeta, config: DataConfig) -> Store:
    """Open the store that the config asks for, or create it."""
    folder = re.sub(r"[^\w.-]+", "-", meta.env.split(" ", 1)[1])
    path = Path(config.path or config.collected_dir / f"{folder}-{meta.recipe_hash[:12]}")
    if not (path / "meta.json").exists():
        env.reset(seed=_first_seed(config.seed))  # which makes the expert
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


def _extend(store: Store, config: DataConfig, attempt_all: AttemptAll, progress: bool) -> None:
    """Append episodes until there are enough; the caller holds the writer's lock."""
    first = _first_seed(config.seed)
    # A gap between two kept seeds stands for failures; what failed after the last kept one is tried again.
    seeds = range(first + attempts(store), first + SEEDS_PER_COLLECTION)
    with (
        tqdm(total=config.episodes, initial=len(store), desc=store.meta.env, unit="ep", disable=not progress) as bar,
        closing(attempt_all(seeds)) as outcomes,
    ):
        while len(store) < config.episodes:
            seed, episode = next(outcomes, (None, None))
            tried = SEEDS_PER_COLLECTION if seed is None else seed - first + 1
            if episode is not None:
                store.append(episode)
            elif seed is None or (tried >= MIN_ATTEMPTS and len(store) * config.max_attempts_factor < tried):
                raise ValueError(_too_few(store, config, tried))
            bar.set_postfix_str(f"{len(store)} of {tried} attempts succeeded", refresh=episode is None)
            bar.update(len(store) - bar.n)


def _too_few(store: Store, config: DataConfig, tried: int) -> str:
    return (
        f"{store.meta.env}: {len(store)} of {tried} attempts succeeded, expected at least 1 in "
        f"{config.max_attempts_factor}, and {config.episodes} within {SEEDS_PER_COLLECTION} attempts: lower "
        f"data.noise (now {config.noise}), allow more steps, or raise data.max_attempts_factor"
    )


def _attempt_here(env: Env, config: DataConfig, seeds: Iterable[int]) -> Generator[Attempt]:
    for seed in seeds:
        yield seed, attempt(env, config, seed)


def _attempt_in_processes(make_env: Callable[[], Env], config: DataConfig, seeds: Iterable[int]) -> Generator[Attempt]:
    """Yield the outcomes in the order of the seeds, working a little ahead."""
    executor = ProcessPoolExecutor(
        config.workers,
        multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(make_env, imported_modules()),
    )
    ahead: deque[tuple[int, Future[Episode | None]]] = deque()
    try:
        for seed in seeds:
            ahead.append((seed, executor.submit(_attempt_in_worker, config, seed)))
            if len(ahead) > 2 * config.workers:
                seed_done, future = ahead.popleft()
                yield seed_done, future.result()
        for seed_done, future in ahead:
            yield seed_done, future.result()
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker(make_env: Callable[[], Env], modules: list[str]) -> None:
    global _worker_env
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops the parent, which then stops the workers
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    import_modules(modules)
    _worker_env = make_env()


def _exit_with_parent() -> None:
    """End this worker when its parent was killed and could not say so."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _attempt_in_worker(config: DataConfig, seed: int) -> Episode | None:
    return attempt(_worker_env, config, seed)


def attempt(env: Env, config: DataConfig, seed: int) -> Episode | None:
    """Let the expert act once from the seed's start state; None if it fails. Uses only the noise and after_success.

    Raises:
        ValueError: the environment has no expert.
    """
    seed = whole("seed", seed)
    rng = np.random.default_rng([NOISE_STREAM, seed])
    low, high = env.features.action.bounds()
    noise = config.noise * ~env.features.action.discrete  # none on choices: there is nothing between two of them
    steps: list[Step] = []
    observation, info, _ = world.begin(env, seed)
    expert = env.expert
    if expert is None:
        raise ValueError(f"{env.task_text!r} ({env.version}) has no scripted expert")
    steps_left, over = math.inf, False
    while not over and steps_left > 0:
        clean = np.clip(expert(info["expert_observation"]), low, high).astype(low.dtype)
        noisy = np.clip(clean + noise * rng.standard_normal(clean.shape), low, high).astype(low.dtype)
        # Copies, because an environment may write into the same arrays at every step.
        decided_at = {name: np.array(value) for name, value in observation.items()}
        try:
            step = world.step(env, noisy)
        except WorldError as error:
            raise WorldError(f"{env.task_text!r}, seed {seed}, step {len(steps)}: {error}") from error
        observation, info = step.observation, step.info
        steps.append((decided_at, clean, step.reward, step.success))
        over = step.terminated or step.truncated
        if step.success or math.isfinite(steps_left):
            steps_left = min(steps_left - 1, config.after_success)
    return None if math.isinf(steps_left) else _episode(env, seed, steps)


def _episode(env: Env, seed: int, steps: list[Step]) -> Episode:
    observations, actions, rewards, successes = zip(*steps, strict=True)
    return Episode(
        observation={name: np.stack([each[name] for each in observations]) for name in observations[0]},
        action=np.stack(actions),
        reward=np.array(rewards, np.float32),
        success=np.array(successes, bool),
        task=env.task_text,
        seed=seed,
        control_dt_s=env.features.control_dt_s,
    )


def run(config: DictConfig) -> None:
    """Collects demonstrations as the configuration says and prints one line about them."""
    from conf import cli

    start = time.perf_counter()
    root: CollectRoot = cli.typed(config)
    store = collect(root.env, root.data)
    tried = attempts(store)
    rate = f"{len(store)} of {tried} attempts succeeded ({len(store) / tried:.0%})" if tried else "recorded"
    print(f"{store.path}: {len(store)} episodes, {rate}, {time.perf_counter() - start:.1f} s")


def main() -> None:
    """Entry point."""
    from conf import cli  # here, because the processes that collect need no more than the world

    cli.program("collect", run)
