"""Transformer over the steps of the chunk, adaLN-zero: long chunks and many action dimensions."""

from __future__ import annotations

from dataclasses import dataclass

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

    def __post_init__(self) -> None:
        self.require_positive("width", "blocks", "heads", "expansion")
        if self.width % self.heads:
            raise ValueError(f"net.width={self.width} must be a multiple of net.heads={self.heads}")


class Block(nn.Module):
    """Self-attention and perceptron, each modulated and gated (Peebles 2023, DiT)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.up = nn.Linear(width, config.expansion * width)
        self.down = nn.Linear(config.expansion * width, width)

    def forward(self, h_BTE: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
        """Tokens (B, T, width) and six modulations (B, 1, width) to tokens."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = parts
        h_BTE = h_BTE + gate * self._attend(modulate(h_BTE, shift, scale))
        hidden = F.gelu(self.up(modulate(h_BTE, shift_mlp, scale_mlp)), approximate="tanh")
        return h_BTE + gate_mlp * self.down(hidden)

    def _attend(self, h_BTE: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(h_BTE).chunk(3, dim=-1))
        return self.attention_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Transformer(Net):
    """Bidirectional transformer over the T actions with learned positions."""

    def __init__(self, config: TransformerConfig, chunk_shape: tuple[int, int], cond_size: int):
        super().__init__()
        horizon, action = chunk_shape
        width = config.width
        self.time = TimeEmbedding(width)
        self.cond = nn.Linear(cond_size, width)
        # One matrix for the modulation of all blocks (six parts each) and of the last layer (two).
        self.modulation = nn.Linear(width, (6 * config.blocks + 2) * width)
        self.inlet = nn.Linear(action, width)
        self.position = nn.Parameter(torch.randn(horizon, width) * 0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.outlet = nn.Linear(width, action)
        for layer in (self.modulation, self.outlet):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def prepare(self, t: Tensor, cond: Tensor) -> Tensor:
        """Times (..., B) and conditioning (B, E) to the modulation (..., B, M)."""
        return self.modulation(F.silu(self.time(t) + self.cond(cond)))

    def forward(self, x_BTA: Tensor, modulation: Tensor) -> Tensor:
        """Noisy chunk (B, T, A) and modulation (B, M) to the prediction (B, T, A)."""
        parts = modulation.unsqueeze(1).chunk(6 * len(self.blocks) + 2, dim=-1)
        h_BTE = self.inlet(x_BTA) + self.position
        for i, block in enumerate(self.blocks):
            h_BTE = block(h_BTE, parts[6 * i : 6 * i + 6])
        return self.outlet(modulate(h_BTE, *parts[-2:]))
