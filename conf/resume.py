"""What a resumed run takes from the file of the run that it goes on with, and in what it may differ from it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from flowhand.contracts.execution import ExecutionConfig
from policies.normalizer import NormalizerConfig

# They say where things go and what is imported, which the user at hand decides.
NOT_FROM_A_FILE = {"resume", "out", "wandb", "hydra", "modules"}
# What is learned follows from these parts of the configuration; a resumed run has them as it began.
LEARNED = {"action", "chunk", "normalizer", "encoder", "vision", "words", "net", "head", "train", "data"}
# Fields that are gone: a run that began with them goes on, for what they led to stands in its weights.
REMOVED = tuple(f"normalizer.{name}" for name in NormalizerConfig.removed)

# Settings that have another name now: a part of the name before, and after.
RENAMED = {
    "demos": "data",
    **{f"eval.{f.name}": f"execution.{f.name}" for f in fields(ExecutionConfig)},
}

# What may differ when a run is resumed: it changes what is shown and where, not what is learned.
FREE_ON_RESUME = (
    *REMOVED,
    "resume",
    "out",
    "modules",
    "eval",
    "wandb",
    "execution",
    "data.path",
    "words.model",
    "data.cache_dir",
    "data.cache_gb",
    "data.memory_gb",
    "data.prefetch",
    "data.workers",
    *(f"train.{name}" for name in ("save_every", "log_every", "eval_every", "device", "threads", "timeout_s")),
)


def stored_overrides(state: Mapping[str, Any], where: Path) -> list[str]:
    """The overrides of a training state that a resumed run takes: it may come from a stranger.

    Raises:
        ValueError: they are no list of plain settings. An interpolation could read the environment of who resumes.
    """
    overrides = state.get("overrides")
    if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
        raise ValueError(f"{where} does not say with which settings its run was started; start a new run")
    if odd := [override for override in overrides if "${" in override]:
        raise ValueError(f"{where} holds the setting {odd[0][:200]!r}; no interpolation is taken from a file")
    parsed = OverridesParser.create().parse_overrides(overrides)
    if odd := [p.input_line or "" for p in parsed if p.is_sweep_override() or p.is_delete()]:
        raise ValueError(f"{where} holds the setting {odd[0][:200]!r}; a file can only give values")
    return [
        renamed(override)
        for override, p in zip(overrides, parsed, strict=True)
        if re.split(r"[./@]", p.key_or_group or "")[0] not in NOT_FROM_A_FILE and p.key_or_group not in REMOVED
    ]


def renamed(override: str) -> str:
    """A stored override with the names of now."""
    sign, name, rest = re.fullmatch(r"([+~]*)([^=]*)(.*)", override, re.DOTALL).groups()  # pyright: ignore[reportOptionalMemberAccess]
    for before, after in RENAMED.items():
        if name == before or name.startswith(f"{before}."):
            name = after + name[len(before) :]
    return f"{sign}{name}{rest}"


def with_names_of_now(saved: object) -> dict[str, Any]:
    """A stored configuration with the names of now."""
    found: dict[str, Any] = dict(saved) if isinstance(saved, Mapping) else {}
    for before, after in RENAMED.items():
        part, _, name = before.rpartition(".")
        source = found.get(part) if part else found
        if not isinstance(source, Mapping) or name not in source:
            continue
        value, rest = source[name], {key: each for key, each in source.items() if key != name}
        if not part:
            found = {**rest, after: value}
            continue
        target, _, last = after.rpartition(".")
        found = {**found, part: rest, target: {**found.get(target, {}), last: value}}
    return found


def completed(saved: object, config: DictConfig) -> dict[str, Any]:
    """A stored configuration with the fields that came later, as `strict.build` completes a checkpoint's."""
    filled, kind = dict(saved) if isinstance(saved, Mapping) else {}, OmegaConf.get_type(config)
    for f in fields(kind) if is_dataclass(kind) else ():
        if f.name not in filled and "before" in f.metadata:
            filled[f.name] = f.metadata["before"]
        elif f.name in filled and isinstance(config[f.name], DictConfig):
            filled[f.name] = completed(filled[f.name], config[f.name])
    return filled


def as_it_began(saved: object, config: DictConfig) -> list[str]:
    """Overrides for what the run began with by default, or without a choice, and now has another default."""
    now: Any = OmegaConf.to_container(config)
    changed = differences(completed(saved, config), now)
    kinds = {key.removesuffix(".kind") for key, _, _ in changed if key.endswith(".kind")}  # another class altogether
    return [
        f"{key}={json.dumps(old)}"
        for key, old, new in changed
        if key.split(".")[0] in LEARNED - kinds and not _free(key) and _plain(old) and _has(now, key)
    ]


def require_same(saved: object, config: Mapping[str, Any], where: str) -> None:
    """Raises `ValueError` naming the first field that would make the resumed run another run."""
    for key, old, new in differences(saved if isinstance(saved, Mapping) else {}, config):
        if (key, old, new) == ("env.kwargs", None, {}):
            continue  # a run from before there were any
        if not _free(key):
            raise ValueError(f"{where} was trained with {key}={old!r}, now it is {new!r}; start a new run to change it")


def _plain(value: object) -> bool:
    return all(map(_plain, value)) if isinstance(value, list) else isinstance(value, str | int | float)


def _has(config: Any, key: str) -> bool:
    """Whether there is such a field, whatever its value."""
    for name in key.split("."):
        if not isinstance(config, Mapping) or name not in config:
            return False
        config = config[name]
    return True


def _free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE_ON_RESUME)


def differences(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """The fields in which two nested configurations differ, with both values."""
    found = []
    for key in sorted(a.keys() | b.keys()):
        x, y, name = a.get(key), b.get(key), f"{prefix}{key}"
        if isinstance(x, Mapping) and isinstance(y, Mapping):
            found += differences(x, y, f"{name}.")
        elif x != y:
            found.append((name, x, y))
    return found
