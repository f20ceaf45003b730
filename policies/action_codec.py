"""Analog bits: the discrete parts of an action as numbers that any head can generate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class ActionCodec:
    """Between an action's columns (..., D) and their code (..., C), which heads and nets see (Chen 2023, Analog Bits).

    Columns are the dimensions of the action, or what `policies/representation` makes of them. A continuous one is one
    column of the code, as it is. One with two choices is one, -1 or 1, decoded by its sign; one with n > 2 choices is n
    columns, 1 at the choice and -1 elsewhere, decoded by the largest. A choice is its index, 0 to n - 1, as a float32,
    whatever the net computes in: bfloat16 has no 257. Without choices the code is the columns themselves.

    Args:
        choices: how many choices each column has, 0 for a continuous one.
    """

    def __init__(self, choices: Sequence[int]):
        self.choices = tuple(choices)
        self.widths = [n if n > 2 else 1 for n in self.choices]
        self.size = sum(self.widths)
        self.mixed = any(self.choices)

    def encode(self, columns: Tensor) -> Tensor:
        """Columns (..., D) to their code (..., C)."""
        if not self.mixed:
            return columns
        parts = []
        for n, value in zip(self.choices, columns.unbind(-1), strict=True):
            if n > 2:
                index = torch.arange(n, device=columns.device, dtype=columns.dtype)
                parts.append(2 * (value.unsqueeze(-1) == index).to(columns.dtype) - 1)
            else:
                parts.append((2 * value - 1 if n else value).unsqueeze(-1))
        return torch.cat(parts, dim=-1)

    def decode(self, code: Tensor) -> Tensor:
        """Codes (..., C), however far from exact, to columns (..., D), in float32."""
        if not self.mixed:
            return code
        parts = zip(self.choices, code.float().split(self.widths, dim=-1), strict=True)
        return torch.stack([_decoded(n, part) for n, part in parts], dim=-1)


def require_choices(choices: Sequence[int], action: Tensor) -> None:
    """Raises `ValueError` naming the first of the actions (N, A) that holds something that is no choice."""
    for dimension, n in enumerate(choices):
        value = action[:, dimension]
        wrong = (value != value.round()) | (value < 0) | (value >= n)
        if n and wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"action dimension {dimension} has {n} choices, so every value is one of 0 to {n - 1}, "
                f"but control step {row} has {value[row].item():g}"
            )


def _decoded(n: int, part: Tensor) -> Tensor:
    """One column (...,) from its code (..., n), or one column of it."""
    if n > 2:
        return part.argmax(dim=-1).to(part.dtype)
    column = part.squeeze(-1)
    return (column > 0).to(part.dtype) if n else column
