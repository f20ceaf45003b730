"""Regression head: the control arm every generative head must be compared with."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..conditioning import Conditioning
from ..nets.base import Net
from .base import Head, HeadConfig, masked_mean

ERRORS = {"squared": torch.square, "absolute": torch.abs}


@dataclass
class RegressionConfig(HeadConfig):
    """One chunk by one evaluation. Strong where each situation has one right action, a blur where it has two."""

    kind: str = "regression"
    # squared (it learns the mean chunk) | absolute (the median: still where the robot mostly stands still)
    error: str = field(default="squared", metadata={"before": "squared"})

    def __post_init__(self) -> None:
        if self.error not in ERRORS:
            raise ValueError(f"head.error={self.error!r} is unknown; choices: {', '.join(ERRORS)}")


class RegressionHead(Head):
    """Predicts the mean or the median chunk: the same net, at t=0, with zeros in place of the noise."""

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
        """Mean squared or absolute error of the predicted chunk; uses no randomness."""
        return masked_mean(ERRORS[self.config.error](self.sample(net, x1_BTA, cond) - x1_BTA), mask_BT, generator)

    def sample(self, net: Net, noise_BTA: Tensor, cond: Conditioning) -> Tensor:
        """The predicted chunk; the noise gives only the shape."""
        start = torch.zeros_like(noise_BTA)
        return net(start, net.prepare(start[:, 0, 0], cond))
