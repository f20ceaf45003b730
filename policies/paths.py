"""Gaussian probability paths from noise (t=0) to data (t=1), and what a network may predict along them.

    x_t = alpha(t) x1 + sigma(t) x0,    x0 ~ N(0, I),    v = dx_t/dt = alpha'(t) x1 + sigma'(t) x0

Velocity, data and noise are linear in each other given the four coefficients, which therefore travel together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PREDICTIONS = ("velocity", "data")
TIMES = ("uniform", "beta", "logit_normal")


@dataclass(frozen=True)
class Coefficients:
    """alpha, sigma and their time derivatives, all of the shape of t."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


def linear(t: Tensor) -> Coefficients:
    """The straight path of flow matching: x_t = t x1 + (1-t) x0, v = x1 - x0 (Lipman 2023; Liu 2023)."""
    one = torch.ones_like(t)
    return Coefficients(t, 1 - t, one, -one)


def to_velocity(prediction: str, output: Tensor, x_t: Tensor, c: Coefficients) -> Tensor:
    """Velocity of the path from what the network predicted.

    From data: x0 = (x_t - alpha x1) / sigma, hence v = d_alpha x1 + d_sigma x0. On the linear path this is
    (x1 - x_t) / (1 - t), whose limit at t=1 is finite only for an exact x1; sigma is kept above 1e-3, far below the
    last step of any solver in use.
    """
    if prediction == "velocity":
        return output
    if prediction == "data":
        noise = (x_t - c.alpha * output) / c.sigma.clamp(min=1e-3)
        return c.d_alpha * output + c.d_sigma * noise
    raise ValueError(f"prediction {prediction!r} is unknown; choices: {', '.join(PREDICTIONS)}")


def sample_time(kind: str, shape: tuple[int, ...], reference: Tensor, generator: torch.Generator | None) -> Tensor:
    """Training times in [0, 1) of the given shape, on the device of `reference`.

    uniform: U(0, 1). beta: 1 - 0.999 Beta(1.5, 1), more mass near the noise (Black 2024, pi0). logit_normal:
    sigmoid of N(0, 1), more mass in the middle (Esser 2024).
    """
    options = {"device": reference.device, "dtype": torch.float32, "generator": generator}
    if kind == "uniform":
        return torch.rand(shape, **options)
    if kind == "beta":
        return 1 - 0.999 * torch.rand(shape, **options) ** (1 / 1.5)  # the inverse distribution function of Beta(a, 1)
    if kind == "logit_normal":
        return torch.sigmoid(torch.randn(shape, **options))
    raise ValueError(f"time distribution {kind!r} is unknown; choices: {', '.join(TIMES)}")
