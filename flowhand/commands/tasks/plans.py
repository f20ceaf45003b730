"""Plans that a policy samples at held-out states of a page, beside what the expert would do there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np
import torch

import envs
from flowhand.contracts.planner import LoadedPlanner
from flowhand.pages.plans import PlanComparison
from policies.device import cpu_threads

SHOWN = 16  # plans sampled per state
STATES = (0, 2)  # actions before them
REFINED = (1, 2, 4, 10)  # steps from noise to plan, of a head that takes any number of them


def compare_plans(policy: LoadedPlanner, config: envs.EnvConfig, seeds: Sequence[int]) -> list[PlanComparison]:
    """Plans at the beginning of each seed's episode, and further on the expert's way."""
    with closing(envs.make(config)) as env, cpu_threads(1):
        return [comparison for seed in seeds for comparison in _of_episode(policy, env, seed)]


def _of_episode(policy: LoadedPlanner, env: envs.Env, seed: int) -> Iterator[PlanComparison]:
    observation, info = env.reset(seed=seed)
    ways = _refinements(policy)
    for step in range(STATES[-1] + 1):
        assert env.expert is not None
        expert = env.expert(info["expert_observation"])
        if not len(expert):
            return
        if step in STATES:
            noise = torch.randn((SHOWN, *policy.noise_shape), generator=torch.Generator().manual_seed(seed)).numpy()
            seen = {name: np.tile(value, (SHOWN, 1, *[1] * value.ndim)) for name, value in observation.items()}
            horizon = policy.chunk.prediction_horizon
            yield PlanComparison(
                seed=seed,
                step=step,
                instruction=env.task_text,
                picture=np.asarray(env.render()),
                observation={name: np.array(value) for name, value in observation.items()},
                words=[word["text"] for word in info["expert_observation"]["words"]],
                sampled=policy.plan(seen, noise),
                expert=expert[:horizon],
                forming={steps: way.plan({n: v[:1] for n, v in seen.items()}, noise[:1])[0] for steps, way in ways},
            )
        observation, _, terminated, truncated, info = env.step(expert[0])
        if terminated or truncated:
            return


def _refinements(policy: LoadedPlanner) -> list[tuple[int, LoadedPlanner]]:
    """The same policy with other numbers of steps; none where its head has no such number."""
    with_head = getattr(policy, "with_head", None)
    if with_head is None:  # an export is what it is
        return []
    try:
        return [(steps, with_head(steps=steps)) for steps in REFINED]
    except ValueError:  # the head takes one step, or decides token by token
        return []
