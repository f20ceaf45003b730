"""Consistency head: every point of a trajectory, the noise first, is mapped to the trajectory's end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowhand.contracts.strict import require_within

from ..conditioning import Conditioning
from ..draws import drawn
from ..nets.base import Net
from .base import Head, HeadConfig, masked_mean
from .mean_flow import TIME_SCALE


@dataclass
class ConsistencyConfig(HeadConfig):
    """Consistency training without a teacher, one step (Song 2023; Song & Dhariwal 2023, arXiv 2310.14189, iCT).

    From the improved form: no moving average in the target, differences by pseudo-Huber and divided by the interval,
    log-normal noise levels, a slow time embedding. Two things differ. The number of intervals stays; the paper doubles
    it from 10 to 1280 in 400,000 steps, and here a loss does not know its step. And pseudo-Huber turns from a square to
    an absolute value far above the differences, not far below: below, the net learns the median of its targets in place
    of their mean, which with few dimensions is the more frequent way of doing it. Demonstrations with one of two ways
    in 0.3 of all cases come out as 0.29 with huber=1 and 0.10 with huber=0.01, however long the training; in return
    0.99 and not 0.80 of the chunks are then clearly one way or the other (docs/heads.md).
    """

    kind: str = "consistency"
    intervals: int = 64  # equal intervals N from noise to data: more blur the result less and train more slowly
    huber: float = 1.0  # normalized units: differences below count as squares, above as absolute values
    spread: float = 0.1  # normalized units: where the noise is smaller, the noisy chunk is taken for the chunk
    log_mean: float = -0.4  # mean of ln((1-t) / t) in training; the paper's -1.1 for data of spread 0.5, moved by ln 2
    log_std: float = 2.0  # its standard deviation, the paper's

    def __post_init__(self) -> None:
        if not 2 <= self.intervals <= 10_000:
            raise ValueError(f"head.intervals={self.intervals} must lie in 2..10000")
        limits = {"huber": (1e-3, 1e3), "spread": (1e-6, 1e3), "log_mean": (-10.0, 10.0), "log_std": (1e-6, 5.0)}
        require_within(self, "head", limits)


class ConsistencyHead(Head):
    """Learns f(x, t), the data at the end of the flow's trajectory through x at time t, with f(x, 1) = x.

    On x_t = t x1 + (1-t) x0 the noise level of the paper is (1-t) / t, so that t=0 is pure noise and no largest level
    has to be chosen. The boundary condition is built in,

        f = c_skip x + c_out net(x, t),    c_skip = t s^2 / (s^2 + (1-t)^2),    c_out = 1 - c_skip,    s = spread:

    at t=1 c_skip is 1 and c_out is 0. The paper has s = 0.5, the spread of all data, and c_out = s (1-t) / sqrt(...).
    But a chunk's own situation leaves it far less spread, and then such a net must find the noise in x to remove it
    from c_skip x. With a small s it predicts the data themselves until just before the end (measured: four chunks are
    learned by heart in 200 steps with an error of 0.03 in place of 0.45).
    """

    def __init__(self, config: ConsistencyConfig, cond_size: int, tokens: tuple[int, int] = (0, 0)):
        super().__init__()
        self.config = config

    @property
    def evaluations(self) -> int:
        """One."""
        return 1

    def end(self, net: Net, x_BTA: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """f(x, t) of rows (B, T, A), each at its own time (B,)."""
        spread, time = self.config.spread, t[:, None, None]
        skip = time * spread**2 / (spread**2 + (1 - time) ** 2)
        return skip * x_BTA + (1 - skip) * net(x_BTA, net.prepare(TIME_SCALE * t, cond))

    def loss(
        self, net: Net, x1_BTA: Tensor, cond: Conditioning, mask_BT: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Difference of f between two neighbouring times of one chunk and noise, by pseudo-Huber of each action.

        N (sqrt(|f(x_t, t) - f(x_r, r)|^2 + huber^2) - huber) with r = t + 1/N nearer to the data, without gradient, and
        the mean square over an action's numbers. In the last interval f(x_r, r) is the chunk itself.
        """
        N, huber = self.config.intervals, self.config.huber
        options = {"device": x1_BTA.device, "dtype": x1_BTA.dtype}
        normal = drawn(torch.randn, (len(x1_BTA),), generator, **options)
        log_level = self.config.log_mean + self.config.log_std * normal
        index = (N * torch.sigmoid(-log_level)).floor().clamp(max=N - 1)
        x0 = drawn(torch.randn, x1_BTA.shape, generator, **options)

        def end(t: Tensor) -> Tensor:
            return self.end(net, torch.lerp(x0, x1_BTA, t[:, None, None]), t, cond)

        here = end(index / N)
        with torch.no_grad():
            ahead = end((index + 1) / N)
        square = (here - ahead).square().mean(dim=-1, keepdim=True)
        # The fraction is sqrt(square + huber^2) - huber without the cancellation.
        return N * masked_mean(square / ((square + huber**2).sqrt() + huber), mask_BT, generator)

    def sample(self, net: Net, noise_BTA: Tensor, cond: Conditioning) -> Tensor:
        """The end of the trajectory from the noise: at t=0 what the net itself gives."""
        return self.end(net, noise_BTA, torch.zeros_like(noise_BTA[:, 0, 0]), cond)
