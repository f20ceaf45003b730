"""Drift head: one evaluation, trained until its own samples push it away as much as the demonstrations attract it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..conditioning import Conditioning
from ..draws import drawn, over_all
from ..nets.base import Net
from .base import Head, HeadConfig, masked_mean

TINY = 1e-6  # smallest distance, and smallest size of a force, that anything is divided by


@dataclass
class DriftConfig(HeadConfig):
    """Drifting, one step (Deng 2026, arXiv 2602.04770; for robots Gao 2026, arXiv 2604.03540, Drift-Based Policy).

    For one evaluation per decision where demonstrations do a thing in more than one way, at a few times the training
    time of flow. By default samples are moved along unit vectors (affinity 1/distance), by the gradient of the energy
    score (Gneiting & Raftery 2007). That is linear in the demonstrations, so a single chunk for every observation,
    which is all there is, gives the right force in the mean; and it is felt at all distances. The papers' affinities
    are softmax(-distance / temperature), normalized over the samples and over what moves them. They are neither: at
    their temperatures one way of doing it does not feel the other, so that demonstrations with one of two ways in 0.3
    and 0.8 of all cases come out anywhere between 0 and 1, mostly as one of the two (docs/heads.md).
    """

    sampling: ClassVar[tuple[str, ...]] = ("noise",)

    kind: str = "drift"
    samples: int = 4  # chunks G generated per observation in training, each of them one evaluation of the net
    # of the softmax affinities, in mean distances, e.g. [0.02,0.05,0.2] as in the papers; none: affinity 1/distance
    temperatures: list[float] = field(default_factory=list)
    # factor on the noise of a decision, 0..1, without training again: 1 gives the learned distribution, below 1 less of
    # its spread and the more frequent way more often, 0 one chunk
    noise: float = 1.0

    def __post_init__(self) -> None:
        if not 2 <= self.samples <= 1000:
            raise ValueError(f"head.samples={self.samples} must lie in 2..1000: a sample alone has nothing to repel it")
        if not all(1e-4 <= value <= 1e4 for value in self.temperatures):
            raise ValueError(f"head.temperatures={self.temperatures} must all lie in 0.0001..10000")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"head.noise={self.noise} must lie in 0..1")


class DriftHead(Head):
    """Learns f(noise), whose samples come to rest where attraction and repulsion balance: f <- f + V.

    The net is asked at t=0 with the noise as its input, so f is the net itself.
    """

    def __init__(self, config: DriftConfig, cond_size: int, tokens: tuple[int, int] = (0, 0)):
        super().__init__()
        self.config = config

    @property
    def evaluations(self) -> int:
        """One."""
        return 1

    def loss(
        self, net: Net, x1_BTA: Tensor, cond: Conditioning, mask_BT: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Mean squared difference of f and f + V, the latter without gradient (Deng 2026, Eq. 6).

        In normalized units, so that it falls as the samples contract. (Deng 2026 and Gao 2026 divide it by the mean
        distance, where it stays as large as it is at the start.)
        """
        G, (B, T, A) = self.config.samples, x1_BTA.shape
        noise = drawn(torch.randn, (G, B, T, A), generator, 1, device=x1_BTA.device, dtype=x1_BTA.dtype)
        prepared = net.prepare(torch.zeros_like(x1_BTA[:, 0, 0]), cond)
        own_GBTA = net(noise.flatten(0, 1), prepared.repeat(G, 1)).unflatten(0, (G, B)).float()
        move = drift(own_GBTA.detach(), x1_BTA, mask_BT, self.config.temperatures, generator)
        return masked_mean((own_GBTA - (own_GBTA.detach() + move)).square(), mask_BT, generator)

    def sample(self, net: Net, noise_BTA: Tensor, cond: Conditioning) -> Tensor:
        """What the net makes of the noise, or of a part of it."""
        return net(self.config.noise * noise_BTA, net.prepare(torch.zeros_like(noise_BTA[:, 0, 0]), cond))


def drift(
    own_GBTA: Tensor,
    x1_BTA: Tensor,
    mask_BT: Tensor,
    temperatures: list[float],
    generator: torch.Generator | None = None,
) -> Tensor:
    """Where each of G samples is moved: to the demonstrated chunk and away from the other samples; (G, B, T, A).

    The distance of two chunks is their root mean square difference over the steps that count, so that it does not grow
    with the chunk. The mean distance in the batch is the unit of the temperatures and the size of the result.
    """
    G, weight_BT1 = len(own_GBTA), mask_BT.unsqueeze(-1).to(own_GBTA.dtype)
    others = torch.cat([own_GBTA, x1_BTA.to(own_GBTA.dtype)[None]])
    toward = torch.where(mask_BT[..., None], others - own_GBTA[:, None], 0.0)  # (G, G + 1, B, T, A)
    numbers_B = weight_BT1.expand_as(x1_BTA).sum(dim=(-1, -2))
    distance = (toward.square().sum(dim=(-1, -2)) / numbers_B.clamp(min=1)).sqrt()  # (G, G + 1, B)
    pairs = G * G * mask_BT.any(dim=-1).sum()  # without those of a sample with itself
    total, pairs = over_all(torch.stack([distance.sum(), pairs.to(distance.dtype)]), generator)
    scale = (total / pairs.clamp(min=1)).clamp(min=TINY)
    if not temperatures:
        pull = 1 / (distance / scale).clamp(min=TINY)
        return force(toward, -pull[:, :G] / (G - 1), pull[:, G:])
    moved = torch.zeros_like(own_GBTA)
    for temperature in temperatures:
        repel, attract = affinities(distance / scale, temperature).split([G, 1], dim=1)
        move = force(toward, -repel * attract, attract * repel.sum(dim=1, keepdim=True))
        size = over_all(masked_mean(move.square(), mask_BT, generator), generator).sqrt()
        moved += move * (scale / size.clamp(min=TINY))
    return moved / len(temperatures)


def force(toward: Tensor, own: Tensor, demonstrated: Tensor) -> Tensor:
    """Sum of the vectors (G, G + 1, B, T, A), weighted by (G, G, B) and (G, 1, B); (G, B, T, A)."""
    return (toward * torch.cat([own, demonstrated], dim=1)[..., None, None]).sum(dim=1)


def affinities(distance: Tensor, temperature: float) -> Tensor:
    """Of samples to each other and to the chunk, (G, G + 1, B), 0 to themselves (Deng 2026, Algorithm 2)."""
    itself = torch.eye(*distance.shape[:2], dtype=torch.bool, device=distance.device)[..., None]
    logits = (-distance / temperature).masked_fill(itself, -math.inf)
    return (logits.softmax(dim=0) * logits.softmax(dim=1)).sqrt()
