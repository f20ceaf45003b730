"""The episodes of an evaluation: the policy's, and the expert's on the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import envs
from conf.verbs.eval import EvaluationConfig
from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.observers import Observer
from flowhand.contracts.planner import LoadedPlanner
from flowhand.control.controller import Controller
from flowhand.evaluation.records import EpisodeRecord
from flowhand.evaluation.unfinished import Unfinished, completed
from policies.device import cpu_threads

from .told import ToldController, words_for


def evaluate(
    policy: LoadedPlanner,
    env: envs.EnvConfig,
    config: EvaluationConfig,
    execution: ExecutionConfig | None = None,
    kept: Unfinished | None = None,
    observers: Sequence[Observer] = (),
) -> list[EpisodeRecord]:
    """Runs the policy on the held-out seeds, of every task; records task by task, in the order of the seeds.

    What is kept of an unfinished evaluation is that of one task.
    """
    records: list[EpisodeRecord] = []
    for world in env.each():
        agent, lanes = agent_of(policy, world, config, execution, observers), lanes_of(config) | {"spec": policy.spec}
        with cpu_threads(1):
            make = world_of(policy, world, config)
            records += completed(kept, seeds_of(config), make, agent, lanes, observers)
    return records


def evaluate_expert(
    env: envs.EnvConfig, config: EvaluationConfig, kept: Unfinished | None = None
) -> list[EpisodeRecord]:
    """Runs the scripted expert on the same seeds, of every task; no records where the environment has none."""
    records: list[EpisodeRecord] = []
    for one in env.each():
        with closing(envs.make(one)) as world:
            if world.expert is None:
                continue
        make_env = partial(envs.make, one, config.perturb.unseen())
        records += completed(kept, seeds_of(config), make_env, "expert", lanes_of(config))
    return records


def agent_of(
    policy: LoadedPlanner,
    env: envs.EnvConfig,
    config: EvaluationConfig,
    execution: ExecutionConfig | None,
    observers: Sequence[Observer] = (),
) -> ToldController:
    """What acts in this world: the policy's controller, told the task."""
    words = words_for(policy.spec, env, config)
    controller = Controller(policy, None, config.inference_batch, config.noise_seed, execution, observers)
    return ToldController(controller, words)


def world_of(policy: LoadedPlanner, env: envs.EnvConfig, config: EvaluationConfig) -> Callable[[], envs.Env]:
    """What builds the world with its perturbations, for this policy's sense of spread."""
    return partial(envs.make, env, config.perturb, policy.observation_spread)


def seeds_of(config: EvaluationConfig) -> range:
    """The held-out seeds."""
    return range(config.seed, config.seed + config.episodes)


def lanes_of(config: EvaluationConfig) -> dict[str, Any]:
    """Options of `rollout`."""
    return {"n_envs": config.n_envs, "workers": config.workers, "stop_at_success": config.stop_at_success}
