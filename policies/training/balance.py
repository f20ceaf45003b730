"""Which windows a training draws where its data sets have shares of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Mixed(Protocol):
    """Episodes of several data sets, one set after the other."""

    @property
    def sources(self) -> Sequence[int]:
        """The number of the set of each episode, from 0 on, never decreasing."""
        ...

    @property
    def weights(self) -> Sequence[float]:
        """The share of each set in what is drawn; they need not add up to one."""
        ...


class Balance:
    """Draws control steps such that each set has its share, and within a set all are equally likely.

    Args:
        sizes: control steps of each set, one after the other.
        weights: shares, which need not add up to one.
        device: of the generator.

    Raises:
        ValueError: a set without steps, or a share that is not positive.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], device: torch.device | str = "cpu"):
        if len(sizes) != len(weights) or not sizes or min(sizes) < 1 or not min(weights) > 0:
            raise ValueError(f"sets of {list(sizes)} steps have the weights {list(weights)}, expected positive numbers")
        self.sizes = torch.tensor(sizes, device=device)
        self.starts = self.sizes.cumsum(0) - self.sizes
        self.ends = (torch.tensor(weights, dtype=torch.float64, device=device) / sum(weights)).cumsum(0)
        self.parts = [slice(a, a + n) for a, n in zip(self.starts.tolist(), sizes, strict=True)]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Control steps (count,), with replacement; the generator alone decides which."""
        which, place = torch.rand((2, count), dtype=torch.float64, generator=generator, device=self.ends.device)
        source = torch.searchsorted(self.ends, which, right=True).clamp(max=len(self.ends) - 1)
        size = self.sizes[source]
        return self.starts[source] + torch.minimum((place * size).long(), size - 1)


def balance_of(
    episodes: object, lengths: Sequence[int], device: torch.device | str = "cpu"
) -> tuple[Balance | None, Tensor | None]:
    """How to draw of these episodes, and the set of each control step; None for episodes of one set."""
    if not isinstance(episodes, Mixed):
        return None, None
    sources = torch.tensor(list(episodes.sources))
    counts = torch.tensor(list(lengths))
    sizes = [int(counts[sources == number].sum()) for number in range(len(episodes.weights))]
    balance = Balance(sizes, list(episodes.weights), device)
    return balance, torch.repeat_interleave(sources, counts).to(device)


def require_one_set(balance: Balance | None) -> None:
    """Raises `ValueError` where data sets have shares of their own, for steps with weights of their own."""
    if balance is not None:
        raise ValueError("data sets with shares of their own take no weights of steps; set data.intervention_weight=1")
