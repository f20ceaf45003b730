"""Shortcut head: one net for 1, 2, 4 ... steps, each step trained to do what two steps of half its length do."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..conditioning import Conditioning
from ..draws import drawn, everywhere, own, permutation, source
from ..generation.paths import TIMES, linear, sample_time, to_velocity
from ..generation.solvers import jump
from ..nets.base import Modulation, Net
from ..nets.embed import TimeEmbedding
from .base import Head, HeadConfig, masked_mean

PREDICTIONS = ("velocity", "data")


@dataclass
class ShortcutConfig(HeadConfig):
    """Shortcut model (Frans 2024, arXiv 2410.12557): steps of length 1, 1/2, 1/4 ... from one training."""

    sampling: ClassVar[tuple[str, ...]] = ("steps",)

    kind: str = "shortcut"
    prediction: str = "data"  # what the net predicts: velocity | data
    time: str = "uniform"  # training times, before rounding: uniform | beta (more near the noise) | logit_normal
    halvings: int = 7  # the shortest step is 2^-halvings of the way from noise to data
    bootstrap_share: float = 0.25  # share of the batch that learns a step from two half steps
    steps: int = 1  # steps K per decision: a power of two, at most 2^halvings
    # whether tokens of the observation are told the length too, at the cost of as many weights as the square of them
    length_on_tokens: bool = field(default=False, metadata={"before": True})

    def __post_init__(self) -> None:
        for name, choices in (("prediction", PREDICTIONS), ("time", TIMES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"head.{name}={getattr(self, name)!r} is unknown; choices: {', '.join(choices)}")
        if not 1 <= self.halvings <= 10:
            raise ValueError(f"head.halvings={self.halvings} must lie in 1..10")
        if not 0 < self.bootstrap_share < 1:
            raise ValueError(f"head.bootstrap_share={self.bootstrap_share} must lie inside (0, 1)")
        lengths = [2**k for k in range(self.halvings + 1)]
        if self.steps not in lengths:
            choices = ", ".join(map(str, lengths))
            raise ValueError(f"head.steps={self.steps} must be one of {choices} with head.halvings={self.halvings}")


class ShortcutHead(Head):
    """Learns the shortcut s(x, t, d): the velocity with which a step of length d lands on the flow again.

    The shortest steps follow the flow (flow matching: there s is the velocity). Twice their length is what two of them
    do, s(x, t, 2d) = (s(x, t, d) + s(x + d s(x, t, d), t + d, d)) / 2, and so on up to a single step.
    """

    def __init__(self, config: ShortcutConfig, cond_size: int, tokens: tuple[int, int] = (0, 0)):
        super().__init__()
        self.config = config
        self.length = TimeEmbedding(cond_size + (math.prod(tokens) if config.length_on_tokens else 0))

    @property
    def evaluations(self) -> int:
        """Network evaluations per decision."""
        return self.config.steps

    def prepare(self, net: Net, t: Tensor, halvings: Tensor, cond: Conditioning) -> Modulation:
        """The net's modulation for steps of length 2^-halvings from t, all (..., B) or broadcast to it."""
        return net.prepare(t, cond.plus(self.length(halvings / self.config.halvings)))

    def shortcut(self, net: Net, x: Tensor, t: Tensor, halvings: Tensor, cond: Conditioning) -> Tensor:
        """s(x, t, 2^-halvings) of rows (B, T, A), each with its own time and length (B,)."""
        output = net(x, self.prepare(net, t, halvings, cond))
        return to_velocity(self.config.prediction, output, x, linear(t[:, None, None]))

    def loss(
        self, net: Net, x1_BTA: Tensor, cond: Conditioning, mask_BT: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Mean squared error of the shortcut; a part of the rows, drawn anew, learns from two half steps.

        A step of length d starts at a multiple of d. The half steps are the present net's own, without gradient (the
        paper takes an average of its weights). With prediction=data the error is that of the data, as in flow matching.
        """
        B, finest = len(x1_BTA), self.config.halvings
        x0 = drawn(torch.randn, x1_BTA.shape, generator, device=x1_BTA.device, dtype=x1_BTA.dtype)
        share = max(1, round(self.config.bootstrap_share * everywhere(B, generator)))
        rows = permutation(B, generator, x1_BTA.device)[:share]
        level = torch.randint(finest, rows.shape, generator=source(generator), device=x1_BTA.device)
        rows, level = own(rows, generator, level)
        halvings = torch.full((B,), finest, device=x1_BTA.device).index_copy(0, rows, level)
        starts = 2.0**halvings
        t = (starts * sample_time(self.config.time, (B,), x1_BTA, generator)).floor() / starts
        x_t = t[:, None, None] * x1_BTA + (1 - t[:, None, None]) * x0
        output = self.shortcut(net, x_t, t, halvings, cond)
        bootstrap = self.two_steps(net, x_t[rows], t[rows], level + 1, cond[rows])
        error = output - (x1_BTA - x0).index_copy(0, rows, bootstrap)
        if self.config.prediction == "data":
            error = (1 - t[:, None, None]) * error
        return masked_mean(error.square(), mask_BT, generator)

    @torch.no_grad()
    def two_steps(self, net: Net, x: Tensor, t: Tensor, halvings: Tensor, cond: Conditioning) -> Tensor:
        """The velocity of two steps of length 2^-halvings from t, without gradient."""
        if not len(x):  # all such rows are with other processes, and not every net takes none
            return x
        length = 0.5**halvings
        first = self.shortcut(net, x, t, halvings, cond)
        second = self.shortcut(net, x + length[:, None, None] * first, t + length, halvings, cond)
        return (first + second) / 2

    def sample(self, net: Net, noise_BTA: Tensor, cond: Conditioning) -> Tensor:
        """Takes K steps of length 1/K from the noise."""
        steps = self.config.steps
        times = torch.arange(steps, device=noise_BTA.device) / steps
        halvings = torch.full((1,), steps.bit_length() - 1, device=noise_BTA.device)
        prepared = self.prepare(net, times[:, None].expand(-1, len(noise_BTA)), halvings, cond)

        def velocity(x: Tensor, k: int) -> Tensor:
            return to_velocity(self.config.prediction, net(x, prepared[k]), x, linear(times[k]))

        return jump(velocity, noise_BTA, steps)
