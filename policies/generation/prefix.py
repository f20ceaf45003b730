"""What a robot is already committed to while its next chunk is computed, for chunks that continue one another."""

# ruff: noqa: N815  (shape suffixes)

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..draws import drawn
from .paths import SMALLEST, Coefficients

FORMS = ("exact", "identity", "trained")


@dataclass(frozen=True)
class Prefix:
    """The previous chunk, shifted so that index 0 is the new chunk's first step.

    While the new chunk is computed the robot executes `delay` more actions of the previous one; from there on the
    previous chunk has values for up to `overlap` steps in all, which the new one should not contradict without reason.
    A row that continues nothing (the first chunk of an episode) has delay 0 and overlap 0.

    Forms:
        exact: real-time chunking (Black 2025, arXiv 2506.07339): the sampler is pulled towards the previous chunk
            through the net's Jacobian, softly past the delay. For any trained policy; a backward pass in every step.
        identity: the same pull with the identity in place of the Jacobian, without the backward pass.
        trained: the first `delay` actions are held and the rest follows from them (Black 2025, arXiv 2512.05964,
            training-time real-time chunking). For a policy trained for it; what lies past the delay is ignored.

    Raises:
        ValueError: shapes that do not fit each other, an unknown form, unless 0 <= delay <= overlap <= T, or a
            non-finite action before the overlap's end.
    """

    actions_BTA: Tensor  # (B, T, A) in physical units; values from the overlap on are ignored, even NaN
    delay_B: Tensor  # (B,) integers: control steps that will be executed before the new chunk arrives
    overlap_B: Tensor  # (B,) integers: leading control steps for which the previous chunk has values
    form: str = "exact"  # exact | identity | trained
    longest: int = field(init=False)  # the largest delay, where the host can see it without waiting for a device

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"prefix.form={self.form!r} is unknown; choices: {', '.join(FORMS)}")
        if self.actions_BTA.ndim != 3:
            raise ValueError(f"prefix.actions_BTA has shape {tuple(self.actions_BTA.shape)}, expected (B, T, A)")
        rows, horizon, _ = self.actions_BTA.shape
        for name in ("delay_B", "overlap_B"):
            value = getattr(self, name)
            if value.shape != (rows,) or value.is_floating_point() or value.dtype == torch.bool:
                raise ValueError(
                    f"prefix.{name} is {value.dtype} of shape {tuple(value.shape)}, expected integers ({rows},)"
                )
        delays, overlaps = self.delay_B.tolist(), self.overlap_B.tolist()
        for row, (delay, overlap) in enumerate(zip(delays, overlaps, strict=True)):
            if not 0 <= delay <= overlap <= horizon:
                raise ValueError(
                    f"prefix row {row} has delay {delay} and overlap {overlap}; "
                    f"expected 0 <= delay <= overlap <= {horizon}"
                )
        if not torch.isfinite(self.actions_BTA[first(self.overlap_B, horizon)]).all():
            raise ValueError("prefix.actions_BTA has NaN or infinity before the end of the overlap")
        object.__setattr__(self, "longest", max(delays, default=0))

    def converted(self, convert: Callable[[Tensor], Tensor]) -> Prefix:
        """The same prefix with its actions in other units; not checked again, for that waits for the device."""
        other = copy.copy(self)
        object.__setattr__(other, "actions_BTA", convert(self.actions_BTA))
        return other


def first(count_B: Tensor, horizon: int) -> Tensor:
    """Mask (..., T), True at the first `count` (...,) of T steps."""
    return torch.arange(horizon, device=count_B.device) < count_B.unsqueeze(-1)


def soft_mask(delay_B: Tensor, overlap_B: Tensor, horizon: int) -> Tensor:
    """Weight W (B, T) in 0..1 of each step of the previous chunk (Black 2025, arXiv 2506.07339, Eq. 5).

    1 before the delay, 0 from the overlap on, and c (e^c - 1) / (e - 1) between them with c falling linearly. Clipped,
    the linear ramp meets both ends by itself; exactly 1, too, where a processor's exponential is not.
    """
    step = torch.arange(1, horizon + 1, device=delay_B.device)
    delay, overlap = delay_B.unsqueeze(-1), overlap_B.unsqueeze(-1)
    c = (1 - (step - delay) / (overlap - delay + 1)).clamp(0, 1)
    return torch.where(c == 1, 1.0, c * torch.expm1(c) / math.expm1(1))


def pull_strength(c: Coefficients, maximum: float) -> Tensor:
    """How strongly a sampler at this point of the path is pulled towards the prefix, at most `maximum`.

    (sigma alpha' - alpha sigma') (alpha^2 + sigma^2) / (alpha sigma), which holds for data of variance 1 (Song 2023,
    pseudoinverse guidance; Pokle 2024, for flows). On the linear path it is the (1-t)/t (t^2 + (1-t)^2) / (1-t)^2 of
    Black 2025 (arXiv 2506.07339, Eq. 2 and 4). At both ends it grows beyond all bounds, so there it is the maximum.
    """
    turn = c.sigma * c.d_alpha - c.alpha * c.d_sigma
    return (turn * (c.alpha.square() + c.sigma.square()) / (c.alpha * c.sigma).clamp(min=SMALLEST)).clamp(max=maximum)


def hold_first(t: Tensor, mask: Tensor, most: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Times (draws, B) as one per action (draws, B, T), 1 for a random number of first ones, which do not count.

    At t=1 the path is at the data, so the net sees these actions clean. Their number is uniform in 0..most, as in the
    robot experiments of Black 2025 (arXiv 2512.05964): which delays will occur is not known in training.

    Args:
        t: of every chunk.
        mask: (B, T), or (B, T, A), what counts.
        most: actions that are held.
        generator: of the training.

    Returns:
        The times, and what still counts, (draws, B, T, A or 1).

    Raises:
        ValueError: nothing would be left to predict.
    """
    horizon = mask.shape[1]
    if most >= horizon:
        raise ValueError(
            f"head.prefix_max={most} leaves nothing to predict of a chunk of {horizon} steps; choose at most "
            f"{horizon - 1}"
        )
    count = drawn(partial(torch.randint, most + 1), t.shape, generator, -1, device=t.device)
    held = first(count, horizon)
    mask = mask.unsqueeze(-1) if mask.ndim == 2 else mask
    return torch.where(held, 1, t.unsqueeze(-1)), mask & ~held.unsqueeze(-1)
