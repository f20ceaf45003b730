"""Normalization: the statistics live in the weights, so a policy cannot be separated from them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from flowhand.contracts.data.statistics import QUANTILES, FeatureStatistics

MODES = ("mean_std", "min_max", "quantile", "identity")
EPS, TINY = torch.finfo(torch.float32).eps, torch.finfo(torch.float32).tiny
JITTER = 8  # steps of float32: a range of no more is rounding, not a signal
HEAVY = 10  # standard deviations in half a quantile range: with more, next to all lies in the tails


@dataclass
class NormalizerConfig:
    """How observations and actions are scaled, dimension by dimension."""

    removed: ClassVar[tuple[str, ...]] = ("constant_below",)  # in earlier checkpoints; its effect is in their weights

    observation: str = "mean_std"  # mean_std | min_max (to [-1, 1]) | quantile (1 % and 99 % to [-1, 1]) | identity
    action: str = "mean_std"  # the same choices

    def __post_init__(self) -> None:
        for name in ("observation", "action"):
            if getattr(self, name) not in MODES:
                raise ValueError(f"normalizer.{name}={getattr(self, name)!r} is unknown; choices: {', '.join(MODES)}")


@dataclass
class _Summary:
    """What the modes need to know of the columns; each (size,) float64."""

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    inner_low: Tensor  # 98 % of the values lie from here
    inner_high: Tensor  # to here


class Normalizer(nn.Module):
    """Maps one feature to normalized values and back: `(x - shift) / scale`, dimension by dimension.

    Until it is fitted or loaded its statistics are NaN, and using it is an error: a statistic that is missing must
    never look like the identity.

    Args:
        size: dimensions.
        steps: of a chunk (..., steps, size) that have statistics of their own; 0: all have the same.
        sources: data sets that have statistics of their own; 0: all have the same.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, size: int, steps: int = 0, sources: int = 0):
        super().__init__()
        self.sources = sources
        shape = (*([sources] if sources else []), *([steps] if steps else []), size)
        self.register_buffer("shift", torch.full(shape, torch.nan))
        self.register_buffer("scale", torch.full(shape, torch.nan))

    def of(self, source: int) -> Normalizer:
        """The statistics of one source, in the same memory; of all, where all have the same."""
        if not self.sources:
            return self
        part = Normalizer(self.shift.shape[-1])
        part.shift, part.scale = self.shift[source], self.scale[source]
        return part

    def fit_steps(self, data: Sequence[Tensor], mode: str, name: str, groups: Sequence[slice] = ()) -> None:
        """`fit` to the data (N, size) of every step: of each for itself, or, where all share statistics, of all."""
        if self.shift.ndim == 1:
            self.fit(torch.cat(list(data)) if len(data) > 1 else data[0], mode, name, groups)
            return
        for step, rows in enumerate(data):
            own = Normalizer(self.shift.shape[-1]).to(rows.device)
            own.fit(rows, mode, f"{name} at step {step} of a chunk", groups)
            self.shift[step].copy_(own.shift)
            self.scale[step].copy_(own.scale)

    def fit(self, data: Tensor, mode: str, name: str, groups: Sequence[slice] = ()) -> None:
        """Takes the statistics of `data` (N, size), those of the feature `name`.

        A dimension that float32 cannot tell from a constant is only centred; a warning names it if it does vary. The
        dimensions of a group, such as the columns of a rotation, all take the largest scale among them.

        Raises:
            ValueError: fewer than two rows, non-finite values, an unknown mode, or tails too heavy for quantiles.
        """
        if data.ndim != 2 or data.shape[1] != self.shift.numel() or data.shape[0] < 2:
            raise ValueError(
                f"statistics of {name!r} need data of shape (N >= 2, {self.shift.numel()}), got {tuple(data.shape)}"
            )
        data = data.double()
        if not torch.isfinite(data).all():
            bad = int((~torch.isfinite(data)).any(dim=1).nonzero()[0])
            raise ValueError(f"statistics of {name!r} need finite data, but row {bad} has NaN or infinity")
        low, high = data.amin(dim=0), data.amax(dim=0)
        inner = _inner(data) if mode == "quantile" else (low, high)
        self._take(_Summary(data.mean(dim=0), data.std(dim=0, correction=0), low, high, *inner), mode, name, groups)

    def take(self, statistics: FeatureStatistics, mode: str, name: str) -> None:
        """Takes statistics that were measured elsewhere; see `fit`.

        Raises:
            ValueError: fewer than two rows, another size, an unknown mode, or tails too heavy for quantiles.
        """
        if statistics.count < 2 or len(statistics.mean) != self.shift.numel():
            got = f"{statistics.count} rows of {len(statistics.mean)}"
            raise ValueError(f"statistics of {name!r} need at least 2 rows of {self.shift.numel()} values, got {got}")
        inner = statistics.quantiles[QUANTILES.index(0.01)], statistics.quantiles[QUANTILES.index(0.99)]
        parts = (statistics.mean, statistics.std, statistics.low, statistics.high, *inner)
        self._take(_Summary(*(torch.from_numpy(part).to(self.shift.device) for part in parts)), mode, name)

    def _take(self, data: _Summary, mode: str, name: str, groups: Sequence[slice] = ()) -> None:
        shift, scale = _statistics(data, mode, name)
        if mode != "identity":
            step, varies = _resolution(data), data.high - data.low
            constant = varies <= JITTER * step
            _warn_of(constant & (varies > 0), data, name)
            scale = torch.where(constant, 1.0, torch.maximum(scale, step))
            for group in groups:
                if not constant[group].all():
                    scale[group] = scale[group].masked_fill(constant[group], 0).amax()
        self.shift.copy_(shift)
        self.scale.copy_(scale)

    def require_fitted(self, name: str) -> None:
        """Raises `ValueError` naming the feature when the statistics are missing or unusable."""
        if not (torch.isfinite(self.shift).all() and torch.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError(f"the statistics of {name!r} are missing or not finite; fit the policy on demonstrations")

    def normalize(self, x: Tensor, source_BK: Tensor | None = None) -> Tensor:
        """Physical units to normalized values.

        Args:
            x: (..., size); (B, ..., size) where sources have statistics of their own.
            source_BK: one for the source of each row, zero for the others.
        """
        shift, scale = self._of_rows(source_BK, x)
        return (x - shift) / scale

    def denormalize(self, x: Tensor, source_BK: Tensor | None = None) -> Tensor:
        """Normalized values to physical units; the inverse of `normalize`."""
        shift, scale = self._of_rows(source_BK, x)
        return x * scale + shift

    def _of_rows(self, source_BK: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale in a shape that goes with x."""
        if not self.sources:
            return self.shift, self.scale
        assert source_BK is not None
        found, chosen_BK = [], source_BK.float()
        nobody_B1 = 1 - chosen_BK.sum(-1, keepdim=True)  # rows that only fill a batch have no source, and the scale 1
        # Products with ones and zeros are exact; those of matrices would be rounded where a training autocasts.
        for statistics, other in ((self.shift, 0), (self.scale, nobody_B1)):
            rows = ((chosen_BK.unsqueeze(-1) * statistics.flatten(1)).sum(1) + other).unflatten(
                -1, statistics.shape[1:]
            )
            while rows.ndim < x.ndim:
                rows = rows.unsqueeze(1)
            found.append(rows)
        return found[0], found[1]


def _resolution(data: _Summary) -> Tensor:
    """How far apart neighbouring float32 numbers are where each column is largest."""
    return (EPS * torch.maximum(data.low.abs(), data.high.abs())).clamp(min=TINY)


def _warn_of(dimensions: Tensor, data: _Summary, name: str) -> None:
    """Warns of dimensions (size,) that vary and are treated as constant."""
    for i in dimensions.nonzero().flatten().tolist():
        low, high = data.low[i].item(), data.high[i].item()
        warnings.warn(
            f"{name!r} dimension {i} varies from {low:.9g} to {high:.9g}, which float32 hardly resolves: it is treated "
            "as constant. If this is a signal, record it without its offset",
            stacklevel=5,
        )


def _inner(data: Tensor) -> tuple[Tensor, Tensor]:
    """Between which values of each column 98 % of them lie."""
    ordered = data.sort(dim=0).values  # torch.quantile refuses more than 16 M values
    last = data.shape[0] - 1
    return ordered[round(0.01 * last)], ordered[round(0.99 * last)]


def _statistics(data: _Summary, mode: str, name: str) -> tuple[Tensor, Tensor]:
    """Shift and scale of each column."""
    if mode == "mean_std":
        return data.mean, data.std
    if mode == "identity":
        return torch.zeros_like(data.mean), torch.ones_like(data.mean)
    if mode == "min_max":
        return (data.high + data.low) / 2, (data.high - data.low) / 2
    if mode == "quantile":
        return _quantiles(data, name)
    raise ValueError(f"normalization {mode!r} is unknown; choices: {', '.join(MODES)}")


def _quantiles(data: _Summary, name: str) -> tuple[Tensor, Tensor]:
    """Middle and half range of the inner 98 %, but no scale below the standard deviation: no mean square exceeds 1.

    Where the quantiles coincide, as in a dimension that is nearly always zero, mean and standard deviation are taken.
    """
    low, high = data.inner_low, data.inner_high
    half, spread = (high - low) / 2, data.std
    flat = high - low <= JITTER * _resolution(data)
    for i in (~flat & (spread > HEAVY * half)).nonzero().flatten().tolist():
        raise ValueError(
            f"{name!r} dimension {i} has tails too heavy for quantiles: 98 % of its values lie in {low[i]:.4g} to "
            f"{high[i]:.4g}, all of them in {data.low[i]:.4g} to {data.high[i]:.4g}; remove the outliers, or use "
            "normalizer.observation or normalizer.action = mean_std"
        )
    shift = torch.where(flat, data.mean, (high + low) / 2)
    return shift, torch.where(flat, spread, torch.maximum(half, spread))
