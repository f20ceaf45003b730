"""Exponential moving average of the weights, with its own step counter in the state."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

M = TypeVar("M", bound=nn.Module)


class EMA(Generic[M]):
    """A copy of a module whose parameters follow the original's average.

    The decay warms up as (1 + n) / (10 + n) until it reaches `decay`, so that the random initial weights are soon
    forgotten. The counter n belongs to the state: without it a resumed run would erase the average.
    """

    def __init__(self, module: M, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay is {decay}, expected a number in [0, 1)")
        self.decay = decay
        self.updates = 0
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._pairs: tuple[list[Tensor], list[Tensor]] = (
            [p.data for p in self.module.parameters()],
            [p.data for p in module.parameters()],
        )

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average one step towards the current weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        average, current = self._pairs
        get_ema_multi_avg_fn(decay)(average, current, self.updates)
