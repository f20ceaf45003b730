"""Any Gymnasium environment with Box observations (alone or in a Dict) as a world."""

from __future__ import annotations

import json
import math
import operator
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.spaces import Box, Dict, Space

from flowhand.contracts import world
from flowhand.contracts.features import Feature, Spec
from flowhand.contracts.strict import nearest, whole
from flowhand.contracts.world import Observation

from .base import Env, EnvConfig
from .mujoco import Physics, RenderingUnavailable, choose_gl_backend, rendering_help
from .spaces import ActionVector, known_bounds

ADAPTERS_OWN = {"id", "max_episode_steps", "disable_env_checker", "render_mode"}  # arguments of gymnasium.make


@dataclass
class GymnasiumConfig(EnvConfig):
    """A registered Gymnasium id, and what Gymnasium does not say about it.

    Raises:
        ValueError: the id is unknown, or a number is out of range.
    """

    kind: str = "gymnasium"
    id: str = ""  # a registered id such as "Reacher-v5"; `modules` names the package that registers it
    # Arguments of the environment itself by name, plain JSON values. Not typed as the dict they are, since Hydra would
    # then let the command line only change what is there.
    kwargs: Any = field(default=None, metadata={"before": None})
    max_steps: int = 0  # control steps until truncation; 0 takes the id's own limit
    success_key: str = "success"  # the entry of info that holds success, read unless success_return is given
    success_return: float | None = None  # success is a sum of rewards of at least this
    control_dt_s: float = 0.0  # seconds per step; 0 takes the environment's own dt or render_fps
    task_text: str = ""  # the instruction in plain English; empty takes the id

    def __post_init__(self):
        if not self.id:
            raise ValueError("id is empty: set a registered Gymnasium id such as Reacher-v5")
        # "module:Name-v0" would import the module: a config must not name code to run.
        if ":" in self.id:
            raise ValueError(f"id {self.id!r} names a module: give it with modules=[...], and the part after the colon")
        if self.id not in gymnasium.registry:
            raise ValueError(
                f"unknown Gymnasium id {self.id!r}: {_suggest(self.id)}, or name the package that registers it with "
                "modules=[PACKAGE] on the command line"
            )
        self.kwargs = _plain_arguments({} if self.kwargs is None else self.kwargs)
        self.max_steps = operator.index(self.max_steps)
        for name in ("control_dt_s", "success_return"):
            value = world.plain(getattr(self, name))  # stored as it is meant, whichever of numpy's types it has
            setattr(self, name, float(value) if isinstance(value, int) else value)
        if self.success_return is not None and not math.isfinite(self.success_return):
            raise ValueError(f"success_return is {self.success_return}, expected a finite sum of rewards")
        if self.max_steps < 0:
            raise ValueError(f"max_steps is {self.max_steps}, expected 0 (the id's own limit) or more")
        if not (math.isfinite(self.control_dt_s) and self.control_dt_s >= 0):
            raise ValueError(f"control_dt_s is {self.control_dt_s}, expected seconds, or 0 for the environment's own")


class GymnasiumEnv(Env):
    """A Gymnasium environment as a world.

    Box parts become 1-D float32 arrays, images (uint8, three dimensions) stay as they are; a Box alone is called
    "state" or "image". Actions are handed over unclipped, in the form, dtype and shape of the action space;
    its discrete parts stand in the action vector as indices of choices (see spaces.py).

    Raises:
        ValueError: a space is of another kind, or the step limit or control period is neither known nor given.
    """

    def __init__(self, config: GymnasiumConfig):
        self.config = config
        self._raw = _make(config)
        parts = _observation_parts(self._raw.observation_space)
        self._actions = ActionVector(self._raw.action_space)
        self._return = 0.0
        observation = {name: _observation_feature(box) for name, box in parts.items()}
        self.features = Spec(observation, self._actions.feature, _control_dt_s(self._raw, config))
        self.task = config.id
        self.task_text = config.task_text or config.id
        self.version = f"gymnasium {gymnasium.__version__}, {config.id}"
        inner: Any = self._raw.unwrapped
        if type(getattr(inner, "model", None)).__name__ == "MjModel":
            self.physics = Physics(inner.model, inner.data, body=1)  # 0 is the world, 1 the root of the robot

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        """Start the episode that belongs to the seed."""
        seed = None if seed is None else whole("seed", seed)
        super().reset(seed=seed, options=options)
        observation, given = self._raw.reset(seed=seed, options=options)
        self._return = 0.0
        info = {name: value for name, value in given.items() if name != "success"}
        if self.config.success_return is not None or self.config.success_key in given:
            info["success"] = self._success(given)
        return self._observation(observation), info

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict]:
        """Act for one control period.

        Raises:
            ValueError: an index that is no choice; success cannot be told (the message names the keys of info).
        """
        native = self._actions.native(np.asarray(action))
        observation, reward, terminated, truncated, info = self._raw.step(native)
        self._return += world.real(reward, "the reward")
        info = {**info, "success": self._success(info)}
        return self._observation(observation), float(reward), bool(terminated), bool(truncated), info

    def render(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the environment's own image, uint8 (H, W, 3).

        Raises:
            RenderingUnavailable: the environment has no images, or its renderer does not work here.
        """
        if self._raw.render_mode != "rgb_array":
            raise RenderingUnavailable(f"{self.config.id} does not offer the render mode rgb_array")
        try:
            return np.asarray(self._raw.render(), dtype=np.uint8)
        except gymnasium.error.DependencyNotInstalled as error:
            raise RenderingUnavailable(f"{self.config.id}: {error}") from error
        # What a missing OpenGL library raises depends on the backend: AttributeError, ImportError, RuntimeError ...
        except Exception as error:
            raise RenderingUnavailable(f"{self.config.id}: {error}. {rendering_help()}") from error

    def close(self) -> None:
        """Close the environment."""
        self._raw.close()

    def _success(self, info: dict) -> bool:
        if self.config.success_return is not None:
            return self._return >= self.config.success_return
        if self.config.success_key not in info:
            raise ValueError(
                f"{self.config.id} does not say whether it succeeded: info has no {self.config.success_key!r}, only "
                f"{sorted(map(str, info)) or 'nothing'}; set success_key to one of these, or success_return to the sum "
                "of rewards that counts as success"
            )
        return world.truth(info[self.config.success_key], f"info[{self.config.success_key!r}]")

    def _observation(self, raw: Any) -> Observation:
        if not isinstance(raw, dict):
            (name,) = self.features.observation
            raw = {name: raw}
        features = self.features.observation
        return {name: np.array(raw[name], one.dtype).reshape(one.shape) for name, one in features.items()}


def _make(config: GymnasiumConfig) -> gymnasium.Env:
    spec = gymnasium.spec(config.id)
    limit = config.max_steps or spec.max_episode_steps
    if limit is None:
        raise ValueError(f"{config.id} has no step limit of its own: set max_steps")
    choose_gl_backend()  # before the environment's own package imports mujoco
    try:
        # Gymnasium fixes the render mode at construction, and refuses or warns where the environment does not know it.
        mode = {"render_mode": "rgb_array"} if "rgb_array" in _render_modes(spec) else {}
        return gymnasium.make(spec, max_episode_steps=limit, disable_env_checker=True, **mode, **config.kwargs)
    except gymnasium.error.DependencyNotInstalled as error:
        raise ValueError(f"{config.id} needs what is not installed here: {error}") from error
    except TypeError as error:
        raise ValueError(f"{config.id} cannot be made with env.kwargs={config.kwargs}: {error}") from error


def _plain_arguments(kwargs: Any) -> dict[str, Any]:
    """A copy, as it comes back from a file.

    Raises:
        ValueError: something that JSON has not, or an argument that the adapter gives itself.
    """
    if not isinstance(kwargs, dict):
        raise ValueError(f"env.kwargs is {kwargs!r}, expected the names and values of arguments")
    if taken := sorted(ADAPTERS_OWN & kwargs.keys()):
        raise ValueError(f"env.kwargs holds {taken}, which are not the environment's own; max_steps is a field of env")
    try:
        copied = json.loads(json.dumps(kwargs, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"env.kwargs must be plain JSON values: {error}") from error
    if copied != kwargs:
        raise ValueError(f"env.kwargs is {kwargs!r}, expected a dict of plain JSON values, with lists and no tuples")
    return copied


def _render_modes(spec: EnvSpec) -> list[str]:
    creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    return getattr(creator, "metadata", {}).get("render_modes", [])


def _suggest(id: str) -> str:
    # A name without its version, or with another one, is nearer than any other string.
    name = id.partition("-v")[0].lower()
    versions = [known for known in gymnasium.registry if known.rpartition("-v")[0].lower() == name]
    return f"did you mean {', '.join(versions)}?" if versions else nearest(id, gymnasium.registry)


def _observation_parts(space: Space) -> dict[str, Box]:
    if isinstance(space, Box):
        return {"image" if _is_image(space) else "state": space}
    if isinstance(space, Dict):
        parts = {name: part for name, part in space.items() if isinstance(part, Box)}
        if len(parts) == len(space):
            return parts
    raise ValueError(f"the observation space is {space}, expected a Box or a Dict of Boxes")


def _is_image(box: Box) -> bool:
    return box.dtype == np.uint8 and len(box.shape) == 3


def _observation_feature(box: Box) -> Feature:
    if _is_image(box):  # 150,000 equal bounds would only swell the description; uint8 says them
        return Feature(box.shape, "uint8", "1")
    return Feature((math.prod(box.shape),), "float32", "unknown", known_bounds(box.low), known_bounds(box.high))


def _control_dt_s(env: gymnasium.Env, config: GymnasiumConfig) -> float:
    if config.control_dt_s:
        return config.control_dt_s
    own, rate = (world.plain(value) for value in (getattr(env.unwrapped, "dt", None), env.metadata.get("render_fps")))
    if isinstance(own, int | float) and 0 < own < math.inf:
        return float(own)
    if isinstance(rate, int | float) and 0 < rate < math.inf:
        return 1.0 / rate
    raise ValueError(f"{config.id} does not say how long a step takes: set control_dt_s (seconds)")
