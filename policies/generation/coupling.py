"""Which noise meets which demonstrated chunk in training: minibatch optimal transport between the two."""

from __future__ import annotations

import torch
from torch import Tensor

COUPLINGS = ("independent", "optimal_transport")


def require_separable(coupling: str) -> None:
    """Raises `ValueError` for a coupling that needs all rows of a batch in one process."""
    if coupling == "optimal_transport":
        raise ValueError(
            "head.coupling='optimal_transport' pairs noise and chunks of the whole batch in one process; train on one "
            "device, or with head.coupling=independent"
        )


@torch.no_grad()
def couple(x0_NBTA: Tensor, x1_BTA: Tensor, cond_BE: Tensor, mask_BT: Tensor, condition_weight: float) -> Tensor:
    """Reorders each of N draws of noise (N, B, T, A) so that noise and chunks paired up are as near as they can be.

    The nearest pairing makes the flow straighter (Pooladian 2023, Tong 2024), but it also tells the noise which
    condition it belongs to, and at run time the noise knows nothing of it (Cheng & Schwing 2025, arXiv 2503.10636: a
    skewed prior). So each noise brings along the condition of the row that it was drawn for, and

        cost(i, j) = mean (x0_i - x1_j)^2 + condition_weight * |c_i - c_j|^2 / mean |c - c'|^2

    lets rows exchange their noise only where their conditions agree; in the limit of large weight and batch it is the
    conditional optimal transport map (Chemseddine 2024, arXiv 2403.18705). Weight 0 is right only without a condition.

    The assignment is exact and cubic in B. It is found on the CPU, for which the device is waited for.
    """
    conditions = condition_weight * condition_distance(cond_BE) if condition_weight else 0.0
    orders = [assignment(chunk_distance(x0_BTA, x1_BTA, mask_BT) + conditions) for x0_BTA in x0_NBTA]
    return torch.stack([x0_BTA[order] for x0_BTA, order in zip(x0_NBTA, orders, strict=True)])


def chunk_distance(x0_BTA: Tensor, x1_BTA: Tensor, mask_BT: Tensor) -> Tensor:
    """Distances (i, j) of noise i to chunk j: squares over the steps where j's mask is True, divided by T * A."""
    mask = (mask_BT.unsqueeze(-1) if mask_BT.ndim == 2 else mask_BT).expand_as(x1_BTA).flatten(1).to(x0_BTA.dtype)
    x0, x1 = x0_BTA.flatten(1), mask * x1_BTA.flatten(1)
    with torch.autocast(x0.device.type, enabled=False):
        return (x0.square() @ mask.T - 2 * x0 @ x1.T + x1.square().sum(dim=1)) / x0.shape[1]


def condition_distance(cond_BE: Tensor) -> Tensor:
    """Squared distances of all conditions, as multiples of their mean; exactly 0 where conditions are equal."""
    exact = "donot_use_mm_for_euclid_dist"
    square = torch.cdist(cond_BE.float(), cond_BE.float(), compute_mode=exact).square()
    return square / square.mean().clamp(min=torch.finfo(square.dtype).tiny)


def assignment(cost: Tensor) -> Tensor:
    """The row i for each column j, all different, for which the sum of cost (i, j) is least."""
    # Imported here because training with this coupling alone needs it, and a robot should start without it.
    from scipy.optimize import linear_sum_assignment

    # NaN and infinity reach the loss by themselves, where training looks for them; scipy only refuses them.
    matrix = cost.T.nan_to_num().cpu().numpy()
    return torch.from_numpy(linear_sum_assignment(matrix)[1]).to(cost.device)
