"""What a decision is conditioned on: what encoders give, heads hand on, and nets take."""

# ruff: noqa: N815  (shape suffixes)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, no_type_check

import torch
from torch import Tensor


@no_type_check  # in tests: torch.export follows no constructor whose arguments are checked
@dataclass(frozen=True)
class Conditioning:
    """B observations as a vector each and, where an encoder gives them, as N tokens of W features each."""

    vector_BE: Tensor  # may have further leading dimensions, one conditioning for each time
    tokens_BNW: Tensor | None = None  # None: there are none
    mask_BN: Tensor | None = None  # False where a token is only filling; None: all count

    @property
    def tokens(self) -> tuple[int, int]:
        """Their shape (N, W); (0, 0) if there are none."""
        return (0, 0) if self.tokens_BNW is None else (self.tokens_BNW.shape[1], self.tokens_BNW.shape[2])

    @property
    def flat_BF(self) -> Tensor:  # noqa: N802
        """The tokens flattened behind the vector, (B, E + N * W): for what compares whole observations."""
        if self.tokens_BNW is None:
            return self.vector_BE
        return torch.cat([self.vector_BE, self.tokens_BNW.flatten(1)], dim=1)

    @property
    def pooled_BW(self) -> Tensor:  # noqa: N802
        """The mean of the tokens that count."""
        assert self.tokens_BNW is not None
        if self.mask_BN is None:
            return self.tokens_BNW.mean(dim=1)
        weight = self.mask_BN.unsqueeze(-1).to(self.tokens_BNW.dtype)
        return (self.tokens_BNW * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """The same of every part."""
        parts = (self.vector_BE, self.tokens_BNW, self.mask_BN)
        return Conditioning(*(None if part is None else change(part) for part in parts))  # pyright: ignore[reportArgumentType]

    def __getitem__(self, rows: Any) -> Conditioning:
        return self.map(lambda part: part[rows])

    def __len__(self) -> int:
        return len(self.vector_BE)

    def plus(self, added: Tensor) -> Conditioning:
        """With (..., E) added to the vector, or with (B, E + N * W) or (1, E + N * W) to the tokens as well."""
        if added.shape[-1] == self.vector_BE.shape[-1]:
            return replace(self, vector_BE=self.vector_BE + added)
        return replace(split(self.flat_BF + added, self.tokens), mask_BN=self.mask_BN)

    def without(self, null_F: Tensor, drop_B: Tensor | None = None) -> Conditioning:
        """A learned (E + N * W) in place of what was observed: in all rows, or where `drop_B` is True."""
        flat_BF = self.flat_BF
        null_BF = null_F.to(flat_BF.dtype).expand_as(flat_BF)
        if drop_B is not None:
            null_BF = torch.where(drop_B.unsqueeze(-1), null_BF, flat_BF)
        mask_BN = self.mask_BN  # a dropped row does not tell how many tokens it had
        if mask_BN is not None:
            mask_BN = torch.ones_like(mask_BN) if drop_B is None else mask_BN | drop_B.unsqueeze(-1)
        return replace(split(null_BF, self.tokens), mask_BN=mask_BN)


def split(flat_BF: Tensor, tokens: tuple[int, int]) -> Conditioning:
    """The conditioning with these flat numbers and tokens of the shape (N, W); (0, 0): none."""
    count = tokens[0] * tokens[1]
    if not count:
        return Conditioning(flat_BF)
    vector, rest = flat_BF.split((flat_BF.shape[-1] - count, count), dim=-1)
    return Conditioning(vector, rest.unflatten(-1, tokens))


def joined(first: Conditioning, second: Conditioning) -> Conditioning:
    """The rows of both, which have the same parts."""
    parts = (
        (first.vector_BE, second.vector_BE),
        (first.tokens_BNW, second.tokens_BNW),
        (first.mask_BN, second.mask_BN),
    )
    return Conditioning(*(None if a is None or b is None else torch.cat([a, b]) for a, b in parts))  # pyright: ignore[reportArgumentType]
