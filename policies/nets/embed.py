"""Sinusoidal embedding of generation time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """Embeds t in [0, 1] as sines and cosines of log-spaced periods, then a two-layer perceptron.

    Periods run from 4e-3 to 4 (Black 2024, pi0), so that both a solver's step and the whole interval are resolved.
    """

    frequencies: Tensor

    def __init__(self, width: int, channels: int = 64):
        super().__init__()
        periods = torch.logspace(math.log10(4e-3), math.log10(4.0), channels // 2, dtype=torch.float64)
        self.register_buffer("frequencies", (2 * math.pi / periods).float(), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Times of shape (...,) to embeddings of shape (..., width)."""
        phase = t[..., None] * self.frequencies
        return self.mlp(torch.cat([phase.sin(), phase.cos()], dim=-1))
