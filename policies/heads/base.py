"""What every action head shares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..nets import Net


@dataclass
class HeadConfig:
    """Base of every head's configuration."""

    kind: str = "???"


class Head(nn.Module):
    """Decides what the net is asked in training and how its answers become a chunk.

    Works on normalized actions. Heads share identical nets, so that comparing heads compares nothing else. A head is
    built from its configuration and the size of the conditioning vector; one that needs a second time (the end of an
    interval, the length of a step) embeds it itself and adds it to the conditioning.
    """

    @property
    def evaluations(self) -> int:
        """Network evaluations per decision."""
        raise NotImplementedError

    def loss(
        self, net: Net, x1_BTA: Tensor, cond_BE: Tensor, mask_BT: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Training loss, a scalar, of demonstrated chunks (B, T, A) where the mask (B, T) is True."""
        raise NotImplementedError

    def sample(self, net: Net, noise_BTA: Tensor, cond_BE: Tensor) -> Tensor:
        """A chunk (B, T, A) for each row, a function of the weights, the conditioning and the noise alone."""
        raise NotImplementedError


def masked_mean(error: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean of an error (..., B, T, A) over the steps where the mask (B, T) is True."""
    weight = mask_BT.unsqueeze(-1).to(error.dtype).expand_as(error)
    return (error * weight).sum() / weight.sum().clamp(min=1)
