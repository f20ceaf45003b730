"""Convolutional U-net along the chunk, conditioned by feature-wise scale and shift: the net of Diffusion Policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conditioning import Conditioning
from .base import Modulation, NetConfig, PooledNet
from .embed import TimeEmbedding

POSITIONS = 256  # of all rows together; up to here a convolution is computed as a matrix product


@dataclass
class UNet1DConfig(NetConfig):
    """Smooth, long chunks, and comparison with published results. Slower than the MLP.

    Diffusion Policy (Chi 2023) has time_width=256 and down_dims=[256,512,1024] (65 M weights) for states, and
    time_width=128 and down_dims=[512,1024,2048] (252 M) for images; the defaults are for small policies.
    """

    kind: str = "unet1d"
    down_dims: list[int] = field(default_factory=lambda: [64, 128, 256])  # channels; each level has half the steps
    kernel_size: int = 5  # control steps that a convolution sees; odd
    groups: int = 8  # of the group normalization
    time_width: int = 128  # features of the time embedding

    def __post_init__(self) -> None:
        self.require_positive("kernel_size", "groups", "time_width")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"net.kernel_size={self.kernel_size} must be odd, so that a chunk keeps its length")
        if not 1 <= len(self.down_dims) <= 8:
            raise ValueError(f"net.down_dims has {len(self.down_dims)} levels; give 1 to 8, e.g. [64,128,256]")
        for channels in self.down_dims:
            # Of two channels normalized together on a level of one step, nothing but the signs would be left.
            if not 4 * self.groups <= channels <= 65536 or channels % self.groups:
                raise ValueError(
                    f"net.down_dims={list(self.down_dims)}: {channels} must be a multiple of net.groups={self.groups}, "
                    "at least four times as much and at most 65536"
                )


class Convolution(nn.Conv1d):
    """A convolution with zeros around the chunk; at few positions it is computed as a matrix product.

    At batch 1 on a CPU the product takes from half to a fifth of the time of the library's convolution, which at the
    256 positions of 16 chunks has caught up.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Features (B, inputs, T) to (B, channels, ceil(T / stride))."""
        size, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
        if input.shape[0] * input.shape[-1] > POSITIONS * stride:
            return super().forward(input)
        windows = F.pad(input, (padding, padding)).unfold(-1, size, stride)  # (B, inputs, positions, size)
        # Contiguous: otherwise the product's last bits depend on whether a gradient is asked for.
        rows = windows.transpose(1, 2).flatten(2).contiguous()
        return F.linear(rows, self.weight.flatten(1), self.bias).transpose(1, 2)


class Upsampling(nn.ConvTranspose1d):
    """A transposed convolution of size 4 and stride 2 that doubles the steps; at few positions as a matrix product."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 4, stride=2, padding=1)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Features (B, channels, T) to (B, channels, 2 T)."""
        if input.shape[0] * input.shape[-1] > POSITIONS:
            return super().forward(input, output_size)
        rows = input.transpose(1, 2).contiguous()  # for the same reason as above
        taps = F.linear(rows, self.weight.flatten(1).T).unflatten(-1, (-1, 4))  # (B, T, channels, 4)
        # Step i spreads to the outputs 2 i - 1 .. 2 i + 2: half of each output comes from a neighbour.
        even = taps[..., 1] + F.pad(taps[:, :-1, :, 3], (0, 0, 1, 0))
        odd = taps[..., 2] + F.pad(taps[:, 1:, :, 0], (0, 0, 0, 1))
        assert self.bias is not None
        return (torch.stack([even, odd], dim=2).flatten(1, 2) + self.bias).transpose(1, 2)


class ResidualBlock(nn.Module):
    """Two convolutions, the channels scaled and shifted between them (Perez 2018, FiLM)."""

    def __init__(self, inputs: int, channels: int, config: UNet1DConfig):
        super().__init__()
        self.first = convolution(inputs, channels, config)
        self.second = convolution(channels, channels, config)
        self.residual = nn.Identity() if inputs == channels else Convolution(inputs, channels, 1)

    def forward(self, h_BCT: Tensor, film_BFT: Tensor) -> Tensor:
        """Features (B, inputs, T) and film (B, 2 * channels, 1 or T) to features (B, channels, T)."""
        scale, shift = film_BFT.chunk(2, dim=1)
        return self.second(scale * self.first(h_BCT) + shift) + self.residual(h_BCT)


class Stage(nn.Module):
    """Two residual blocks at one resolution."""

    def __init__(self, inputs: int, channels: int, config: UNet1DConfig):
        super().__init__()
        self.blocks = nn.ModuleList([ResidualBlock(i, channels, config) for i in (inputs, channels)])

    def forward(self, h_BCT: Tensor, film_BFT: Tensor) -> Tensor:
        """Features (B, inputs, T) and film (B, 4 * channels, 1 or T) to features (B, channels, T)."""
        for block, film in zip(self.blocks, film_BFT.chunk(2, dim=1), strict=True):
            h_BCT = block(h_BCT, film)
        return h_BCT


class Film(nn.Module):
    """All scales and shifts of one level, linear in time and conditioning."""

    def __init__(self, time_width: int, cond_size: int, size: int):
        super().__init__()
        self.sizes = (time_width, cond_size)
        self.linear = nn.Linear(time_width + cond_size, size)

    def forward(self, time: Tensor, cond: Tensor) -> Tensor:
        """Time (..., time_width) and conditioning (..., E) to (..., size).

        The layer of their concatenation; but what the conditioning adds is computed once for all times.
        """
        of_time, of_cond = self.linear.weight.split(self.sizes, dim=1)
        return F.linear(time, of_time) + F.linear(cond, of_cond, self.linear.bias)


class UNet1D(PooledNet):
    """Down to a half, a quarter ... of the chunk's steps and back, with connections across (Janner 2022, Chi 2023).

    Any chunk length will do: level r has ceil(T / 2^r) steps, and the way back is cut to them. As in Diffusion Policy,
    nothing leads across at the first level.
    """

    def __init__(
        self, config: UNet1DConfig, chunk_shape: tuple[int, int], cond_size: int, tokens: tuple[int, int] = (0, 0)
    ):
        super().__init__(cond_size, tokens)
        horizon, action = chunk_shape
        dims = config.down_dims
        wider = list(pairwise(dims))
        self.lengths = [-(-horizon // 2**level) for level in range(len(dims))]
        self.time = TimeEmbedding(config.time_width)
        self.down = nn.ModuleList([Stage(i, c, config) for i, c in ((action, dims[0]), *wider)])
        self.middle = Stage(dims[-1], dims[-1], config)
        self.up = nn.ModuleList([Stage(2 * c, i, config) for i, c in wider])
        self.shrink = nn.ModuleList([Convolution(c, c, 3, stride=2, padding=1) for c in dims[:-1]])
        self.grow = nn.ModuleList([Upsampling(c) for c in dims[:-1]])
        self.last = convolution(dims[0], dims[0], config)
        self.outlet = Convolution(dims[0], action, 1)
        # The film sizes of the stages at each level: down, the middle at the last level, up from all but the first.
        sizes = [[4 * c] for c in dims]
        sizes[-1].append(4 * dims[-1])
        for level, (c, _) in enumerate(wider, start=1):
            sizes[level].append(4 * c)
        self.film_sizes = sizes
        self.films = nn.ModuleList([Film(config.time_width, cond_size, sum(s)) for s in sizes])
        for p in self.outlet.parameters():  # the net starts at zero
            nn.init.zeros_(p)

    def prepare(self, t: Tensor, cond: Conditioning, per_action: bool = False) -> Modulation:
        """Times (..., B), or (..., B, T) one per action, and conditioning to the modulation.

        A step of a coarse level is modulated by the mean over the actions that it stands for.
        """
        time, vector = F.mish(self.time(t)), F.mish(self.pooled(cond))
        if not per_action:
            return Modulation(torch.cat([film(time, vector) for film in self.films], dim=-1))
        parts, vector = [], vector.unsqueeze(-2)
        for film in self.films:
            parts.append(film(time, vector).flatten(-2))
            time = coarsen(time)
        return Modulation(torch.cat(parts, dim=-1))

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        """Noisy chunk (B, T, A) and modulation to the prediction (B, T, A)."""
        films = self._unpack(modulation.timed)
        h_BCT, across = x_BTA.transpose(1, 2), []
        for level, stage in enumerate(self.down):
            h_BCT = stage(self.shrink[level - 1](h_BCT) if level else h_BCT, films[level][0])
            across.append(h_BCT)
        h_BCT = self.middle(h_BCT, films[-1][1])
        for level in reversed(range(1, len(self.down))):
            h_BCT = self.up[level - 1](torch.cat([h_BCT, across[level]], dim=1), films[level][-1])
            h_BCT = self.grow[level - 1](h_BCT)[..., : self.lengths[level - 1]]
        return self.linked(self.outlet(self.last(h_BCT)).transpose(1, 2))

    def _unpack(self, modulation: Tensor) -> list[tuple[Tensor, ...]]:
        """The films (B, 4 * channels, 1 or T) of every stage of every level."""
        per_action = modulation.shape[-1] != sum(map(sum, self.film_sizes))
        lengths = self.lengths if per_action else [1] * len(self.lengths)
        parts = modulation.split([n * sum(s) for n, s in zip(lengths, self.film_sizes, strict=True)], dim=-1)
        return [
            part.unflatten(-1, (length, -1)).transpose(1, 2).split(sizes, dim=1)
            for part, length, sizes in zip(parts, lengths, self.film_sizes, strict=True)
        ]


def convolution(inputs: int, channels: int, config: UNet1DConfig) -> nn.Sequential:
    """A convolution that keeps the length, group normalization, activation."""
    size = config.kernel_size
    return nn.Sequential(
        Convolution(inputs, channels, size, padding=size // 2), nn.GroupNorm(config.groups, channels), nn.Mish()
    )


def coarsen(x_TE: Tensor) -> Tensor:
    """Means of neighbours, (..., T, E) to (..., ceil(T / 2), E); the last of an odd number stays as it is."""
    if x_TE.shape[-2] % 2:
        x_TE = torch.cat([x_TE, x_TE[..., -1:, :]], dim=-2)
    return x_TE.unflatten(-2, (-1, 2)).mean(dim=-2)
