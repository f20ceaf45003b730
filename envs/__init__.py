"""The world: simulated tasks behind one interface, and the rollout that runs a policy in them. No torch here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flowhand.contracts.features import Feature, Spec
from flowhand.contracts.modules import import_modules, imported_modules
from flowhand.contracts.provenance import Provenance
from flowhand.contracts.strict import build, nearest
from flowhand.contracts.world import Observation

from .aloha import AlohaConfig, AlohaEnv
from .base import Env, EnvConfig
from .detour import DetourConfig, DetourEnv
from .gymnasium_env import GymnasiumConfig, GymnasiumEnv
from .metaworld import MetaWorldConfig, MetaWorldEnv
from .mujoco import RenderingUnavailable
from .perturb import PerturbConfig, PerturbedEnv
from .pusht import PushTConfig, PushTEnv
from .so101 import SO101Config, SO101Env

# A config is always given to the function beside its own class, which the type cannot say.
ENVS: dict[str, tuple[type[EnvConfig], Callable[[Any], Env]]] = {
    "aloha": (AlohaConfig, AlohaEnv),
    "detour": (DetourConfig, DetourEnv),
    "gymnasium": (GymnasiumConfig, GymnasiumEnv),
    "metaworld": (MetaWorldConfig, MetaWorldEnv),
    "pusht": (PushTConfig, PushTEnv),
    "so101": (SO101Config, SO101Env),
}


def name_of(config: EnvConfig) -> str:
    """What tells this world from others of its kind, in letters that a folder's name can have."""
    name = getattr(config, "task", "") or getattr(config, "id", "") or config.kind
    return re.sub(r"[^\w.-]+", "-", name)


def make(
    config: EnvConfig, perturb: PerturbConfig | None = None, spreads: Mapping[str, Sequence[float]] | None = None
) -> Env:
    """Build the world that the config describes.

    Args:
        config: which world.
        perturb: what disturbs it; None, or a strength of zero, leaves it as it is.
        spreads: of every dimension of the vectors observed, for `observation_noise_relative`.

    Raises:
        ValueError: the kind is unknown, the config is not of the class that belongs to the kind, or the world cannot be
            disturbed so.
    """
    if config.kind not in ENVS:
        raise ValueError(f"unknown kind of env {config.kind!r}: {nearest(config.kind, ENVS)}")
    config_class, build = ENVS[config.kind]
    if not isinstance(config, config_class):
        raise ValueError(f"env kind {config.kind!r} takes a {config_class.__name__}, got a {type(config).__name__}")
    env = build(config)
    return PerturbedEnv(env, perturb, spreads) if perturb and perturb.describe() else env


def reads_recorded(config: EnvConfig) -> bool:
    """Whether the world can observe the states of demonstrations that were recorded elsewhere."""
    return getattr(ENVS[config.kind][1], "observed", Env.observed) is not Env.observed


def env_of(source: Provenance) -> EnvConfig:
    """The environment that a checkpoint was trained in; `ValueError` if this flowhand does not know it."""
    kind = source.env.get("kind")
    if kind == "none":
        raise ValueError("the checkpoint was trained without an environment; give env=... to evaluate it in one")
    if kind not in ENVS:
        raise ValueError(f"the checkpoint's environment {kind!r} is unknown; choices: {', '.join(sorted(ENVS))}")
    if ":" in str(source.env.get("id", "")):
        # Gymnasium imports the module before the colon, and a checkpoint must never name code to run.
        raise ValueError(f"the checkpoint asks to import {source.env['id']!r}; give env=gymnasium env.id=... yourself")
    try:
        return build(ENVS[kind][0], source.env, "provenance.env")
    except ValueError as error:
        if not set(source.modules) - set(imported_modules()):
            raise
        problem = f"the checkpoint was trained with modules=[{','.join(source.modules)}], and never imports by itself"
        raise ValueError(f"{problem}: give modules=[...] if you trust them ({error})") from error


__all__ = [
    "ENVS",
    "AlohaConfig",
    "DetourConfig",
    "Env",
    "EnvConfig",
    "Feature",
    "GymnasiumConfig",
    "MetaWorldConfig",
    "Observation",
    "PerturbConfig",
    "PushTConfig",
    "RenderingUnavailable",
    "SO101Config",
    "Spec",
    "env_of",
    "import_modules",
    "imported_modules",
    "make",
    "name_of",
    "reads_recorded",
]
