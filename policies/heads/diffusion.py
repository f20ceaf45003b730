"""Diffusion head: DDPM training as in Diffusion Policy, and its samplers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..fields import require_within
from ..nets import Net
from ..paths import PREDICTIONS, along_angle, squared_cosine, to_data, to_noise
from .base import Head, HeadConfig, masked_mean

SPACINGS = ("trailing", "leading")


@dataclass
class DiffusionConfig(HeadConfig):
    """Denoising diffusion on the squared-cosine path (Ho 2020, Nichol 2021): what Diffusion Policy (Chi 2023) trains.

    Diffusion Policy itself is prediction=noise, sampler=ddpm, steps=100, clip=1 with normalizer.action=min_max; on its
    robots sampler=ddim, steps=16, spacing=leading.
    """

    sampling: ClassVar[tuple[str, ...]] = ("sampler", "steps", "spacing", "clip")

    kind: str = "diffusion"
    prediction: str = "data"  # what the net predicts: noise | data | velocity (v-prediction, Salimans 2022)
    train_steps: int = 100  # noise levels of the training, T
    sampler: str = "ddim"  # ddim | ddpm (draws noise at every step) | dpmpp_2m (DPM-Solver++, second order)
    steps: int = 10  # network evaluations K per decision, at most train_steps
    spacing: str = "trailing"  # levels that are visited: trailing (from pure noise) | leading (Diffusion Policy's)
    clip: float = 0.0  # largest size of a predicted normalized action; 0: not clipped

    def __post_init__(self) -> None:
        for name, choices in (("prediction", PREDICTIONS), ("sampler", SAMPLERS), ("spacing", SPACINGS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"head.{name}={getattr(self, name)!r} is unknown; choices: {', '.join(choices)}")
        if not 1 <= self.train_steps <= 1000:
            raise ValueError(f"head.train_steps={self.train_steps} must lie in 1..1000")
        if not 1 <= self.steps <= self.train_steps:
            raise ValueError(f"head.steps={self.steps} must lie in 1..{self.train_steps} (head.train_steps)")
        require_within(self, "head", {"clip": (0.0, 1000.0)})
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
                f"head.train_steps={T}: {able}; head.sampler='dpmpp_2m' and head.spacing='leading' take any number"
            )
        if (self.sampler, self.spacing) == ("dpmpp_2m", "leading"):
            raise ValueError("head.sampler='dpmpp_2m' takes head.spacing='trailing', got 'leading'")


@dataclass(frozen=True)
class Update:
    """Weights with which a sampler adds up the next x; a weight of 0 leaves its term out."""

    data: float  # of the predicted data, clipped
    x: float = 0.0  # of the current x
    noise: float = 0.0  # of the predicted noise
    previous: float = 0.0  # of the data predicted one step earlier
    fresh: float = 0.0  # of new noise


Level = tuple[float, float]  # alpha, sigma


def ddim(levels: list[Level], i: int) -> Update:
    """Deterministic (Song 2021, Eq. 12 without noise): moves the predicted data and noise to the next level."""
    alpha, sigma = levels[i + 1]
    return Update(data=alpha, noise=sigma)


def ddpm(levels: list[Level], i: int) -> Update:
    """A draw from q(x_next | x, data) with the smaller of the two variances of Ho 2020 (Eq. 7, "fixed small")."""
    (alpha, sigma), (next_alpha, next_sigma) = levels[i], levels[i + 1]
    ratio = alpha / next_alpha
    beta = 1 - ratio**2
    return Update(
        data=next_alpha * beta / sigma**2,
        x=ratio * next_sigma**2 / sigma**2,
        fresh=next_sigma / sigma * math.sqrt(beta),
    )


def dpmpp_2m(levels: list[Level], i: int) -> Update:
    """Multistep, second order in the logarithm of alpha / sigma (Lu 2022b, Algorithm 2); the ends are first order."""
    (alpha, sigma), (next_alpha, next_sigma) = levels[i], levels[i + 1]
    data, x = next_alpha - next_sigma * alpha / sigma, next_sigma / sigma
    if i == 0 or next_sigma == 0:
        return Update(data=data, x=x)
    before, now, after = (math.log(a / s) for a, s in levels[i - 1 : i + 2])
    lead = (after - now) / (now - before) / 2
    return Update(data=data * (1 + lead), x=x, previous=-data * lead)


SAMPLERS = {"ddim": ddim, "ddpm": ddpm, "dpmpp_2m": dpmpp_2m}


def visited(spacing: str, train_steps: int, steps: int) -> list[int]:
    """Indices of the noise levels that a sampler visits, noisiest first.

    trailing starts where the training noise is largest; leading ends where it is smallest, and starts at a level that
    still holds some data, although the sampler starts from pure noise (Lin 2024, Table 2).
    """
    if spacing == "leading":
        return [(steps - 1 - i) * (train_steps // steps) for i in range(steps)]
    return [round(train_steps * (steps - i) / steps) - 1 for i in range(steps)]


class DiffusionHead(Head):
    """Learns to undo one of many noise levels and walks down a few of them.

    Outside, t=1 is data. The index of diffusion, 0 next to the data and train_steps-1 at the noise, stays in this file.
    The net is told t = 1 - (index+1) / train_steps.
    """

    table: Tensor
    index: Tensor

    def __init__(self, config: DiffusionConfig, cond_size: int):
        super().__init__()
        self.config = config
        # The device is named because a checkpoint's shapes are found out on the meta device, which computes nothing.
        index = torch.arange(config.train_steps, dtype=torch.float64, device="cpu")
        path = squared_cosine(1 - (index + 1) / config.train_steps, config.train_steps)
        table = torch.stack([path.alpha, path.sigma])
        chosen = visited(config.spacing, config.train_steps, config.steps)
        levels = [(alpha, sigma) for alpha, sigma in table[:, chosen].T.tolist()] + [(1.0, 0.0)]
        self.updates = [SAMPLERS[config.sampler](levels, i) for i in range(config.steps)]
        self.register_buffer("table", table.float(), persistent=False)
        self.register_buffer("index", torch.tensor(chosen, device="cpu"), persistent=False)

    @property
    def evaluations(self) -> int:
        """Network evaluations per decision."""
        return self.config.steps

    def noise_shape(self, chunk_shape: tuple[int, int]) -> tuple[int, ...]:
        """DDPM draws again before every step: (K, T, A), the starting noise first."""
        return (self.config.steps, *chunk_shape) if self.config.sampler == "ddpm" else chunk_shape

    def loss(
        self, net: Net, x1_BTA: Tensor, cond_BE: Tensor, mask_BT: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Mean squared error of the prediction at noise levels drawn uniformly (Ho 2020, Eq. 14)."""
        index = torch.randint(self.config.train_steps, x1_BTA.shape[:1], generator=generator, device=x1_BTA.device)
        x0 = torch.randn(x1_BTA.shape, generator=generator, device=x1_BTA.device, dtype=x1_BTA.dtype)
        c = along_angle(*self.table[:, index, None, None])
        output = net(c.alpha * x1_BTA + c.sigma * x0, net.prepare(self._time(index), cond_BE))
        targets = {"data": x1_BTA, "noise": x0, "velocity": c.d_alpha * x1_BTA + c.d_sigma * x0}
        return masked_mean((output - targets[self.config.prediction]).square(), mask_BT)

    def sample(self, net: Net, noise_BTA: Tensor, cond_BE: Tensor) -> Tensor:
        """Walks from the noise to the data; all time-dependent work is done for the K steps at once, before the loop.

        Clipping changes the predicted data and leaves the predicted noise, as in Diffusion Policy.
        """
        clip, prediction = self.config.clip, self.config.prediction
        x, *fresh = noise_BTA.unbind(1) if self.config.sampler == "ddpm" else (noise_BTA,)
        prepared = net.prepare(self._time(self.index)[:, None].expand(-1, len(x)), cond_BE)
        previous = x
        for i, (update, alpha, sigma) in enumerate(zip(self.updates, *self.table[:, self.index], strict=True)):
            c = along_angle(alpha, sigma)
            output = net(x, prepared[i])
            data = to_data(prediction, output, x, c)
            data = data.clamp(-clip, clip) if clip else data
            after = update.data * data
            if update.x:
                after = after + update.x * x
            if update.noise:
                after = after + update.noise * to_noise(prediction, output, x, c)
            if update.previous:
                after = after + update.previous * previous
            if update.fresh:
                after = after + update.fresh * fresh[i]
            x, previous = after, data
        return x

    def _time(self, index: Tensor) -> Tensor:
        """Generation time t at diffusion indices."""
        return 1 - (index + 1) / self.config.train_steps
