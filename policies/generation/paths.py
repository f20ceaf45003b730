"""Gaussian probability paths from noise (t=0) to data (t=1), and what a network may predict along them.

    x_t = alpha(t) x1 + sigma(t) x0,    x0 ~ N(0, I),    v = dx_t/dt = alpha'(t) x1 + sigma'(t) x0

Velocity, data and noise are linear in each other given the four coefficients, which therefore travel together. The
sampler of a path sees nothing of it but the noise-to-signal ratio sigma / alpha (Karras 2022, Eq. 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..draws import drawn

PREDICTIONS = ("velocity", "data", "noise")
TIMES = ("uniform", "beta", "logit_normal")
SMALLEST = 1e-4  # alpha and sigma count as at least this where they divide, if nothing else is said


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


def cosine(t: Tensor) -> Coefficients:
    """The arc x_t = sin(pi t / 2) x1 + cos(pi t / 2) x0, which keeps the variance of normalized data (Albergo 2023)."""
    rate = math.pi / 2
    alpha, sigma = (rate * t).sin(), (rate * (1 - t)).sin()
    return Coefficients(alpha, sigma, rate * sigma, -rate * alpha)


PATHS = {"linear": linear, "cosine": cosine}


def time_at(path: str, log_ratio: Tensor) -> Tensor:
    """The time at which the named path has this ln(sigma / alpha)."""
    return torch.sigmoid(-log_ratio) if path == "linear" else 2 / math.pi * torch.atan(torch.exp(-log_ratio))


def squared_cosine(t: Tensor, steps: int) -> Coefficients:
    """The variance-preserving path of Diffusion Policy: alpha^2 = f(1-t) / f(0), f(s) = cos^2(pi/2 (s + .008) / 1.008).

    At t = 1 - (k+1) / steps this is index k of the table that Nichol 2021 (Eq. 17) makes in so many steps. There the
    last beta is clipped at 0.999, so the noise end keeps alpha = 5e-4 (for 100 steps) where the curve would reach 0;
    alpha stays at that value from there on.
    """
    rate = math.pi / 2 / 1.008
    angle = rate * (1 - t + 0.008)
    start = math.cos(rate * 0.008)
    least = math.sqrt(1 - 0.999) * math.cos(rate * (1 - 1 / steps + 0.008)) / start
    free = angle.cos() / start
    alpha = free.clamp(min=least)
    sigma = ((1 - alpha) * (1 + alpha)).clamp(min=0).sqrt()
    d_alpha = torch.where(free > least, rate * angle.sin() / start, 0)
    return Coefficients(alpha, sigma, d_alpha, -alpha * d_alpha / sigma.clamp(min=SMALLEST))


def along_angle(alpha: Tensor, sigma: Tensor) -> Coefficients:
    """A point of a variance-preserving path with derivatives with respect to its angle, arctan(alpha / sigma).

    The velocity sigma x1 - alpha x0 then has the size of the data at every t; negated it is the v-prediction of
    Salimans 2022.
    """
    return Coefficients(alpha, sigma, sigma, -alpha)


def scale(c: Coefficients, spread: float) -> Tensor:
    """Standard deviation of x_t for data of this spread."""
    return (c.sigma**2 + c.alpha**2 * spread**2).sqrt()


def preconditioned_target(x1: Tensor, x0: Tensor, c: Coefficients, spread: float) -> Tensor:
    """What a preconditioned net must answer when it is shown x_t / scale (Karras 2022, Eq. 8, on any path).

    Of unit variance, like what it is shown, and independent of it at every time for normal data of this spread. With
    the mean squared error of it the data's counts 1 / c_out^2, c_out = spread sigma / scale.
    """
    return (c.sigma / spread * x1 - c.alpha * spread * x0) / scale(c, spread)


@dataclass(frozen=True)
class Reading:
    """How a net is asked at one point of a path, and what its answer says: weights of x_t and of the answer.

    Numbers and no tensors, since a sampler reads every answer.
    """

    scale: float  # the net sees x_t / scale
    data: tuple[float, float]
    noise: tuple[float, float]
    velocity: tuple[float, float]


def readings(prediction: str, c: Coefficients, spread: float) -> list[Reading]:
    """Readings at K points (K,) of what a net predicts: velocity, data, noise, or preconditioned."""
    size = torch.ones_like(c.alpha)
    along = c
    if prediction == "preconditioned":  # its target is a velocity, along the angle between noise and scaled data
        size = scale(c, spread)
        along = Coefficients(c.alpha, c.sigma, c.sigma / (spread * size), -c.alpha * spread / size)
        prediction = "velocity"
    one, nothing = torch.ones_like(size), torch.zeros_like(size)
    # Every quantity is linear in x_t and the answer, so that its weights are its values for one of the two alone.
    data_x, data = to_data(prediction, nothing, one, along), to_data(prediction, one, nothing, along)
    noise_x, noise = to_noise(prediction, nothing, one, along), to_noise(prediction, one, nothing, along)
    velocity_x, velocity = (c.d_alpha * d + c.d_sigma * n for d, n in ((data_x, noise_x), (data, noise)))
    columns = [column.tolist() for column in (size, data_x, data, noise_x, noise, velocity_x, velocity)]
    return [Reading(s, (dx, d), (nx, n), (vx, v)) for s, dx, d, nx, n, vx, v in zip(*columns, strict=True)]


def read(weights: tuple[float, float], x_t: Tensor, output: Tensor) -> Tensor:
    """What an answer at x_t says, by the weights of a `Reading`."""
    of_x, of_output = weights
    return output if weights == (0.0, 1.0) else of_x * x_t + of_output * output


def to_velocity(prediction: str, output: Tensor, x_t: Tensor, c: Coefficients) -> Tensor:
    """Velocity of the path from what the network predicted.

    From data it is singular where sigma = 0, from noise where alpha = 0. On the linear path, for example, the data
    give (x1 - x_t) / (1 - t), whose limit at t=1 is finite only for an exact x1.
    """
    if prediction == "velocity":
        return output
    return c.d_alpha * to_data(prediction, output, x_t, c) + c.d_sigma * to_noise(prediction, output, x_t, c)


def to_data(prediction: str, output: Tensor, x_t: Tensor, c: Coefficients, least_alpha: float = SMALLEST) -> Tensor:
    """Data x1 from what the network predicted; from noise it is singular where alpha = `least_alpha` = 0."""
    if prediction == "data":
        return output
    if prediction == "noise":
        return (x_t - c.sigma * output) / c.alpha.clamp(min=least_alpha)
    _require_known(prediction)
    return (c.d_sigma * x_t - c.sigma * output) / (c.alpha * c.d_sigma - c.sigma * c.d_alpha)


def to_noise(prediction: str, output: Tensor, x_t: Tensor, c: Coefficients) -> Tensor:
    """Noise x0 from what the network predicted; from data it is singular where sigma = 0."""
    if prediction == "noise":
        return output
    if prediction == "data":
        return (x_t - c.alpha * output) / c.sigma.clamp(min=SMALLEST)
    _require_known(prediction)
    return (c.alpha * output - c.d_alpha * x_t) / (c.alpha * c.d_sigma - c.sigma * c.d_alpha)


def _require_known(prediction: str) -> None:
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction {prediction!r} is unknown; choices: {', '.join(PREDICTIONS)}")


def sample_time(kind: str, shape: tuple[int, ...], reference: Tensor, generator: torch.Generator | None) -> Tensor:
    """Training times in [0, 1) of the given shape (..., B), on the device of `reference`.

    uniform: U(0, 1). beta: 0.999 (1 - Beta(1.5, 1)), more mass near the noise and none above 0.999 (Black 2024, pi0).
    logit_normal: sigmoid of N(0, 1), more mass in the middle (Esser 2024).
    """
    options = {"device": reference.device, "dtype": torch.float32}
    if kind == "uniform":
        return drawn(torch.rand, shape, generator, -1, **options)
    if kind == "beta":  # u ** (1 / a) is the inverse distribution function of Beta(a, 1)
        return 0.999 * (1 - drawn(torch.rand, shape, generator, -1, **options) ** (1 / 1.5))
    if kind == "logit_normal":
        return torch.sigmoid(drawn(torch.randn, shape, generator, -1, **options))
    raise ValueError(f"time distribution {kind!r} is unknown; choices: {', '.join(TIMES)}")


def sample_log_ratio(
    shape: tuple[int, ...],
    mean: float,
    std: float,
    uniform_share: float,
    reference: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """Training noise as ln(sigma / alpha): normal (Karras 2022), or that of uniform times on the linear path.

    The uniform share visits both ends, where a normal distribution too narrow or too far to one side teaches nothing.
    """
    options = {"device": reference.device, "dtype": reference.dtype}
    log_ratio = mean + std * drawn(torch.randn, shape, generator, -1, **options)
    if not uniform_share:
        return log_ratio
    uniform = -torch.logit(drawn(torch.rand, shape, generator, -1, **options), eps=SMALLEST)
    return torch.where(drawn(torch.rand, shape, generator, -1, **options) < uniform_share, uniform, log_ratio)
