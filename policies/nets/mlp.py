"""Residual multilayer perceptron, conditioned through adaptive layer normalization: small chunks, lowest latency."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conditioning import Conditioning
from .base import Modulation, NetConfig, PooledNet, modulate
from .embed import TimeEmbedding


@dataclass
class MLPConfig(NetConfig):
    """Takes the whole chunk as one vector. The choice for state policies with up to a few hundred numbers a chunk."""

    kind: str = "mlp"
    width: int = 256  # features of the residual stream
    blocks: int = 4  # residual blocks
    expansion: int = 2  # hidden features of a block, as a multiple of the width

    def __post_init__(self) -> None:
        self.require_positive("width", "blocks", "expansion")


class MLP(PooledNet):
    """x + gate * MLP(modulated LayerNorm(x)), block by block, on the flattened chunk.

    The blocks share one modulation and add learned offsets of their own (Chen 2023, adaLN-single). With a matrix for
    each block two fifths of all multiplications went into modulation; shared, the same time buys another block.
    """

    waves: Tensor

    def __init__(
        self, config: MLPConfig, chunk_shape: tuple[int, int], cond_size: int, tokens: tuple[int, int] = (0, 0)
    ):
        super().__init__(cond_size, tokens)
        self.chunk_shape = chunk_shape
        size, width = chunk_shape[0] * chunk_shape[1], config.width
        self.time = TimeEmbedding(width)
        self.cond = nn.Linear(cond_size, width)
        self.modulation = nn.Linear(width, 6 * width)  # shift, scale, gate of the blocks; input; last shift and scale
        self.offsets = nn.Parameter(torch.zeros(config.blocks, 3 * width))
        self.inlet = nn.Linear(size, width)
        hidden = config.expansion * width
        self.up = nn.ModuleList(nn.Linear(width, hidden) for _ in range(config.blocks))
        self.down = nn.ModuleList(nn.Linear(hidden, width) for _ in range(config.blocks))
        self.outlet = nn.Linear(width, size)
        for layer in (self.modulation, self.outlet):  # the net starts at zero, its blocks unmodulated
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.ones_(self.offsets.data[:, 2 * width :])  # gates
        self.register_buffer("waves", cosines(chunk_shape[0], width), persistent=False)

    def prepare(self, t: Tensor, cond: Conditioning, per_action: bool = False) -> Modulation:
        """Times (..., B), or (..., B, T) one per action, and conditioning to the modulation."""
        time = self._embed_each(t) if per_action else self.time(t)
        return Modulation(self.modulation(F.silu(time + self.cond(self.pooled(cond)))))

    def _embed_each(self, t: Tensor) -> Tensor:
        """Times (..., T) to (..., width): the earliest one's embedding, and a transform of the others' differences."""
        earliest = self.time(t.amin(dim=-1))
        return earliest + (self.waves * (self.time(t) - earliest.unsqueeze(-2))).sum(dim=-2)

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        """Noisy chunk (B, T, A) and modulation to the prediction (B, T, A)."""
        width = self.inlet.out_features
        shared, start, last_shift, last_scale = modulation.timed.split((3 * width, width, width, width), dim=-1)
        h = self.inlet(x_BTA.flatten(1)) + start
        for up, down, offset in zip(self.up, self.down, self.offsets.unbind(), strict=True):
            shift, scale, gate = (shared + offset).chunk(3, dim=-1)
            h = h + gate * down(F.gelu(up(modulate(h, shift, scale)), approximate="tanh"))
        return self.linked(self.outlet(modulate(h, last_shift, last_scale)).unflatten(1, self.chunk_shape))


def cosines(count: int, width: int) -> Tensor:
    """The orthonormal cosine transform of `count` values (DCT-II) as (count, width), its columns repeated to width.

    Each feature of an embedding sees another wave over the actions, so that together they tell which action has which
    time, without a weight for it.
    """
    place = torch.arange(count, dtype=torch.float64)[:, None] + 0.5
    frequency = torch.arange(width, dtype=torch.float64) % count
    scale = torch.where(frequency == 0, 1.0, math.sqrt(2)) / math.sqrt(count)
    return (scale * torch.cos(math.pi / count * place * frequency)).float()
