"""Scores: how far a decision is from what the policy has learned, each larger where it is further."""

# ruff: noqa: N815  (shape suffixes)

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..conditioning import Conditioning
from ..policy import Policy
from .density import Density

LEAST_STD = 1e-3  # of an action's normalized values in an entropy: less is as good as certain
INTEGRATION_STEPS = 16  # of the density's flow where it is integrated


@dataclass
class Decision:
    """What is known of one decision of one robot; actions are normalized, as the head sees them.

    Where the head sees differences to the present state, the chunks are those of absolute actions (`WatchedPolicy`).
    """

    embedding_E: Tensor  # the conditioning that it was made from, flat
    velocity_KTA: Tensor  # of the chunk at the beginning of each of K steps on its way from noise; K=0: not a flow
    chunks_STA: Tensor  # sampled from the same observation; S=0: not asked for
    earlier_STA: Tensor | None = None  # those of the decision before; None: this is the first
    overlap: int = 0  # leading control steps of these chunks that those cover too: T less the steps between them


class Score(Protocol):
    """A number for a decision, and what it needs to know of it."""

    needs: ClassVar[frozenset[str]]  # of: density, samples, path

    def __call__(self, decision: Decision, density: Density | None) -> float:
        """The score."""
        ...


@runtime_checkable
class DirectScore(Score, Protocol):
    """One that follows from the decision alone, so that an exported policy can compute it in its graph."""

    def rows(self, embedding_BE: Tensor, velocity_KBTA: Tensor, density: Density | None) -> Tensor:
        """The scores (B,) of B decisions; embeddings and velocities as in `Decision`."""
        ...


class LogpZO:
    """Error of the density's flow at the embedding (logpZO; Xu 2025, FAIL-Detect). One evaluation of a small net.

    Choose it for observations that the policy has never seen; it says nothing of what the policy makes of them.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"density"})
    steps = 1

    def __call__(self, decision: Decision, density: Density | None) -> float:
        """|O + v(O, 0)|^2."""
        return float(self.rows(decision.embedding_E[None], decision.velocity_KTA[:, None], density))

    def rows(self, embedding_BE: Tensor, velocity_KBTA: Tensor, density: Density | None) -> Tensor:
        """The same of B decisions, (B,)."""
        assert density is not None
        return density.score(embedding_BE, self.steps)


class LogpZ(LogpZO):
    """The same with the flow integrated to noise: a density in earnest, at 16 evaluations of the small net."""

    steps = INTEGRATION_STEPS


class STAC:
    """Disagreement with the last decision on what to do now (Agia 2024, Sentinel; Xu 2025, FAIL-Detect).

    Squared maximum mean discrepancy of the chunks sampled then and now where they overlap, which decisions further
    apart do less. Choose it for a policy that changes its mind. 0, no evidence, where nothing overlaps: at the first
    decision, and at one as late as the end of the last chunk.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"samples"})

    def __call__(self, decision: Decision, density: Density | None) -> float:
        """MMD^2 of the overlapping parts."""
        overlap = decision.overlap
        if decision.earlier_STA is None or overlap < 1:
            return 0.0
        return float(mmd2(decision.chunks_STA[:, :overlap].flatten(1), decision.earlier_STA[:, -overlap:].flatten(1)))


class Entropy:
    """Entropy of the chunks sampled (action-chunk entropy; Roemer 2025, FIPER), here that of independent Gaussians.

    Choose it for a policy whose demonstrations have one way to act: where they have several, it is large there too.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"samples"})

    def __call__(self, decision: Decision, density: Density | None) -> float:
        """Nats per value of the chunk."""
        return float(gaussian_entropy(decision.chunks_STA))


class Acceleration:
    """Bend of the way from noise to the chunk, of which sampling tells without any further evaluation.

    A flow that knows where it is goes straight. The first choice for a flow policy of two or more steps.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"path"})

    def __call__(self, decision: Decision, density: Density | None) -> float:
        """Root mean square of the change of velocity per unit of generation time."""
        return float(acceleration(decision.velocity_KTA))

    def rows(self, embedding_BE: Tensor, velocity_KBTA: Tensor, density: Density | None) -> Tensor:
        """The same of B decisions, (B,)."""
        return acceleration(velocity_KBTA)


SCORES: dict[str, type[Score]] = {
    "acceleration": Acceleration,
    "entropy": Entropy,
    "logpz": LogpZ,
    "logpzo": LogpZO,
    "stac": STAC,
}


def mmd2(a_SD: Float[Tensor, "S D"], b_RD: Float[Tensor, "R D"]) -> Float[Tensor, ""]:
    """Squared maximum mean discrepancy of two samples (Gretton 2012, Eq. 5), 0 for equal ones.

    The kernel is exp(-d^2 / 2 m^2), m the median of all distances between different members of both.
    """
    both = torch.cat([a_SD, b_RD]).float()
    # Not by way of a product of matrices, in which small distances between large values are lost.
    distance = torch.cdist(both, both, compute_mode="donot_use_mm_for_euclid_dist")
    first, second = torch.triu_indices(len(both), len(both), offset=1)
    number = torch.finfo(both.dtype)
    least = (number.eps * both.abs().max()).clamp(min=number.tiny)  # what is nearer than this is the same
    median = distance[first, second].quantile(0.5).clamp(min=least)
    kernel = torch.exp(-(distance**2) / (2 * median**2))
    n = len(a_SD)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def gaussian_entropy(x_STA: Float[Tensor, "S T A"]) -> Float[Tensor, ""]:
    """Mean over T and A of the entropy of a Gaussian with the variance of S samples, in nats."""
    variance = x_STA.var(0).clamp(min=LEAST_STD**2)
    return (0.5 * (2 * math.pi * math.e * variance).log()).mean()


def acceleration(velocity_KTA: Float[Tensor, "K *B T A"]) -> Float[Tensor, "*B"]:
    """Mean over the steps of the root mean square change of velocity, in units of 1 / (generation time)^2.

    The K velocities are those at times 0, 1/K, ..., (K-1)/K. On another grid it is the change per step, K steps for 1.
    """
    change = (velocity_KTA[1:] - velocity_KTA[:-1]) * len(velocity_KTA)
    return change.square().mean((-2, -1)).sqrt().mean(0)


@dataclass
class Probe:
    """Listens to one inference call of a policy: what its encoder gives, and what its net is asked and answers."""

    policy: Policy
    cond: Conditioning | None = None  # of one row
    asked: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # chunk (1, T, A), or (2, ...) guided; answer

    def __enter__(self) -> Probe:
        self._hooks = [
            self.policy.encoder.register_forward_hook(self._encoded),
            self.policy.net.register_forward_hook(self._answered),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _encoded(self, module: torch.nn.Module, args: tuple, output: Conditioning) -> None:
        self.cond = output

    def _answered(self, module: torch.nn.Module, args: tuple, output: Tensor) -> None:
        self.asked.append((args[0], output))

    def velocity(self) -> Tensor:
        """The velocity at the beginning of each of the steps, of a head that `bends`."""
        return self.policy.head.velocities(self.asked)[:, 0].float().cpu()
