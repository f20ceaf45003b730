"""What every denoising net shares: its two-part call, and what passes from one part to the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, no_type_check

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conditioning import Conditioning
from ..fields import Fields


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
        """Whether the net asks for observation tokens of an encoder that need not give any."""
        return False


@no_type_check  # in tests: torch.export follows no constructor whose arguments are checked
@dataclass(frozen=True)
class Modulation:
    """What a net has computed of times and conditioning before its evaluations."""

    timed: Tensor  # (..., B, M)
    observed: tuple[Tensor, ...] = ()  # each (B, ...), of tokens alone: once for all times

    def __getitem__(self, index: Any) -> Modulation:
        return Modulation(self.timed[index], self.observed)

    def flatten(self, start_dim: int = 0, end_dim: int = 1) -> Modulation:
        """Of (K, B) times as K * B rows, the first B of them at the first time."""
        return self._rows(self.timed.flatten(start_dim, end_dim), len(self.timed))

    def repeat(self, times: int, *ones: int) -> Modulation:
        """All rows so often, one copy after the other, as of a tensor."""
        return self._rows(self.timed.repeat(times, *ones), times)

    def _rows(self, timed: Tensor, times: int) -> Modulation:
        observed = (part.expand(times, *part.shape).flatten(0, 1) for part in self.observed)
        return Modulation(timed, tuple(observed))


class Net(nn.Module):
    """Maps a noisy chunk to a prediction in two parts.

    `prepare` computes all that depends on time and conditioning alone. It takes any leading dimensions, so a sampler
    calls it once for all its K steps; `forward` is what is left to do in each step.

    A net is built from its configuration, the shape (T, A) of a chunk, the length E of the conditioning vector, and the
    shape (N, W) of the observation tokens, (0, 0) if there are none.
    """

    links = False  # whether what it gives has passed through `linked`

    def __init__(self):
        super().__init__()
        self.link: Fields | None = None

    def arrange(self, fields: Fields, places: Mapping[str, tuple[int, int]], probabilities: bool) -> None:
        """Is told, once it is built, what the columns of a chunk are.

        Args:
            fields: of an action.
            places: first token and number of tokens of each observation that an action may point at.
            probabilities: of choices it is to give the mean of their code.

        Raises:
            ValueError: the net cannot do so.
        """
        if probabilities and not self.links:
            raise ValueError(
                f"head.choices=cross_entropy, and heads that classify, need another net, got {type(self).__name__}"
            )
        self.link = fields if probabilities else None

    def linked(self, output: Tensor) -> Tensor:
        """The prediction, with choices as the mean of their code where these are asked for."""
        return output if self.link is None else self.link.probabilities(output)

    def follow(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        """For each action what comes in its place, seeing those before it only; x has each one's predecessor.

        This takes a whole evaluation for each action; a net that can do better has its own.
        """
        found, earlier = [], []
        for place, each in enumerate(x_BTA.split(1, dim=1)):
            output, earlier = self.next_action(each, place, x_BTA.shape[1], modulation, earlier)
            found.append(output)
        return torch.cat(found, dim=1)

    def next_action(
        self, x_B1A: Tensor, place: int, horizon: int, modulation: Modulation, earlier: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """`follow` for the action at one of T places alone, (B, 1, A), and what the next one needs of the earlier."""
        seen = torch.cat([*earlier, x_B1A], dim=1)
        whole = F.pad(seen, (0, 0, 0, horizon - seen.shape[1]))
        return self(whole, modulation)[:, place : place + 1], [seen]

    def prepare(self, t: Tensor, cond: Conditioning, per_action: bool = False) -> Modulation:
        """Times (..., B) and conditioning, of the same rows, to the modulation.

        With `per_action` the times are (..., B, T), one for each action of the chunk: an action that is already decided
        has t=1 while the others are still noise. It must be said, because (K, B) and (B, T) may be the same numbers.
        T equal times are one time.
        """
        raise NotImplementedError

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        """Noisy chunk (B, T, A) and modulation, without leading dimensions, to the prediction (B, T, A)."""
        raise NotImplementedError


class PooledNet(Net):
    """A net that does not look at single tokens: their mean joins the vector, through a linear layer."""

    links = True

    def __init__(self, cond_size: int, tokens: tuple[int, int]):
        super().__init__()
        self.pool = nn.Linear(tokens[1], cond_size) if tokens[0] else None

    def pooled(self, cond: Conditioning) -> Tensor:
        """The vector (..., B, E), in which there is something of the tokens if there are any."""
        return cond.vector_BE if self.pool is None else cond.vector_BE + self.pool(cond.pooled_BW)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer normalization without weights of its own, then a scale and shift given from outside (adaLN)."""
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift
