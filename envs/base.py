"""What every world offers: dictionaries of arrays in, one action out, and a description of both.

A world is a `gymnasium.Env` whose observation is a flat dictionary of numpy arrays. A seed fixes the start state and
the goal completely, whatever ran in the same object before. The world never stops at success; the rollout decides
about that.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Dict

from flowhand.contracts.features import Spec
from flowhand.contracts.strict import nearest
from flowhand.contracts.world import Expert, Observation

from .mujoco import Physics
from .spaces import FeatureSpace


@dataclass
class EnvConfig:
    """The choice of a world; every adapter adds its own fields."""

    kind: str = "???"  # a key of envs.ENVS

    def each(self) -> Sequence[EnvConfig]:
        """A configuration for every task that this one names; itself, where there is one task."""
        return [self]


@dataclass
class NoWorldConfig(EnvConfig):
    """No world: a training on recorded demonstrations that evaluates nothing."""

    kind: str = "none"


def as_named(task: Any, names: Sequence[str]) -> Any:
    """The task of a configuration, where a list of one is that one: its demonstrations are the same."""
    return names[0] if len(names) == 1 else task


def tasks_named(task: Any, known: Collection[str], sets: Mapping[str, Sequence[str]], what: str) -> list[str]:
    """The tasks that a configuration names: one, a list of them, or those of a set.

    Raises:
        ValueError: one is unknown or named twice; the nearest ones are named.
    """
    names = [*sets[task]] if isinstance(task, str) and task in sets else [task] if isinstance(task, str) else task
    if not isinstance(names, list | tuple) or not names or len(set(map(str, names))) < len(names):
        raise ValueError(f"the {what} task is {task!r}, expected a name or a list of names that differ")
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {what} task {name!r}: {nearest(str(name), [*known, *sets])}")
    return list(names)


class Env(gymnasium.Env[Observation, np.ndarray]):
    """A world to act in.

    `reset(seed=...)` and `step(action)` follow Gymnasium. Where there is a scripted expert, their `info` holds what it
    sees as `expert_observation`, which may be more than the policy sees. The `info` of `step` always holds `success`
    (bool, this step). It may hold `failure`, what kind of failure it is, in words, if the episode ends here; `mode`,
    which of several ways the episode has taken; and, at every step or at none, `score`, a number that is larger where
    more of the task is done: an episode's score is its largest.

    Attributes:
        features: names, shapes, dtypes, units and ranges of observation and action, and the control period, from which
            Gymnasium's spaces are made. (Its own attribute `spec` is how the world was registered.)
        task: the short name of the task, as it stands in records.
        task_text: the task as an instruction in plain English.
        version: the simulator and its version.
        expert: a function from `info["expert_observation"]` to an action, made anew by every `reset`, or None.
        perturbation: what disturbs the world, as it stands in records; empty if nothing does.
        physics: MuJoCo's model and data, or None in a world without.
        rest: the action at which the robot stands still, for each dimension, where that is None by repeating the last
            one; None: not known.
    """

    features: Spec
    task: str
    task_text: str
    version: str
    expert: Expert | None = None
    perturbation: str = ""
    physics: Physics | None = None
    rest: Sequence[float | None] | None = None
    metadata: ClassVar[dict] = {"render_modes": ["rgb_array"]}  # pyright: ignore[reportIncompatibleVariableOverride]
    render_mode = "rgb_array"

    @cached_property
    def action_space(self) -> FeatureSpace:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The space of the actions, as the features say."""
        return FeatureSpace(self.features.action)

    @cached_property
    def observation_space(self) -> Dict:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The space of the observations, as the features say."""
        return Dict({name: FeatureSpace(feature) for name, feature in self.features.observation.items()})

    def observed(self, recorded: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What this world observes in the states of demonstrations that were recorded elsewhere, for every step.

        Args:
            recorded: the observations of N steps as they are recorded, each (N, ...).

        Raises:
            ValueError: this world knows no such recordings, or they lack what it needs.
        """
        raise ValueError(
            f"{self.task} cannot observe recorded {', '.join(recorded)}; env=none trains on any recorded set"
        )

    def mirrored(
        self, recorded: Mapping[str, np.ndarray], action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Recorded observations, each (N, ...), and actions (N, A) as in a mirror that leaves the task as it is.

        Raises:
            ValueError: there is no such mirror.
        """
        raise ValueError(f"{self.task} has no mirror image that is the same task; set data.mirror=false")

    def widen_start(self, factor: float) -> None:
        """Draw starts and goals, from the next reset on, from a range `factor` times as wide about the same centre.

        Raises:
            ValueError: this world cannot.
        """
        raise ValueError(f"{self.task} has no range of start states that can be widened; set initial_shift=0")
