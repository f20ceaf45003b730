"""EDM head: diffusion with the preconditioning, noise levels and solver of Karras 2022."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from flowhand.contracts.strict import require_within

from ..conditioning import Conditioning
from ..draws import drawn
from ..generation.paths import Coefficients, preconditioned_target, read, readings, sample_log_ratio, scale
from ..generation.solvers import descend
from ..nets.base import Net
from .base import RATIO_LIMITS, Head, HeadConfig, masked_mean


@dataclass
class EDMConfig(HeadConfig):
    """Diffusion in the design of Karras 2022: x = x1 + sigma x0, a preconditioned net, and a second-order solver.

    The noise levels are those of the paper where they belong to the spread of the data (which is 0.5 there), and
    smaller at both ends, where an image needs more than a chunk of actions: sigma_max has to hide the largest distance
    between two chunks, about sqrt(2 T A) for T A independent numbers.
    """

    sampling: ClassVar[tuple[str, ...]] = ("steps", "sigma_min", "sigma_max", "rho")

    kind: str = "edm"
    steps: int = 10  # Heun steps K per decision, 2 K - 1 network evaluations; fewer than 5 overshoot
    sigma_data: float = 1.0  # spread of the data, normalized units: 1 for mean_std, about 0.5 for min_max
    sigma_min: float = 0.02  # noise of the last level before the data, normalized units; 0.002 in the paper
    sigma_max: float = 20.0  # noise at the start, normalized units; 80 in the paper
    rho: float = 7.0  # how much the levels crowd near the data
    log_mean: float = -0.5  # mean of ln(sigma) in training; the paper's -1.2 for sigma_data=0.5, moved by ln(1 / 0.5)
    log_std: float = 1.2  # its standard deviation
    # share of the rows whose noise is that of uniform times on the linear path, so that neither end is starved
    uniform_share: float = field(default=0.0, metadata={"before": 0.0})

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 1000:
            raise ValueError(f"head.steps={self.steps} must lie in 1..1000")
        limits = {"sigma_min": (1e-6, 1e6), "sigma_max": (1e-6, 1e6), "rho": (0.1, 100.0)}
        require_within(self, "head", {**limits, **RATIO_LIMITS})
        if self.sigma_max <= self.sigma_min:
            raise ValueError(f"head.sigma_max={self.sigma_max} must be larger than head.sigma_min={self.sigma_min}")


def exploding(level: Tensor) -> Coefficients:
    """The path x = x1 + level x0, with the level itself for its time."""
    one = torch.ones_like(level)
    return Coefficients(one, level, torch.zeros_like(level), one)


def karras_levels(config: EDMConfig) -> list[float]:
    """The noise levels of the steps, largest first, and 0 (Karras 2022, Eq. 5)."""
    high, low = config.sigma_max ** (1 / config.rho), config.sigma_min ** (1 / config.rho)
    last = max(config.steps - 1, 1)
    return [(high + i / last * (low - high)) ** config.rho for i in range(config.steps)] + [0.0]


class EDMHead(Head):
    """Learns a denoiser whose input and target have unit variance at every noise level."""

    times: Tensor

    def __init__(self, config: EDMConfig, cond_size: int, tokens: tuple[int, int] = (0, 0)):
        super().__init__()
        self.config = config
        self.levels = karras_levels(config)
        times = [math.log(level) / 4 for level in self.levels[:-1]]
        # The device is named because a checkpoint's shapes are found out on the meta device, which computes nothing.
        levels = torch.tensor(self.levels[:-1], dtype=torch.float64, device="cpu")
        self.readings = readings("preconditioned", exploding(levels), config.sigma_data)
        self.register_buffer("times", torch.tensor(times, dtype=torch.float32), persistent=False)

    @property
    def evaluations(self) -> int:
        """Network evaluations per decision."""
        return 2 * self.config.steps - 1

    @property
    def preconditioned(self) -> bool:
        """Always."""
        return True

    def coefficients(self, net_time: Tensor) -> Coefficients:
        """Of the exploding path; the net is given a quarter of the level's logarithm."""
        return exploding((4 * net_time).exp())

    def loss(
        self, net: Net, x1_BTA: Tensor, cond: Conditioning, mask_BT: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Mean squared error of the denoised chunk, weighted to unit size at every level (Karras 2022, Eq. 8).

        With the weight 1 / c_out^2 that is the mean squared error of what the net itself must give.
        """
        config, rows = self.config, x1_BTA.shape[:1]
        noise = (config.log_mean, config.log_std, config.uniform_share)
        log_level = sample_log_ratio(rows, *noise, x1_BTA, generator)
        x0 = drawn(torch.randn, x1_BTA.shape, generator, device=x1_BTA.device, dtype=x1_BTA.dtype)
        c = exploding(log_level.exp()[:, None, None])
        target = preconditioned_target(x1_BTA, x0, c, config.sigma_data)
        x = (x1_BTA + c.sigma * x0) / scale(c, config.sigma_data)
        output = net(x, net.prepare(log_level / 4, cond))
        return masked_mean((output - target).square(), mask_BT, generator)

    def sample(self, net: Net, noise_BTA: Tensor, cond: Conditioning) -> Tensor:
        """Heun's method down the noise levels (Karras 2022, Algorithm 1), the last step to 0 by Euler's."""
        prepared = net.prepare(self.times[:, None].expand(-1, len(noise_BTA)), cond)

        def slope(x: Tensor, i: int) -> Tensor:
            """Change of x with sigma at level i: (x - denoised x) / sigma."""
            reading = self.readings[i]
            return read(reading.velocity, x, net(x / reading.scale, prepared[i]))

        return descend(slope, self.levels[0] * noise_BTA, self.levels)
