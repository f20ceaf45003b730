"""Transformer over the steps of the chunk, adaLN-zero: long chunks and many action dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Net, NetConfig, modulate
from .embed import TimeEmbedding


@dataclass
class TransformerConfig(NetConfig):
    """One token per action of the chunk. Slower than the MLP; scales to long chunks and large action spaces."""

    kind: str = "transformer"
    width: int = 128  # features of a token
    blocks: int = 4  # transformer blocks
    heads: int = 4  # attention heads; must divide the width
    expansion: int = 4  # hidden features of a block's perceptron, as a multiple of the width
    # let every action look at the observation's tokens in every block
    cross_attention: bool = field(default=False, metadata={"before": False})

    def __post_init__(self) -> None:
        self.require_positive("width", "blocks", "heads", "expansion")
        if self.width % self.heads:
            raise ValueError(f"net.width={self.width} must be a multiple of net.heads={self.heads}")

    @property
    def attends(self) -> bool:
        """Whether the net looks at observation tokens."""
        return self.cross_attention


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention, written out: (B, heads, T, d) looks at (B, heads, N, d).

    At the few tokens of a chunk the fused kernel saves no memory worth having, its backward pass in bf16 on a CPU is
    nine times slower, and it has no forward-mode derivative (which mean flow needs).
    """
    return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v


class CrossAttention(nn.Module):
    """Every action looks at the observation's tokens, whose keys and values are given."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, h_BTE: Tensor, keys_values: Tensor) -> Tensor:
        """Tokens (B, T, width), keys and values (B, 2, heads, N, width / heads) to tokens."""
        q = self.query(h_BTE).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = keys_values.unbind(dim=1)
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention, cross-attention if configured, and perceptron, each modulated and gated (Peebles 2023, DiT)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.up = nn.Linear(width, config.expansion * width)
        self.down = nn.Linear(config.expansion * width, width)
        self.cross = CrossAttention(config) if config.cross_attention else None

    def forward(self, h_BTE: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """Tokens (B, T, width) to tokens.

        The parts are six modulations (B, 1 or T, width); with cross-attention three more, and keys and values.
        """
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp, *cross = parts
        h_BTE = h_BTE + gate * self._attend(modulate(h_BTE, shift, scale))
        if self.cross is not None:
            shift, scale, gate, keys_values = cross
            h_BTE = h_BTE + gate * self.cross(modulate(h_BTE, shift, scale), keys_values)
        hidden = F.gelu(self.up(modulate(h_BTE, shift_mlp, scale_mlp)), approximate="tanh")
        return h_BTE + gate_mlp * self.down(hidden)

    def _attend(self, h_BTE: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(h_BTE).chunk(3, dim=-1))
        return self.attention_out(attend(q, k, v).transpose(1, 2).flatten(2))


class Transformer(Net):
    """Bidirectional transformer over the T actions with learned positions."""

    def __init__(
        self, config: TransformerConfig, chunk_shape: tuple[int, int], cond_size: int, tokens: tuple[int, int] = (0, 0)
    ):
        super().__init__()
        config.check_tokens(tokens)
        horizon, action = chunk_shape
        width = config.width
        self.tokens, self.heads = tokens, config.heads
        self.modulations = 9 if config.cross_attention else 6  # of a block
        self.time = TimeEmbedding(width)
        self.cond = nn.Linear(cond_size - math.prod(tokens), width)
        # One matrix for the modulation of all blocks (three parts for each of its layers) and of the last layer (two).
        self.modulation = nn.Linear(width, (self.modulations * config.blocks + 2) * width)
        self.inlet = nn.Linear(action, width)
        self.position = nn.Parameter(torch.randn(horizon, width) * 0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.outlet = nn.Linear(width, action)
        for layer in (self.modulation, self.outlet):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        if config.cross_attention:  # keys and values of all blocks
            self.keys_values = nn.Linear(tokens[1], config.blocks * 2 * width)

    def prepare(self, t: Tensor, cond: Tensor, per_action: bool = False) -> Tensor:
        """Times (..., B), or (..., B, T) one per action, and conditioning (B, E) to the modulation (..., B, M).

        The keys and values of the observation tokens do not depend on time and are computed once for all times.
        """
        vector, tokens = cond.split((self.cond.in_features, math.prod(self.tokens)), dim=-1)
        vector = self.cond(vector)
        if not per_action:
            modulation = self.modulation(F.silu(self.time(t) + vector))
        else:
            modulation = self.modulation(F.silu(self.time(t) + vector.unsqueeze(-2))).flatten(-2)
        if not self.tokens[0]:
            return modulation
        keys_values = self.keys_values(tokens.unflatten(-1, self.tokens)).flatten(-2)
        return torch.cat([modulation, keys_values.expand(*modulation.shape[:-1], -1)], dim=-1)

    def forward(self, x_BTA: Tensor, modulation: Tensor) -> Tensor:
        """Noisy chunk (B, T, A) and modulation (B, M) to the prediction (B, T, A)."""
        width, count = self.inlet.out_features, self.modulations
        observed = self.tokens[0] * len(self.blocks) * 2 * width
        own, keys_values = modulation.split((modulation.shape[-1] - observed, observed), dim=-1)
        parts = own.unflatten(-1, (-1, self.modulation.out_features)).split(width, dim=-1)
        h_BTE = self.inlet(x_BTA) + self.position
        for i, block in enumerate(self.blocks):
            h_BTE = block(h_BTE, [*parts[count * i : count * (i + 1)], *self._keys_values(keys_values, i)])
        return self.outlet(modulate(h_BTE, *parts[-2:]))

    def _keys_values(self, keys_values: Tensor, block: int) -> list[Tensor]:
        """Of one block (B, 2, heads, N, width / heads), from those of all; none without cross-attention."""
        if not self.tokens[0]:
            return []
        shape = (self.tokens[0], len(self.blocks), 2, self.heads, -1)
        return [keys_values.unflatten(-1, shape)[:, :, block].permute(0, 2, 3, 1, 4)]
