"""Perturbations: a world that disturbs the policy, by configuration and at any strength.

Not every world can have every one: see docs/evaluate.md. What cannot be had is a `ValueError` when the world is made.

Everything is drawn from the episode's seed, every perturbation from a stream of its own. So an episode is the same
whatever ran before, turning one perturbation on changes no other's draws, and at another strength the same draws are
scaled: success at two strengths can be compared pair by pair.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from flowhand.contracts.strict import nearest, whole
from flowhand.contracts.world import Observation

from .base import Env
from .mujoco import Physics, load_mujoco

STRENGTHS = {  # the value of each that leaves the world as it is
    "initial_shift": 0.0,
    "observation_noise": 0.0,
    "observation_noise_relative": 0.0,
    "observation_delay": 0,
    "frame_drop": 0.0,
    "action_noise": 0.0,
    "action_delay": 0,
    "push": 0.0,
    "mass_scale": 1.0,
    "friction_scale": 1.0,
}
STREAMS = ("observation", "drop", "action", "push")  # of random numbers


@dataclass
class PerturbConfig:
    """What disturbs a world; several at once are possible, and the defaults disturb nothing.

    The scripted expert meets the same start, pushes, masses, friction and actions, but sees the world as it is.

    Raises:
        ValueError: a number out of range.
    """

    # Start and goal are drawn from a range 1 + this times as wide about the same centre, so that 0 is what was
    # demonstrated and at 1 half of each dimension's draws lie outside. Meta-World: position of object and goal, as far
    # as the task draws them; detour: y of start and goal; a Gymnasium world cannot. Nothing keeps the task possible:
    # compare with the expert.
    initial_shift: float = 0.0
    observation_noise: float = 0.0  # standard deviation of normal noise on every value of a vector, in its own unit
    observation_noise_relative: float = 0.0  # the same, in spreads of the dimension as the policy's normalizer has them
    observation_delay: int = 0  # control steps; the first observation repeats meanwhile
    frame_drop: float = 0.0  # probability, in [0, 1), that an observation is lost and the last one repeats
    action_noise: float = 0.0  # standard deviation of normal noise on every number executed, in its own unit
    action_delay: int = 0  # control steps; the first action is executed meanwhile
    push: float = 0.0  # force of pushes in a random horizontal direction over the mass of what is pushed, m/s^2
    push_interval_s: float = 1.0  # mean time from the end of a push to the next one (random), seconds
    push_duration_s: float = 0.1  # of each push, seconds
    mass_scale: float = 1.0  # factor on mass and inertia of a body and what is fixed to it
    friction_scale: float = 1.0  # factor on the friction of all contacts
    body: str = ""  # MuJoCo body for push and mass_scale; empty: the object to be handled, or the root of the robot

    def __post_init__(self) -> None:
        for name, neutral in STRENGTHS.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"perturb.{name}={value} must be a number of at least 0; {neutral} is none")
        if self.frame_drop >= 1:
            raise ValueError(f"perturb.frame_drop={self.frame_drop} must lie in [0, 1)")
        for name in ("push_interval_s", "push_duration_s", "mass_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"perturb.{name}={getattr(self, name)} must be positive")

    def unseen(self) -> PerturbConfig:
        """The same without what disturbs only the observation: what a scripted expert meets."""
        sight = {name: neutral for name, neutral in STRENGTHS.items() if name.startswith(("observation", "frame"))}
        return replace(self, **sight)

    def describe(self) -> str:
        """What is on, as `name=value` of every field that differs from its default; empty if nothing is."""
        if all(getattr(self, name) == neutral for name, neutral in STRENGTHS.items()):
            return ""
        changed = [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default]
        return " ".join(f"{name}={value}" for name, value in changed)


class PerturbedEnv(Env):
    """A world seen through noise, delay and loss, acted on through noise and delay, pushed and altered.

    Args:
        env: the world; it belongs to this one, which alters and closes it.
        config: what disturbs it.
        spreads: of every dimension of the vectors observed, for `observation_noise_relative`.

    Raises:
        ValueError: the world cannot be disturbed so; the message says why.
    """

    def __init__(self, env: Env, config: PerturbConfig, spreads: Mapping[str, Sequence[float]] | None = None):
        self._env = env
        self.config = config
        if config.initial_shift:
            env.widen_start(1 + config.initial_shift)
        self.features, self.task, self.task_text, self.version = env.features, env.task, env.task_text, env.version
        self.expert, self.physics, self.rest = env.expert, env.physics, env.rest
        self.perturbation = config.describe()
        self._noise = self._noise_levels(spreads or {})
        self._continuous = ~env.features.action.discrete
        if config.action_noise and not self._continuous.any():
            raise ValueError(f"{env.task} has only choices to act with, and perturb.action_noise is for numbers")
        if config.push or config.mass_scale != 1 or config.friction_scale != 1:
            self._alter()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        """Start the episode that belongs to the seed, with the perturbations that belong to it."""
        seed = None if seed is None else whole("seed", seed)
        super().reset(seed=seed, options=options)
        seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self._random = {name: np.random.default_rng([seed, stream]) for stream, name in enumerate(STREAMS)}
        self._seen: deque[Observation] = deque(maxlen=self.config.observation_delay + 1)
        self._wanted: deque[np.ndarray] = deque(maxlen=self.config.action_delay + 1)
        self._received: Observation | None = None
        self._push_left = 0  # control steps of the present push still to come
        if self.config.push:  # before the reset, for nothing of the last episode may survive
            self._exert(np.zeros(2))
        observation, info = self._env.reset(seed=seed, options=options)
        self.expert = self._env.expert
        return self._perceive(observation), info

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict]:
        """Act for one control period, with an earlier action where actions are delayed."""
        self._wanted.append(np.asarray(action, dtype=np.float32))
        action = self._wanted[0]
        if self.config.action_noise:
            noise = self._random["action"].standard_normal(action.shape, np.float32)
            action = action + np.float32(self.config.action_noise) * np.where(self._continuous, noise, 0)
        if self.config.push:
            self._push()
        observation, reward, terminated, truncated, info = self._env.step(action)
        return self._perceive(observation), float(reward), terminated, truncated, info

    def render(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the world's own image, without what disturbs the observation."""
        return np.asarray(self._env.render())

    def close(self) -> None:
        """Close the world."""
        self._env.close()

    def _noise_levels(self, spreads: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
        """Standard deviations (size,) of the noise on every vector observed; none where there is no noise."""
        absolute, relative = self.config.observation_noise, self.config.observation_noise_relative
        if not (absolute or relative):
            return {}
        vectors = {
            name: f for name, f in self.features.observation.items() if f.kind == "state" and f.dtype == "float32"
        }
        if not vectors:
            raise ValueError(f"{self.task} has no vector to observe, and noise is for vectors")
        levels = {}
        for name, feature in vectors.items():
            size = feature.size
            spread = np.asarray(spreads.get(name, np.zeros(size)), np.float32)
            if relative and (name not in spreads or spread.shape != (size,)):
                raise ValueError(
                    f"perturb.observation_noise_relative needs the spreads of {name!r}, {size} numbers; "
                    f"got {sorted(spreads)}"
                )
            levels[name] = np.hypot(np.float32(absolute), np.float32(relative) * spread)
        return levels

    def _perceive(self, observation: Observation) -> Observation:
        """What the policy gets of the world's present observation."""
        noisy = dict(observation)
        for name, level in self._noise.items():
            noise = self._random["observation"].standard_normal(level.shape, np.float32)
            noisy[name] = observation[name] + (level * noise).reshape(observation[name].shape)
        self._seen.append(noisy)
        lost = self.config.frame_drop > 0 and self._random["drop"].random() < self.config.frame_drop
        if not lost or self._received is None:  # the first observation always arrives
            self._received = self._seen[0]
        return dict(self._received)

    def _alter(self) -> None:
        """Scale masses and friction, and note what pushes need to know."""
        if self.physics is None:
            raise ValueError(f"{self.task} is not simulated by MuJoCo, which push, mass_scale and friction_scale need")
        mujoco, model = load_mujoco(), self.physics.model
        self._body = _find_body(self.physics, self.config.body)
        rigid = model.body_weldid == model.body_weldid[self._body]  # the body and what is fixed to it
        self._force = self.config.push * model.body_mass[rigid].sum()  # the same whatever mass_scale is
        model.body_mass[rigid] *= self.config.mass_scale
        model.body_inertia[rigid] *= self.config.mass_scale
        model.geom_friction[:] *= self.config.friction_scale
        model.pair_friction[:] *= self.config.friction_scale
        mujoco.mj_setConst(model, mujoco.MjData(model))  # what MuJoCo has derived from the masses

    def _push(self) -> None:
        """Begin, go on with or end a push."""
        dt, random = self.features.seconds(), self._random["push"]
        begins, angle = random.random() < dt / self.config.push_interval_s, random.uniform(0, 2 * math.pi)
        if self._push_left == 0 and begins:
            self._push_left = math.ceil(round(self.config.push_duration_s / dt, 6))
            self._direction = np.array([math.cos(angle), math.sin(angle)])
        self._exert(self._direction * self._force if self._push_left else np.zeros(2))
        self._push_left = max(0, self._push_left - 1)

    def _exert(self, force: np.ndarray) -> None:
        """Apply a horizontal force (2,), in N, at the body's centre of mass until the next call."""
        assert self.physics is not None
        self.physics.data.xfrc_applied[self._body, :2] = force


def _find_body(physics: Physics, name: str) -> int:
    if not name:
        return physics.body
    names = [physics.model.body(i).name for i in range(1, physics.model.nbody)]
    if name not in names:
        raise ValueError(f"perturb.body={name!r} is no body of this world: {nearest(name, filter(None, names))}")
    return names.index(name) + 1
