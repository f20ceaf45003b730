"""Regression head: the control arm every generative head must be compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..conditioning import Conditioning
from ..nets.base import Net
from .base import Head, HeadConfig, masked_mean


@dataclass
class RegressionConfig(HeadConfig):
    """Mean squared error, one evaluation. Strong where each situation has one right action, a blur where it has two."""

    kind: str = "regression"


class RegressionHead(Head):
    """Predicts the mean chunk: the same net, at t=0, with zeros in place of the noise."""

    def __init__(self, config: RegressionConfig, cond_size: int, tokens: tuple[int, int] = (0, 0)):
        super().__init__()
        self.config = config

    @property
    def evaluations(self) -> int:
        """One."""
        return 1

    def loss(
        self, net: Net, x1_BTA: Tensor, cond: Conditioning, mask_BT: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Mean squared error of the predicted chunk; uses no randomness."""
        return masked_mean((self.sample(net, x1_BTA, cond) - x1_BTA).square(), mask_BT)

    def sample(self, net: Net, noise_BTA: Tensor, cond: Conditioning) -> Tensor:
        """The predicted chunk; the noise gives only the shape."""
        start = torch.zeros_like(noise_BTA)
        return net(start, net.prepare(start[:, 0, 0], cond))
