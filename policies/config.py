"""Configurations from JSON: only kinds that stand in the tables, only fields that exist, only values of their type."""

from __future__ import annotations

from typing import Any

from flowhand.contracts.features import ChunkConfig
from flowhand.contracts.strict import build, mapping

from .encoders import ENCODERS, VISION, WORDS
from .heads import HEADS
from .nets import NETS
from .normalizer import NormalizerConfig
from .policy import PolicyConfig
from .representation.config import ActionConfig, earlier

TABLES = {"encoder": ENCODERS, "vision": VISION, "words": WORDS, "net": NETS, "head": HEADS}
BEFORE = {
    "vision": {"kind": "none"},
    "words": {"kind": "none"},
}  # what a configuration from before there was the group means


def policy_config(data: Any) -> PolicyConfig:
    """A policy configuration from its JSON form, the inverse of `dataclasses.asdict`.

    Raises:
        ValueError: an unknown kind, an unknown or missing field, a value of the wrong type or out of range.
    """
    values = {**BEFORE, **mapping(data, "policy")}
    for group, table in TABLES.items():
        part = mapping(values.get(group), f"policy.{group}")
        kind = part.get("kind")
        if not isinstance(kind, str) or kind not in table:
            raise ValueError(f"policy.{group}.kind is {kind!r}; choices: {', '.join(sorted(table))}")
        values[group] = build(table[kind][0], part, f"policy.{group}")
    values.setdefault("action", earlier())
    for name, cls in (("chunk", ChunkConfig), ("action", ActionConfig), ("normalizer", NormalizerConfig)):
        values[name] = build(cls, values.get(name), f"policy.{name}")
    return build(PolicyConfig, values, "policy")
