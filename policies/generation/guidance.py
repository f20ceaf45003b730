"""What a net predicts at each evaluation of a decision, with classifier-free guidance or without."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..conditioning import Conditioning, joined
from ..nets.base import Net


def predictor(
    net: Net, t: Tensor, cond: Conditioning, per_action: bool, guidance: float, null_F: Tensor | None
) -> Callable[[Tensor, int], Tensor]:
    """The net's prediction as a function of what it sees and the index i of the evaluation.

    Guided, it comes from one batch of twice the rows (Ho & Salimans 2022, Eq. 6).

    Args:
        net: is prepared here, once for all evaluations.
        t: times (K, B), or (K, B, T) with `per_action`.
        cond: of the B rows.
        per_action: see `Net.prepare`.
        guidance: 1 is the plain prediction.
        null_F: what stands for no condition; needed where guidance is not 1.
    """
    if guidance == 1:
        prepared = net.prepare(t, cond, per_action)
        return lambda x, i: net(x, prepared[i])
    assert null_F is not None
    doubled = net.prepare(torch.cat([t, t], dim=1), joined(cond, cond.without(null_F)), per_action)
    return lambda x, i: combined(net(torch.cat([x, x]), doubled[i]), guidance)


def combined(output: Tensor, guidance: float) -> Tensor:
    """Unconditional + guidance * (conditional - unconditional), from a batch (2B, T, A) of first one, then the other.

    Predictions of one chunk are linear in each other, so it is the velocities' as well.
    """
    if guidance == 1:
        return output
    conditional, unconditional = output.unflatten(0, (2, -1)).unbind()
    return unconditional + guidance * (conditional - unconditional)
