"""What every denoising net shares: its two-part call."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class NetConfig:
    """Base of every net's configuration."""

    kind: str = "???"

    def require_positive(self, *names: str) -> None:
        """Raises `ValueError` unless each of the named fields is in 1..65536 (a checkpoint may come from anyone)."""
        for name in names:
            if not 1 <= getattr(self, name) <= 65536:
                raise ValueError(f"net.{name}={getattr(self, name)} must lie in 1..65536")

    @property
    def attends(self) -> bool:
        """Whether the net looks at observation tokens beside the conditioning vector; the encoder then gives them."""
        return False

    def check_tokens(self, tokens: tuple[int, int]) -> None:
        """Raises `ValueError` unless there are observation tokens where, and only where, the net attends to them."""
        if tokens[0] and not self.attends:
            raise ValueError(
                f"net={self.kind} cannot attend to the {tokens[0]} tokens that the encoder gives; use net=transformer "
                "with net.cross_attention=true, or an encoder without tokens"
            )
        if self.attends and not tokens[0]:
            raise ValueError("net.cross_attention=true needs observation tokens, and the encoder gives none")


class Net(nn.Module):
    """Maps a noisy chunk to a prediction in two parts.

    `prepare` computes all that depends on time and conditioning alone. It takes any leading dimensions, so a sampler
    calls it once for all its K steps; `forward` is what is left to do in each step.

    A net is built from its configuration, the shape (T, A) of a chunk, the length E of the conditioning, and the shape
    (N, W) of the observation tokens that are its last N * W numbers, (0, 0) if there are none.
    """

    def prepare(self, t: Tensor, cond: Tensor, per_action: bool = False) -> Tensor:
        """Times (..., B) and conditioning (B, E) or (..., B, E) to a modulation (..., B, M).

        With `per_action` the times are (..., B, T), one for each action of the chunk: an action that is already decided
        has t=1 while the others are still noise. It must be said, because (K, B) and (B, T) may be the same numbers.
        T equal times are one time.
        """
        raise NotImplementedError

    def forward(self, x_BTA: Tensor, modulation: Tensor) -> Tensor:
        """Noisy chunk (B, T, A) and modulation (B, M) to the prediction (B, T, A)."""
        raise NotImplementedError


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer normalization without weights of its own, then a scale and shift given from outside (adaLN)."""
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift
