"""What every denoising net shares: its two-part call."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class NetConfig:
    """Base of every net's configuration."""

    kind: str = "???"

    def require_positive(self, *names: str) -> None:
        """Raises `ValueError` unless each of the named fields is at least 1."""
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"net.{name}={getattr(self, name)} must be at least 1")


class Net(nn.Module):
    """Maps a noisy chunk to a prediction in two parts.

    `prepare` computes all that depends on time and conditioning alone. It takes any leading dimensions, so a sampler
    calls it once for all its K steps; `forward` is what is left to do in each step.
    """

    def prepare(self, t: Tensor, cond: Tensor) -> Tensor:
        """Times (..., B) and conditioning (B, E) to a modulation (..., B, M)."""
        raise NotImplementedError

    def forward(self, x_BTA: Tensor, modulation: Tensor) -> Tensor:
        """Noisy chunk (B, T, A) and modulation (B, M) to the prediction (B, T, A)."""
        raise NotImplementedError


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer normalization without weights of its own, then a scale and shift given from outside (adaLN)."""
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift
