"""Exponential moving average of the weights and buffers, with its own step counter in the state."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

M = TypeVar("M", bound=nn.Module)


class EMA(Generic[M]):
    """A copy of a module whose parameters and buffers follow the original's average; integers are copied.

    The decay warms up as (1 + n) / (10 + n) until it reaches `decay`, so that the random initial weights are soon
    forgotten. The counter n belongs to the state: without it a resumed run would erase the average.
    """

    def __init__(self, module: M, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay is {decay}, expected a number in [0, 1)")
        self.decay = decay
        self.updates = 0
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        mine, theirs = _state(self.module), _state(module)
        self._pairs = [(a, b) for a, b in zip(mine, theirs, strict=True) if a.is_floating_point()]
        self._copied = [(a, b) for a, b in zip(mine, theirs, strict=True) if not a.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average one step towards the current weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        average, current = map(list, zip(*self._pairs, strict=True))
        get_ema_multi_avg_fn(decay)(average, current, self.updates)
        for copied, value in self._copied:
            copied.copy_(value)


def _state(module: nn.Module) -> list[Tensor]:
    """Parameters, and the buffers that a checkpoint holds; the others are constants."""
    kept = module.state_dict().keys()
    return [p.data for p in module.parameters()] + [b for name, b in module.named_buffers() if name in kept]
