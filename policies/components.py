"""The parts of a policy, by the kinds that its configuration names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flowhand.contracts.data.tasks import SOURCE
from flowhand.contracts.features import Spec

from .encoders import ENCODERS, VISION, WORDS, Encoder, compose
from .fields import Fields
from .heads import HEADS
from .heads.base import Head, HeadConfig

if TYPE_CHECKING:
    from .policy import PolicyConfig


def component(table: Mapping[str, tuple[Any, Any]], config: Any, group: str) -> Any:
    """The class that the table names for this configuration; `ValueError` lists the choices."""
    if config.kind not in table:
        raise ValueError(f"{group}={config.kind!r} is unknown; choices: {', '.join(sorted(table))}")
    return table[config.kind][1]


def encoder_of(config: PolicyConfig, spec: Spec) -> Encoder:
    """The encoder of all that a policy observes but its source, which only says whose statistics it takes.

    Raises:
        ValueError: a feature that no chosen encoder takes.
    """
    groups = (("encoder", config.encoder, ENCODERS), ("vision", config.vision, VISION), ("words", config.words, WORDS))
    found = [(each, component(table, each, group)) for group, each, table in groups]
    seen = {name: feature for name, feature in spec.observation.items() if name != SOURCE}
    parts = [(each, cls) for each, cls in found if cls]
    return compose(parts, replace(spec, observation=seen), config.chunk.history, config.net.attends)


def head_of(config: HeadConfig, encoder: Encoder, fields: Fields) -> Head:
    """A head for what this encoder tells and actions of these fields."""
    head = component(HEADS, config, "head")(config, encoder.size, encoder.tokens)
    head.arrange(fields)
    return head
