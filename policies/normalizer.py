"""Normalization: the statistics live in the weights, so a policy cannot be separated from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

MODES = ("mean_std", "min_max", "quantile", "identity")


@dataclass
class NormalizerConfig:
    """How observations and actions are scaled, dimension by dimension."""

    observation: str = "mean_std"  # mean_std | min_max (to [-1, 1]) | quantile (1 % and 99 % to [-1, 1]) | identity
    action: str = "mean_std"  # the same choices
    constant_below: float = 1e-4  # a dimension whose spread is smaller, in its own unit, is only centred, not scaled

    def __post_init__(self) -> None:
        for name in ("observation", "action"):
            if getattr(self, name) not in MODES:
                raise ValueError(f"normalizer.{name}={getattr(self, name)!r} is unknown; choices: {', '.join(MODES)}")
        if not self.constant_below > 0:
            raise ValueError(f"normalizer.constant_below={self.constant_below} must be positive")


class Normalizer(nn.Module):
    """Maps one feature to normalized values and back: `(x - shift) / scale`, dimension by dimension.

    Until it is fitted or loaded its statistics are NaN, and using it is an error: a statistic that is missing must
    never look like the identity.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("shift", torch.full((size,), torch.nan))
        self.register_buffer("scale", torch.full((size,), torch.nan))

    def fit(self, data: Tensor, mode: str, constant_below: float) -> None:
        """Takes the statistics of `data` (N, size).

        Raises:
            ValueError: fewer than two rows, non-finite values, or an unknown mode.
        """
        if data.ndim != 2 or data.shape[1] != self.shift.numel() or data.shape[0] < 2:
            raise ValueError(f"statistics need data of shape (N >= 2, {self.shift.numel()}), got {tuple(data.shape)}")
        data = data.double()
        if not torch.isfinite(data).all():
            bad = int((~torch.isfinite(data)).any(dim=1).nonzero()[0])
            raise ValueError(f"statistics need finite data, but row {bad} has NaN or infinity")
        shift, scale = _statistics(data, mode)
        scale = torch.where(scale < constant_below, torch.ones_like(scale), scale)
        self.shift.copy_(shift)
        self.scale.copy_(scale)

    def exempt(self, dimensions: Tensor) -> None:
        """Leaves the dimensions where the mask (size,) is True as they are."""
        self.shift[dimensions], self.scale[dimensions] = 0.0, 1.0

    def require_fitted(self, name: str) -> None:
        """Raises `ValueError` naming the feature when the statistics are missing or unusable."""
        if not (torch.isfinite(self.shift).all() and torch.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError(f"the statistics of {name!r} are missing or not finite; fit the policy on demonstrations")

    def normalize(self, x: Tensor) -> Tensor:
        """Physical units to normalized values; `x` is (..., size)."""
        return (x - self.shift) / self.scale

    def denormalize(self, x: Tensor) -> Tensor:
        """Normalized values to physical units; the inverse of `normalize`."""
        return x * self.scale + self.shift


def _statistics(data: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """Shift and scale of each column."""
    if mode == "mean_std":
        return data.mean(dim=0), data.std(dim=0, correction=0)
    if mode == "identity":
        return torch.zeros_like(data[0]), torch.ones_like(data[0])
    if mode == "min_max":
        low, high = data.amin(dim=0), data.amax(dim=0)
    elif mode == "quantile":
        ordered = data.sort(dim=0).values  # torch.quantile refuses more than 16 M values
        last = data.shape[0] - 1
        low, high = ordered[round(0.01 * last)], ordered[round(0.99 * last)]
    else:
        raise ValueError(f"normalization {mode!r} is unknown; choices: {', '.join(MODES)}")
    return (high + low) / 2, (high - low) / 2
