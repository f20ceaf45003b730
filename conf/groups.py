"""What Hydra composes a verb's configuration from: its class, its choices of components, and their classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any

from hydra.core.config_store import ConfigStore

# Hydra writes nothing of its own: a verb decides where files go.
QUIET = [{"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}]
HYDRA = {"output_subdir": None, "run": {"dir": "."}, "job": {"chdir": False}}
TABLES = {  # group: the module and the name of its table, kind -> (configuration class, class)
    "env": ("envs", "ENVS"),
    "encoder": ("policies.encoders", "ENCODERS"),
    "vision": ("policies.encoders", "VISION"),
    "words": ("policies.encoders", "WORDS"),
    "net": ("policies.nets", "NETS"),
    "head": ("policies.heads", "HEADS"),
    "robot": ("flowhand.robots", "ROBOTS"),
    "driver": ("flowhand.robots.teleoperators", "DRIVERS"),
}


def root(verb: str) -> type:
    """The class of the verb's configuration."""
    return import_module(f"conf.verbs.{verb}").ROOT


def choices(verb: str) -> Mapping[str, str | None]:
    """The verb's choices of components, with what is chosen by default."""
    return import_module(f"conf.verbs.{verb}").CHOICES


def table(group: str) -> dict[str, Any]:
    """The configuration class of every component of a group; empty where the group has recipes or is not installed."""
    if group not in TABLES:
        return {}
    module, name = TABLES[group]
    try:
        found = getattr(import_module(module), name)
    except ModuleNotFoundError as error:  # a robot's computer has neither torch nor a simulator
        if (error.name or "").partition(".")[0] in ("torch", "gymnasium", "mujoco", "safetensors", module):
            return {}
        raise
    configs = {kind: config for kind, (config, _) in found.items()}
    if group == "env":
        from envs.base import NoWorldConfig

        configs["none"] = NoWorldConfig
    return configs


def names(group: str) -> list[str]:
    """What can be chosen of a group."""
    if group in TABLES:
        return sorted(table(group))
    return sorted(name.removesuffix(".yaml") for name in recipes(group))


def recipes(group: str) -> list[str]:
    """The yaml files of a group."""
    from importlib.resources import files

    folder = files("conf").joinpath(group)
    return [entry.name for entry in folder.iterdir() if entry.name.endswith(".yaml")] if folder.is_dir() else []


def register(verb: str) -> None:
    """Makes the verb's configuration and every component that it chooses from known to Hydra."""
    chosen = choices(verb)
    _tell(f"{verb}_schema", root(verb))
    defaults = [f"{verb}_schema", *({group: name} for group, name in chosen.items()), *QUIET, "_self_"]
    _tell(verb, {"defaults": defaults, "hydra": HYDRA})
    for group in chosen:
        for kind, config in table(group).items():
            assert is_dataclass(config)
            _tell(kind, config, group)


_told: dict[tuple[str | None, str], Any] = {}  # what Hydra knows already: it reads a class in milliseconds


def _tell(name: str, node: Any, group: str | None = None) -> None:
    if _told.get((group, name)) != node:
        ConfigStore.instance().store(name=name, node=node, group=group)
        _told[group, name] = node
