"""Classification head: every field of every action at once, each for itself, by one evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..conditioning import Conditioning
from ..fields import Fields
from ..nets.base import Net
from .base import Head, HeadConfig


@dataclass
class ClassificationConfig(HeadConfig):
    """Cross-entropy of every choice, squared error of every number. The control arm where actions are choices.

    It knows how likely each choice is, but not which belong together: where two plans are right it may mix them.
    """

    sampling: ClassVar[tuple[str, ...]] = ("temperature",)

    kind: str = "classification"
    # of the distribution that each choice is drawn from: 0 takes the likeliest, 1 draws as it was learned
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise ValueError(f"head.temperature={self.temperature} must lie in 0..100")


class ClassificationHead(Head):
    """The same net, at t=0, with zeros in place of the noise."""

    def __init__(self, config: ClassificationConfig, cond_size: int, tokens: tuple[int, int] = (0, 0)):
        super().__init__()
        self.config = config

    @property
    def evaluations(self) -> int:
        """One."""
        return 1

    @property
    def choice_error(self) -> str:
        """Cross-entropy, where there are choices."""
        return "cross_entropy" if self.fields is not None and self.fields.chooses else "squared"

    def loss(
        self, net: Net, x1_BTA: Tensor, cond: Conditioning, mask_BT: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Mean over the fields that count; uses no randomness."""
        return self.error(self._predict(net, x1_BTA, cond), x1_BTA, mask_BT, generator)

    def sample(self, net: Net, noise_BTA: Tensor, cond: Conditioning) -> Tensor:
        """The likeliest of each choice, or one that the noise draws."""
        return drawn(self.fields, self._predict(net, noise_BTA, cond), noise_BTA, self.config.temperature)

    def _predict(self, net: Net, like: Tensor, cond: Conditioning) -> Tensor:
        start = torch.zeros_like(like)
        return net(start, net.prepare(start[:, 0, 0], cond))


def drawn(fields: Fields | None, output: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """The code of the action of which the output is the mean: the likeliest choices, or drawn ones.

    A choice is drawn by Gumbel's trick: the largest of log p + temperature * g, g = -ln(-ln u), where u, uniform, is
    the normal distribution function of the noise.
    """
    if fields is None:
        return output
    if not temperature:
        return fields.settled(output)
    uniform = (0.5 * (1 + torch.erf(noise / math.sqrt(2)))).clamp(1e-6, 1 - 1e-6)
    probability = ((output + 1) / 2).clamp(min=1e-12)
    largest = probability.log() - temperature * (-uniform.log()).log()
    # Of two choices one column has both: the logistic of a uniform number decides between them.
    odds = probability.log() - ((1 - output) / 2).clamp(min=1e-12).log()
    two = odds + temperature * (uniform / (1 - uniform)).log()
    parts = [
        largest[..., f.columns] if f.choices > 2 else (two if f.choices else output)[..., f.columns]
        for f in fields.each
    ]
    return fields.settled(torch.cat(parts, dim=-1))
