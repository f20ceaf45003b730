"""Which windows a batch is made of."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Draws:
    """Draws control steps with replacement; the generator alone decides which.

    Args:
        count: of the steps.
        weights: (count,) to draw each in proportion to; None: all alike.

    Raises:
        ValueError: another number of weights, or nothing is left to draw.
    """

    def __init__(self, count: int, weights: np.ndarray | None = None):
        self._count, self._ends = count, None
        if weights is None:
            return
        if weights.shape != (count,) or not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
            raise ValueError(f"got weights of shape {weights.shape}, expected ({count},), 0 or more and not all 0")
        self._ends = torch.from_numpy(np.cumsum(weights, dtype=np.float64) / weights.sum(dtype=np.float64))

    def __call__(self, size: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """The steps (size,) of a batch."""
        if self._ends is None:
            return torch.randint(self._count, (size,), generator=generator, device=device)
        if self._ends.device != device:
            self._ends = self._ends.to(device)
        drawn = torch.rand(size, generator=generator, device=device, dtype=torch.float64)
        return torch.searchsorted(self._ends, drawn, right=True).clamp_(max=self._count - 1)
