"""Analog bits: the discrete parts of an action as numbers that any head can generate."""

from __future__ import annotations

import torch
from torch import Tensor

from flowhand.contracts.features import Feature


class ActionCodec:
    """Between actions (..., A) and their code (..., C), which is what heads and nets see (Chen 2023, Analog Bits).

    A continuous dimension is one column, as it is. A dimension with two choices is one column, -1 or 1, decoded by its
    sign; one with n > 2 choices is n columns, 1 at the choice and -1 elsewhere, decoded by the largest. A choice is
    its index, 0 to n - 1, as a float32, whatever the net computes in: bfloat16 has no 257. Without discrete
    dimensions the code is the action itself.
    """

    def __init__(self, action: Feature):
        self.choices = action.choices or (0,) * action.size  # of every dimension; 0: continuous
        self.widths = [n if n > 2 else 1 for n in self.choices]
        self.size = sum(self.widths)
        self.mixed = any(self.choices)

    def encode(self, action: Tensor) -> Tensor:
        """Actions (..., A) to their code (..., C)."""
        if not self.mixed:
            return action
        columns = []
        for n, value in zip(self.choices, action.unbind(-1), strict=True):
            if n > 2:
                index = torch.arange(n, device=action.device, dtype=action.dtype)
                columns.append(2 * (value.unsqueeze(-1) == index).to(action.dtype) - 1)
            else:
                columns.append((2 * value - 1 if n else value).unsqueeze(-1))
        return torch.cat(columns, dim=-1)

    def decode(self, code: Tensor) -> Tensor:
        """Codes (..., C), however far from exact, to actions (..., A), in float32."""
        if not self.mixed:
            return code
        parts = zip(self.choices, code.float().split(self.widths, dim=-1), strict=True)
        return torch.stack([_decoded(n, part) for n, part in parts], dim=-1)

    def require_choices(self, action: Tensor) -> None:
        """Raises `ValueError` naming the first of the actions (N, A) that holds something that is no choice."""
        for dimension, n in enumerate(self.choices):
            value = action[:, dimension]
            wrong = (value != value.round()) | (value < 0) | (value >= n)
            if n and wrong.any():
                row = int(wrong.nonzero()[0])
                raise ValueError(
                    f"action dimension {dimension} has {n} choices, so every value is one of 0 to {n - 1}, "
                    f"but control step {row} has {value[row].item():g}"
                )


def _decoded(n: int, part: Tensor) -> Tensor:
    """One dimension (...,) of an action from its columns (..., n), or one column."""
    if n > 2:
        return part.argmax(dim=-1).to(part.dtype)
    column = part.squeeze(-1)
    return (column > 0).to(part.dtype) if n else column
