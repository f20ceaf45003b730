"""Observations of several kinds: each kind has its encoder, and what they give becomes one conditioning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor, nn

from flowhand.contracts.features import Feature, Spec

from ..conditioning import Conditioning
from .base import Encoder, EncoderConfig
from .vision.config import KINDS, VisionConfig
from .words.config import WordsConfig


class FusedEncoder(Encoder):
    """Vectors side by side, tokens one after the other; narrower tokens are widened by a linear layer."""

    def __init__(self, parts: Mapping[str, Encoder]):
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.size = sum(part.size for part in parts.values())
        given = {kind: part.tokens for kind, part in parts.items() if part.tokens[0]}
        width = max((w for _, w in given.values()), default=0)
        self.tokens = (sum(n for n, _ in given.values()), width)
        firsts, first = {}, 0
        for part in parts.values():
            firsts |= {name: (first + start, count) for name, (start, count) in part.row_tokens.items()}
            first += part.tokens[0]
        self.row_tokens = firsts
        self.widen = nn.ModuleDict({kind: nn.Linear(w, width) for kind, (_, w) in given.items() if w != width})

    def forward(self, observation: dict[str, Tensor], generator: Generator | None = None) -> Conditioning:
        """The conditioning of all kinds together."""
        found = {kind: part(observation, generator) for kind, part in self.parts.items()}
        vector = torch.cat([cond.vector_BE for cond in found.values()], dim=1)
        tokens, masks = [], []
        for kind, cond in found.items():
            if cond.tokens_BNW is not None:
                tokens.append(self.widen[kind](cond.tokens_BNW) if kind in self.widen else cond.tokens_BNW)
                masks.append(cond.mask_BN)
        if not tokens:
            return Conditioning(vector)
        if all(mask is None for mask in masks):
            return Conditioning(vector, torch.cat(tokens, dim=1))
        all_count = [torch.ones(each.shape[:2], dtype=torch.bool, device=each.device) for each in tokens]
        known = [one if mask is None else mask for mask, one in zip(masks, all_count, strict=True)]
        return Conditioning(vector, torch.cat(tokens, dim=1), torch.cat(known, dim=1))


def compose(
    encoders: Sequence[tuple[EncoderConfig | VisionConfig | WordsConfig, type[Encoder]]],
    spec: Spec,
    history: int,
    tokens: bool = False,
) -> Encoder:
    """The encoder of a whole observation: of a single kind its own encoder, of several their fusion.

    Raises:
        ValueError: a feature that no encoder takes, naming it.
    """
    taken: dict[str, dict[str, Feature]] = {config.kind: {} for config, _ in encoders}
    for name, feature in spec.observation.items():
        kind = next((config.kind for config, cls in encoders if cls.accepts(feature)), None)
        if kind is None:
            able = " and ".join(f"{cls.group}={config.kind} takes {cls.takes}" for config, cls in encoders)
            sees = feature.kind in KINDS and not any(cls.group == "vision" for _, cls in encoders)
            advice = "choose vision=conv, resnet18 or vit, or leave it" if sees else "leave it"
            raise ValueError(
                f"{able}, but the observation {name!r} is {feature.dtype} of shape {feature.shape}; {advice} "
                "out of the observation"
            )
        taken[kind][name] = feature
    action = replace(spec.action, pointers=None)  # which may point at what another encoder takes
    parts = {
        config.kind: cls(config, replace(spec, observation=taken[config.kind], action=action), history, tokens)
        for config, cls in encoders
        if taken[config.kind]
    }
    return FusedEncoder(parts) if len(parts) > 1 else next(iter(parts.values()))
