"""Diffusion head: DDPM training as in Diffusion Policy, and its samplers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from flowhand.contracts.strict import require_within

from ..conditioning import Conditioning
from ..draws import drawn
from ..generation.grids import log_ratios, power, tabulated
from ..generation.paths import (
    PREDICTIONS,
    Coefficients,
    along_angle,
    preconditioned_target,
    read,
    readings,
    sample_log_ratio,
    scale,
    squared_cosine,
    to_data,
    to_noise,
)
from ..generation.solvers import ddim, ddpm, multistep, walk
from ..nets.base import Net
from .base import RATIO_LIMITS, Head, HeadConfig

SPACINGS = ("trailing", "leading", "power", "tabulated")
TIMES = ("uniform", "log_normal")


@dataclass
class DiffusionConfig(HeadConfig):
    """Denoising diffusion on the squared-cosine path (Ho 2020, Nichol 2021): what Diffusion Policy (Chi 2023) trains.

    Diffusion Policy itself is prediction=noise, sampler=ddpm, steps=100, clip=1 with normalizer.action=min_max; on its
    robots sampler=ddim, steps=16, spacing=leading.
    """

    sampling: ClassVar[tuple[str, ...]] = ("sampler", "steps", "spacing", "clip", "least_alpha")

    kind: str = "diffusion"
    # what the net predicts: noise | data | velocity (v-prediction, Salimans 2022) | preconditioned (Karras 2022)
    prediction: str = "data"
    train_steps: int = 100  # noise levels of the training, T
    # ddim | ddpm (draws noise at every step) | multistep (DPM-Solver++ 2M, second order; dpmpp_2m is its older name)
    sampler: str = "ddim"
    steps: int = 10  # network evaluations K per decision, at most train_steps
    # levels that are visited: trailing (from pure noise) | leading (Diffusion Policy's) | power | tabulated (grids.py)
    spacing: str = "trailing"
    clip: float = 0.0  # largest size of a predicted normalized action; 0: not clipped
    # alpha counts as at least this where a predicted noise is taken off the chunk; with 1,000 levels it is 0.00005
    least_alpha: float = field(default=0.0, metadata={"before": 1e-4})
    # spread of the data, normalized units, where the prediction is preconditioned: 1 for mean_std, 0.5 for min_max
    sigma_data: float = field(default=1.0, metadata={"before": 1.0})
    # training levels: uniform | log_normal (the one nearest to a normal ln(sigma / alpha))
    time: str = field(default="uniform", metadata={"before": "uniform"})
    log_mean: float = field(default=-1.2, metadata={"before": -1.2})  # mean of ln(sigma / alpha), time=log_normal
    log_std: float = field(default=1.2, metadata={"before": 1.2})  # its standard deviation
    # share of the rows, with time=log_normal, whose noise is that of uniform times on the linear path
    uniform_share: float = field(default=0.1, metadata={"before": 0.1})
    # what a wrong choice costs: squared (of its code) | cross_entropy (the net gives probabilities) | auto
    # (cross_entropy where the action points at rows of the observation and the net predicts data, else squared)
    choices: str = field(default="auto", metadata={"before": "auto"})

    def __post_init__(self) -> None:
        self.require_choice_error(self.choices, self.prediction)
        known = {"prediction": (*PREDICTIONS, "preconditioned"), "sampler": SAMPLERS}
        known |= {"spacing": SPACINGS, "time": TIMES}
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"head.{name}={getattr(self, name)!r} is unknown; choices: {', '.join(choices)}")
        if not 1 <= self.train_steps <= 1000:
            raise ValueError(f"head.train_steps={self.train_steps} must lie in 1..1000")
        if not 1 <= self.steps <= self.train_steps:
            raise ValueError(f"head.steps={self.steps} must lie in 1..{self.train_steps} (head.train_steps)")
        if self.spacing == "tabulated":
            tabulated(self.steps)
        require_within(self, "head", {"clip": (0.0, 1000.0), "least_alpha": (0.0, 1.0), **RATIO_LIMITS})
        if self.prediction == "noise" and not self.clip:
            raise ValueError(
                "head.prediction='noise' needs head.clip: its first step divides by almost nothing. Give the largest "
                "size of a normalized action: 1 with normalizer.action=min_max, about 5 with mean_std"
            )

    def require_reference(self) -> None:
        """Raises `ValueError` for the settings in which diffusers computes something else.

        Its DDIM goes down by T // K levels whatever level comes next, so that from K that do not divide T it ends up
        beside the levels it evaluates; its DPM-Solver has other leading levels than its DDIM and DDPM.
        """
        T = self.train_steps
        if (self.sampler, self.spacing) == ("ddim", "trailing") and T % self.steps:
            able = ", ".join(str(n) for n in range(1, T + 1) if T % n == 0)
            raise ValueError(
                f"head.steps={self.steps} with head.sampler='ddim' and head.spacing='trailing' must divide "
                f"head.train_steps={T}: {able}; head.sampler='multistep' and head.spacing='leading' take any number"
            )
        if SAMPLERS[self.sampler] is multistep and self.spacing == "leading":
            raise ValueError(f"head.sampler={self.sampler!r} takes head.spacing='trailing', got 'leading'")


SAMPLERS = {"ddim": ddim, "ddpm": ddpm, "multistep": multistep, "dpmpp_2m": multistep}


def visited(spacing: str, train_steps: int, steps: int) -> list[int]:
    """Indices of the noise levels that a sampler visits, noisiest first.

    trailing starts where the training noise is largest; leading ends where it is smallest, and starts at a level that
    still holds some data, although the sampler starts from pure noise (Lin 2024, Table 2).
    """
    if spacing == "leading":
        return [(steps - 1 - i) * (train_steps // steps) for i in range(steps)]
    if spacing == "trailing":
        return [round(train_steps * (steps - i) / steps) - 1 for i in range(steps)]
    grid = power(steps) if spacing == "power" else tabulated(steps)
    nearest = torch.bucketize(log_ratios(grid), between(levels(train_steps))).tolist()
    chosen = [train_steps - 1]
    for left, index in zip(range(steps - 1, 0, -1), nearest, strict=True):  # no level twice
        chosen.append(min(chosen[-1] - 1, max(index, left - 1)))
    return chosen


def levels(train_steps: int) -> Coefficients:
    """The noise levels of the training, next to the data first, in float64."""
    # The device is named because a checkpoint's shapes are found out on the meta device, which computes nothing.
    index = torch.arange(train_steps, dtype=torch.float64, device="cpu")
    path = squared_cosine(1 - (index + 1) / train_steps, train_steps)
    return along_angle(path.alpha, path.sigma)


def between(c: Coefficients) -> Tensor:
    """The values of ln(sigma / alpha) half way between neighbouring levels: `bucketize` finds the nearest level."""
    log_ratio = (c.sigma / c.alpha).log()
    return (log_ratio[1:] + log_ratio[:-1]) / 2


class DiffusionHead(Head):
    """Learns to undo one of many noise levels and walks down a few of them.

    Outside, t=1 is data. The index of diffusion, 0 next to the data and train_steps-1 at the noise, stays in this file.
    The net is told t = 1 - (index+1) / train_steps.
    """

    table: Tensor
    index: Tensor
    between: Tensor

    def __init__(self, config: DiffusionConfig, cond_size: int, tokens: tuple[int, int] = (0, 0)):
        super().__init__()
        self.config = config
        c = levels(config.train_steps)
        table = torch.stack([c.alpha, c.sigma])
        chosen = visited(config.spacing, config.train_steps, config.steps)
        steps = [(alpha, sigma) for alpha, sigma in table[:, chosen].T.tolist()] + [(1.0, 0.0)]
        self.updates = [SAMPLERS[config.sampler](steps, i) for i in range(config.steps)]
        self.readings = readings(config.prediction, along_angle(*table[:, chosen]), config.sigma_data)
        self.register_buffer("table", table.float(), persistent=False)
        self.register_buffer("between", between(c).float(), persistent=False)
        self.register_buffer("index", torch.tensor(chosen, device="cpu"), persistent=False)

    @property
    def evaluations(self) -> int:
        """Network evaluations per decision."""
        return self.config.steps

    def noise_shape(self, chunk_shape: tuple[int, int]) -> tuple[int, ...]:
        """DDPM draws again before every step: (K, T, A), the starting noise first."""
        return (self.config.steps, *chunk_shape) if self.config.sampler == "ddpm" else chunk_shape

    @property
    def preconditioned(self) -> bool:
        """Whether it is asked for."""
        return self.config.prediction == "preconditioned"

    def coefficients(self, net_time: Tensor) -> Coefficients:
        """Of the squared-cosine path."""
        c = squared_cosine(net_time, self.config.train_steps)
        return along_angle(c.alpha, c.sigma)

    def loss(
        self, net: Net, x1_BTA: Tensor, cond: Conditioning, mask_BT: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Mean squared error of the prediction at random noise levels (Ho 2020, Eq. 14)."""
        config = self.config
        index = self._levels(x1_BTA, generator)
        x0 = drawn(torch.randn, x1_BTA.shape, generator, device=x1_BTA.device, dtype=x1_BTA.dtype)
        c = along_angle(*self.table[:, index, None, None])
        x_t = c.alpha * x1_BTA + c.sigma * x0
        if config.prediction == "preconditioned":
            x_t, target = x_t / scale(c, config.sigma_data), preconditioned_target(x1_BTA, x0, c, config.sigma_data)
        else:
            target = {"data": x1_BTA, "noise": x0, "velocity": c.d_alpha * x1_BTA + c.d_sigma * x0}[config.prediction]
        output = net(x_t, net.prepare(self._time(index), cond))
        return self.error(output, target, mask_BT, generator)

    def _levels(self, x1_BTA: Tensor, generator: torch.Generator | None) -> Tensor:
        """An index (B,) of the noise levels for each row."""
        config, rows = self.config, x1_BTA.shape[:1]
        if config.time == "uniform":
            return drawn(partial(torch.randint, config.train_steps), rows, generator, device=x1_BTA.device)
        noise = (config.log_mean, config.log_std, config.uniform_share)
        return torch.bucketize(sample_log_ratio(rows, *noise, x1_BTA, generator), self.between)

    def sample(self, net: Net, noise_BTA: Tensor, cond: Conditioning) -> Tensor:
        """Walks from the noise to the data; all time-dependent work is done for the K steps at once, before the loop.

        Clipping changes the predicted data and leaves the predicted noise, as in Diffusion Policy.
        """
        clip, prediction, least = self.config.clip, self.config.prediction, self.config.least_alpha
        x, *fresh = noise_BTA.unbind(1) if self.config.sampler == "ddpm" else (noise_BTA,)
        prepared = net.prepare(self._time(self.index)[:, None].expand(-1, len(x)), cond)
        points = [along_angle(alpha, sigma) for alpha, sigma in zip(*self.table[:, self.index], strict=True)]

        def denoise(x: Tensor, i: int) -> tuple[Tensor, Tensor | None]:
            c, reading, wanted = points[i], self.readings[i], self.updates[i].noise != 0
            if prediction == "preconditioned":
                output = net(x / reading.scale, prepared[i])
                data, noise = read(reading.data, x, output), read(reading.noise, x, output) if wanted else None
            else:
                output = net(x, prepared[i])
                output = self.expected(output) if prediction == "data" else output
                data = to_data(prediction, output, x, c, least)
                noise = to_noise(prediction, output, x, c) if wanted else None
            return data.clamp(-clip, clip) if clip else data, noise

        return walk(denoise, x, self.updates, fresh)

    def _time(self, index: Tensor) -> Tensor:
        """Generation time t at diffusion indices."""
        return 1 - (index + 1) / self.config.train_steps
