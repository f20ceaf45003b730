"""State encoder: every vector of the observation, with its history, through a small perceptron."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from flowhand.contracts.features import GIVEN, Feature, Spec

from ..conditioning import Conditioning
from .base import Encoder, EncoderConfig


@dataclass
class StateEncoderConfig(EncoderConfig):
    """For observations that are vectors: joint angles, object poses, goals."""

    kind: str = "state"
    width: int = 256  # features of the hidden layer and of the conditioning vector

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"encoder.width={self.width} must be at least 1")


class StateEncoder(Encoder):
    """Concatenates the history of all vectors (in the order of their names) and applies two layers.

    A token is one vector at one step of the history; it has a quarter of the encoder's width.
    """

    takes = "float32 vectors"

    def __init__(self, config: StateEncoderConfig, spec: Spec, history: int, tokens: bool = False):
        super().__init__()
        self.names = sorted(spec.observation)
        inputs = history * sum(feature.size for feature in spec.observation.values())
        self.layers = nn.Sequential(nn.Linear(inputs, config.width), nn.SiLU(), nn.Linear(config.width, config.width))
        if tokens:
            width = max(1, config.width // 4)
            self.tokens = (len(self.names) * history, width)
            self.embed = nn.ModuleDict({name: nn.Linear(spec.observation[name].size, width) for name in self.names})
            self.places = nn.Parameter(torch.randn(len(self.names), history, width) * 0.02)
        self.size = config.width

    @staticmethod
    def accepts(feature: Feature) -> bool:
        """Vectors."""
        return feature.dtype == "float32" and len(feature.shape) == 1 and feature.kind not in GIVEN

    def forward(self, observation: dict[str, Tensor], generator: Generator | None = None) -> Conditioning:
        """Vectors (B, O, S) each to conditioning; nothing of it is random."""
        vector = self.layers(torch.cat([observation[name].flatten(1) for name in self.names], dim=1))
        if not self.tokens[0]:
            return Conditioning(vector)
        tokens = torch.stack([self.embed[name](observation[name]) for name in self.names], dim=1) + self.places
        return Conditioning(vector, tokens.flatten(1, 2))
