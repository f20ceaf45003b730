"""Mean-flow head: the average velocity of an interval, so that one evaluation carries noise to data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..conditioning import Conditioning
from ..draws import drawn, everywhere, own, permutation
from ..generation.paths import TIMES, linear, sample_time, to_velocity
from ..generation.solvers import jump
from ..nets.base import Modulation, Net
from ..nets.embed import TimeEmbedding
from .base import Head, HeadConfig, masked_mean

PREDICTIONS = ("velocity", "data")
# The head learns from the net's derivative in time. The nets resolve a 4e-3 of the way from noise to data, which makes
# that derivative a thousand times the value and the training diverge, so they are shown time slowed down until the
# fastest sine makes a quarter turn on the way (Geng 2025 and Lu & Song 2024 have embeddings as slow as that).
TIME_SCALE = 1e-3


@dataclass
class MeanFlowConfig(HeadConfig):
    """Mean flow (Geng 2025, arXiv 2505.13447) or improved mean flow (Geng 2025, arXiv 2512.02012), one step."""

    sampling: ClassVar[tuple[str, ...]] = ("steps",)

    kind: str = "mean_flow"
    improved: bool = True  # the net's own velocity moves the derivative; False: the velocity of the drawn noise
    prediction: str = field(default="data", metadata={"before": "velocity"})  # what the net predicts: velocity | data
    time: str = "uniform"  # both ends of an interval: uniform | beta (more near the noise) | logit_normal
    flow_share: float = 0.5  # share of the batch with intervals of length 0: flow matching (0.75 in 2505.13447)
    # share of the other intervals that end at the data, where a single jump ends too; 0 in both papers
    to_data: float = field(default=0.75, metadata={"before": 0.0})
    # weight of the intervals against flow matching: the derivative brings news from the data to the noise slowly
    interval_weight: float = field(default=5.0, metadata={"before": 1.0})
    weight_power: float = 1.0  # 0: all actions count alike; above: the less, the more the derivative moves their target
    steps: int = 1  # jumps K per decision, all of the same length
    # whether tokens of the observation are told the length too, at the cost of as many weights as the square of them
    length_on_tokens: bool = field(default=False, metadata={"before": True})

    def __post_init__(self) -> None:
        for name, choices in (("prediction", PREDICTIONS), ("time", TIMES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"head.{name}={getattr(self, name)!r} is unknown; choices: {', '.join(choices)}")
        if not 0 < self.flow_share < 1:
            raise ValueError(f"head.flow_share={self.flow_share} must lie inside (0, 1): both kinds of row are needed")
        if not 0 <= self.to_data <= 1:
            raise ValueError(f"head.to_data={self.to_data} must lie in [0, 1]")
        if not 0 < self.interval_weight <= 1000:
            raise ValueError(f"head.interval_weight={self.interval_weight} must be positive and at most 1000")
        if not 0 <= self.weight_power <= 2:
            raise ValueError(f"head.weight_power={self.weight_power} must lie in 0..2")
        if not 1 <= self.steps <= 1000:
            raise ValueError(f"head.steps={self.steps} must lie in 1..1000")
        if self.steps > 1 and self.to_data == 1:
            raise ValueError(f"head.steps={self.steps} jumps end before the data too; use head.to_data below 1")


class MeanFlowHead(Head):
    """Learns the average velocity u(x, t, s) of the flow between the times t <= s and jumps by it.

    The papers have t=1 at the noise and jump to r < t; here t=0 is noise, x_t = t x1 + (1-t) x0, and a jump goes from t
    to s > t. The average velocity along a trajectory of the flow dx/dt = v(x, t),

        (s - t) u(x_t, t, s) = integral of v(x_tau, tau) over tau from t to s,

    differentiated in its start t (the left side moves with x_t, the integral loses its lower end), gives the identity

        -u + (s - t) du/dt = -v,    so    u(x, t, s) = v(x, t) + (s - t) du/dt,    du/dt = (du/dx) v + du/dt|x.

    With 1-t in place of t, velocities change sign and their derivatives in time do not, which turns the papers'
    u = v - (t - r) du/dt into this. The right side, without gradient, is what u is trained to be; at s = t it is flow
    matching. In it the first v is x1 - x0, whose mean given x_t is the velocity. The v in the derivative is x1 - x0 too
    (mean flow), which multiplies its noise by du/dx, or u(x, t, t) of the net (improved mean flow).
    """

    def __init__(self, config: MeanFlowConfig, cond_size: int, tokens: tuple[int, int] = (0, 0)):
        super().__init__()
        self.config = config
        self.length = TimeEmbedding(cond_size + (math.prod(tokens) if config.length_on_tokens else 0))

    @property
    def evaluations(self) -> int:
        """Network evaluations per decision."""
        return self.config.steps

    def prepare(self, net: Net, t: Tensor, length: Tensor, cond: Conditioning) -> Modulation:
        """The net's modulation for jumps of the given length from t, all (..., B) or broadcast to it."""
        return net.prepare(TIME_SCALE * t, cond.plus(self.length(TIME_SCALE * length)))

    def average(self, net: Net, x: Tensor, t: Tensor, length: Tensor, cond: Conditioning) -> Tensor:
        """u(x, t, t + length) of rows (B, T, A), each with its own time and length (B,)."""
        output = net(x, self.prepare(net, t, length, cond))
        return to_velocity(self.config.prediction, output, x, linear(t[:, None, None]))

    def loss(
        self, net: Net, x1_BTA: Tensor, cond: Conditioning, mask_BT: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Weighted mean squared error of the average velocity; some rows, drawn anew, have an interval to average over.

        With prediction=data the error is that of the data, as in flow matching. The weight of an action is
        (1 + |(s-t) du/dt|^2)^-power, mean square over its numbers. The papers divide by the error itself, and that is
        what tells one way of doing it from another: with few dimensions the net then learns the more frequent way only
        (measured: 1.00 where the demonstrations have 0.8). The derivative of improved mean flow knows nothing of the
        drawn noise and chunk but x_t, so that dividing by it leaves the optimum where it is.
        """
        t, length, rows = self.intervals(x1_BTA, generator)
        x0 = drawn(torch.randn, x1_BTA.shape, generator, device=x1_BTA.device, dtype=x1_BTA.dtype)
        time, velocity = t[:, None, None], x1_BTA - x0
        x_t = x0 + time * velocity
        output = self.average(net, x_t, t, length, cond)
        derivative = self.derivative(net, x_t[rows], velocity[rows], t[rows], length[rows], cond[rows])
        move = torch.zeros_like(velocity).index_copy(0, rows, length[rows, None, None] * derivative)
        weight = (1 + move.square().mean(dim=-1, keepdim=True)) ** -self.config.weight_power
        weight = weight.index_copy(0, rows, self.config.interval_weight * weight[rows])
        if self.config.prediction == "data":
            weight = (1 - time) ** 2 * weight
        return masked_mean(weight * (output - velocity - move).square(), mask_BT, generator)

    def intervals(self, x1_BTA: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """Start and length (B,) of every row's interval, and the indices of the rows whose length is not 0."""
        B = len(x1_BTA)
        times = sample_time(self.config.time, (2, B), x1_BTA, generator)
        rows = permutation(B, generator, x1_BTA.device)
        rows = rows[: max(1, round((1 - self.config.flow_share) * everywhere(B, generator)))]
        (whole,), (rows,) = own(rows[: round(self.config.to_data * len(rows))], generator), own(rows, generator)
        t = times.amin(dim=0).index_copy(0, whole, times[0, whole])
        end = t.index_copy(0, rows, times.amax(dim=0)[rows]).index_fill(0, whole, 1.0)
        return t, end - t, rows

    @torch.no_grad()
    def derivative(
        self, net: Net, x: Tensor, velocity: Tensor, t: Tensor, length: Tensor, cond: Conditioning
    ) -> Tensor:
        """du/dt of the net along the flow at a fixed end of the interval, without gradient; (B, T, A).

        Forward mode, exact up to the training's precision: nothing is subtracted, so bf16 costs its own rounding only.
        """
        if not len(x):  # all such rows are with other processes, and not every net takes none
            return x
        end = t + length

        def average(x: Tensor, t: Tensor) -> Tensor:
            return self.average(net, x, t, end - t, cond)

        if self.config.improved:
            velocity = self.average(net, x, t, torch.zeros_like(t), cond)
        return torch.func.jvp(average, (x, t), (velocity, torch.ones_like(t)))[1]

    def sample(self, net: Net, noise_BTA: Tensor, cond: Conditioning) -> Tensor:
        """Jumps from the noise to the data in K equal jumps."""
        steps = self.config.steps
        times = torch.arange(steps, device=noise_BTA.device) / steps
        length = torch.full((1,), 1 / steps, device=noise_BTA.device)
        prepared = self.prepare(net, times[:, None].expand(-1, len(noise_BTA)), length, cond)

        def velocity(x: Tensor, k: int) -> Tensor:
            return to_velocity(self.config.prediction, net(x, prepared[k]), x, linear(times[k]))

        return jump(velocity, noise_BTA, steps)
