"""Transformer over the steps of the chunk, adaLN-zero: long chunks and many action dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conditioning import Conditioning
from ..fields import Fields
from .base import Modulation, Net, NetConfig, modulate
from .embed import TimeEmbedding
from .pointers import PointerLayers


@dataclass
class TransformerConfig(NetConfig):
    """One token per action of the chunk. Slower than the MLP; scales to long chunks and large action spaces."""

    kind: str = "transformer"
    width: int = 128  # features of a token
    blocks: int = 4  # transformer blocks
    heads: int = 4  # attention heads; must divide the width
    expansion: int = 4  # hidden features of a block's perceptron, as a multiple of the width
    # ask an encoder that need not give tokens for some; where there are any, every action looks at them in every block
    cross_attention: bool = field(default=False, metadata={"before": False})

    def __post_init__(self) -> None:
        self.require_positive("width", "blocks", "heads", "expansion")
        if self.width % self.heads:
            raise ValueError(f"net.width={self.width} must be a multiple of net.heads={self.heads}")

    @property
    def attends(self) -> bool:
        """Whether the net looks at observation tokens."""
        return self.cross_attention


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Softmax attention, written out: (B, heads, T, d) looks at (B, heads, N, d); the bias joins the logits.

    At the few tokens of a chunk the fused kernel saves no memory worth having, its backward pass in bf16 on a CPU is
    nine times slower, and it has no forward-mode derivative (which mean flow needs).
    """
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return (logits if isinstance(bias, float) else logits + bias).softmax(-1) @ v


class CrossAttention(nn.Module):
    """Every action looks at the observation's tokens, whose keys and values are given."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, h_BTE: Tensor, k: Tensor, v: Tensor, *bias: Tensor) -> Tensor:
        """Tokens (B, T, width), keys and values (B, heads, N, width / heads) and a bias of logits to tokens."""
        q = self.query(h_BTE).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.out(attend(q, k, v, *bias).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention, cross-attention to any tokens, and perceptron, each modulated and gated (Peebles 2023, DiT)."""

    def __init__(self, config: TransformerConfig, crosses: bool):
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.up = nn.Linear(width, config.expansion * width)
        self.down = nn.Linear(config.expansion * width, width)
        self.cross = CrossAttention(config) if crosses else None

    def forward(self, h_BTE: Tensor, parts: Sequence[Tensor], *bias: Tensor) -> Tensor:
        """Tokens (B, T, width) to tokens.

        The parts are six modulations (B, 1 or T, width); with cross-attention three more, keys, values and any bias.
        The bias joins the logits of the actions to each other.
        """
        return self.extended(h_BTE, parts, (), *bias)[0]

    def extended(
        self, h_BTE: Tensor, parts: Sequence[Tensor], earlier: Sequence[Tensor], *bias: Tensor
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """As `forward`, after earlier tokens whose keys and values are given; and the keys and values of all."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp, *cross = parts
        attended, known = self._attend(modulate(h_BTE, shift, scale), earlier, *bias)
        h_BTE = h_BTE + gate * attended
        if self.cross is not None:
            shift, scale, gate, *observed = cross
            h_BTE = h_BTE + gate * self.cross(modulate(h_BTE, shift, scale), *observed)
        hidden = F.gelu(self.up(modulate(h_BTE, shift_mlp, scale_mlp)), approximate="tanh")
        return h_BTE + gate_mlp * self.down(hidden), known

    def _attend(self, h_BTE: Tensor, earlier: Sequence[Tensor], *bias: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(h_BTE).chunk(3, dim=-1))
        if earlier:
            k, v = (torch.cat([before, part], dim=2) for before, part in zip(earlier, (k, v), strict=True))
        return self.attention_out(attend(q, k, v, *bias).transpose(1, 2).flatten(2)), (k, v)


class Transformer(Net):
    """Transformer over the T actions with learned positions; bidirectional, unless it is asked to `follow`.

    Where an action points at rows of an observation, its pointers are read and written through the rows' tokens.
    """

    links = True

    def __init__(
        self, config: TransformerConfig, chunk_shape: tuple[int, int], cond_size: int, tokens: tuple[int, int] = (0, 0)
    ):
        super().__init__()
        if config.attends and not tokens[0]:
            raise ValueError("net.cross_attention=true needs observation tokens, and the encoder gives none")
        horizon, action = chunk_shape
        width = config.width
        self.tokens, self.heads = tokens, config.heads
        self.modulations = 9 if tokens[0] else 6  # of a block
        self.time = TimeEmbedding(width)
        self.cond = nn.Linear(cond_size, width)
        # One matrix for the modulation of all blocks (three parts for each of its layers) and of the last layer (two).
        self.modulation = nn.Linear(width, (self.modulations * config.blocks + 2) * width)
        self.inlet = nn.Linear(action, width)
        self.position = nn.Parameter(torch.randn(horizon, width) * 0.02)
        self.blocks = nn.ModuleList(Block(config, tokens[0] > 0) for _ in range(config.blocks))
        self.outlet = nn.Linear(width, action)
        for layer in (self.modulation, self.outlet):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        if tokens[0]:  # keys and values of all blocks
            self.keys_values = nn.Linear(tokens[1], config.blocks * 2 * width)
        self.pointers: PointerLayers | None = None

    def arrange(self, fields: Fields, places: Mapping[str, tuple[int, int]], probabilities: bool) -> None:
        """Builds the layers of pointers in place of the plain ones, where there are any."""
        super().arrange(fields, places, probabilities)
        if fields.pointing:
            width = self.position.shape[-1]
            self.pointers = PointerLayers(fields, places, self.tokens[1], width)
            del self.inlet, self.outlet

    def prepare(self, t: Tensor, cond: Conditioning, per_action: bool = False) -> Modulation:
        """Times (..., B), or (..., B, T) one per action, and conditioning to the modulation.

        The keys and values of the observation tokens do not depend on time and are computed once for all times.
        """
        vector = self.cond(cond.vector_BE)
        if not per_action:
            modulation = self.modulation(F.silu(self.time(t) + vector))
        else:
            modulation = self.modulation(F.silu(self.time(t) + vector.unsqueeze(-2))).flatten(-2)
        pointed = () if self.pointers is None else self.pointers.observed(cond)
        return Modulation(modulation, (*self._observed(cond), *pointed))

    def _observed(self, cond: Conditioning) -> tuple[Tensor, ...]:
        """Keys and values (B, heads, N, width / heads) of every block in turn; then the bias of logits, if any."""
        if cond.tokens_BNW is None:
            return ()
        each = self.keys_values(cond.tokens_BNW).unflatten(-1, (2 * len(self.blocks), self.heads, -1))
        parts = each.permute(2, 0, 3, 1, 4).contiguous().unbind()  # in order, which every evaluation reads them in
        if cond.mask_BN is None:
            return parts
        # Finite, so that a row in which no token counts is no NaN.
        bias = torch.zeros_like(cond.mask_BN, dtype=each.dtype).masked_fill(~cond.mask_BN, torch.finfo(each.dtype).min)
        return (*parts, bias[:, None, None])

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        """Noisy chunk (B, T, A) and modulation to the prediction (B, T, A)."""
        h_BTE, parts, last = self._enter(x_BTA, modulation)
        h_BTE = h_BTE + self.position
        for block, own in zip(self.blocks, parts, strict=True):
            h_BTE = block(h_BTE, own)
        return self._leave(modulate(h_BTE, *last), modulation)

    def follow(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        """As `forward`, but each action sees only itself and those before it."""
        h_BTE, parts, last = self._enter(x_BTA, modulation)
        h_BTE = h_BTE + self.position
        later = torch.ones(h_BTE.shape[1], h_BTE.shape[1], dtype=torch.bool, device=h_BTE.device).triu(1)
        bias = torch.zeros_like(later, dtype=h_BTE.dtype).masked_fill(later, torch.finfo(h_BTE.dtype).min)
        for block, own in zip(self.blocks, parts, strict=True):
            h_BTE = block(h_BTE, own, bias)
        return self._leave(modulate(h_BTE, *last), modulation)

    def next_action(
        self, x_B1A: Tensor, place: int, horizon: int, modulation: Modulation, earlier: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """One more action by `follow`; of the earlier ones keys and values of every block in turn."""
        h_BTE, parts, last = self._enter(x_B1A, modulation)
        h_BTE, known = h_BTE + self.position[place], []
        for i, (block, own) in enumerate(zip(self.blocks, parts, strict=True)):
            assert isinstance(block, Block)
            h_BTE, own_known = block.extended(h_BTE, own, earlier[2 * i : 2 * i + 2])
            known += own_known
        return self._leave(modulate(h_BTE, *last), modulation), known

    def _enter(self, x_BTA: Tensor, modulation: Modulation) -> tuple[Tensor, list[list[Tensor]], Sequence[Tensor]]:
        """Features (B, T, width), the parts of every block, and the last modulation."""
        width, count, observed = self.position.shape[-1], self.modulations, modulation.observed
        split = modulation.timed.unflatten(-1, (-1, self.modulation.out_features)).split(width, dim=-1)
        last = len(observed) - (0 if self.pointers is None else 3)
        blocks, bias = len(self.blocks), observed[2 * len(self.blocks) : last]
        parts = [[*split[count * i : count * (i + 1)], *observed[2 * i : 2 * i + 2], *bias] for i in range(blocks)]
        h_BTE = self.inlet(x_BTA) if self.pointers is None else self.pointers.enter(x_BTA, observed[last:])
        return h_BTE, parts, split[-2:]

    def _leave(self, h_BTE: Tensor, modulation: Modulation) -> Tensor:
        """The prediction (B, T, A)."""
        if self.pointers is None:
            return self.linked(self.outlet(h_BTE))
        output, present = self.pointers.leave(h_BTE, modulation.observed[-3:])
        return output if self.link is None else self.link.probabilities(output, present)
