"""The random numbers of a training batch, of which this process may have only some rows (training/distributed.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Share(torch.Generator):
    """The generator of a training that several processes share; none of its own numbers are ever drawn.

    Every process draws the numbers of the whole batch from `whole` and keeps those of its own rows, so that what is
    computed does not depend on how many processes compute it. Rows may be repeated, the whole batch each time, as with
    several draws for each window.

    Attributes:
        whole: the generator, in the same state in every process.
        first: where this process's rows begin in the batch.
        rows: how many it has.
        total: how many there are.
        summed: the sum of a tensor over all processes.
        asked: whether a loss has asked for such a sum, without which its mean would be that of a part.
    """

    whole: torch.Generator
    first: int
    rows: int
    total: int
    summed: Callable[[Tensor], Tensor]
    asked: bool

    @classmethod
    def of(cls, whole: torch.Generator, part: slice, total: int, summed: Callable[[Tensor], Tensor]) -> Share:
        """The share that has the rows `part` of `total`."""
        share = cls(whole.device)
        share.whole, share.total, share.summed, share.asked = whole, total, summed, False
        share.first, share.rows = part.start, part.stop - part.start
        return share

    def larger(self, rows: int) -> int:
        """How many rows the whole batch has where this process has so many, each of its own once or several times."""
        if rows % self.rows:
            raise ValueError(f"random numbers for {rows} rows, expected a multiple of the {self.rows} of this process")
        return rows // self.rows * self.total

    def kept(self, values: Tensor, dim: int) -> Tensor:
        """Of values for the whole batch those of this process's rows."""
        dim %= values.ndim
        parts = values.unflatten(dim, (-1, self.total)).narrow(dim + 1, self.first, self.rows)
        return parts.flatten(dim, dim + 1)


def drawn(
    draw: Callable[..., Tensor],
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    dim: int = 0,
    **options: Any,
) -> Tensor:
    """`draw(shape, generator=generator, **options)` for the rows of this process, which lie along `dim`."""
    if not isinstance(generator, Share):
        return draw(shape, generator=generator, **options)
    larger = list(shape)
    larger[dim] = generator.larger(shape[dim])
    return generator.kept(draw(tuple(larger), generator=generator.whole, **options), dim)


def source(generator: torch.Generator | None) -> torch.Generator | None:
    """What draws numbers that belong to no row of this process alone."""
    return generator.whole if isinstance(generator, Share) else generator


def everywhere(rows: int, generator: torch.Generator | None) -> int:
    """How many rows all processes have together, of which this one has `rows`."""
    return generator.larger(rows) if isinstance(generator, Share) else rows


def permutation(rows: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """The rows of all processes in random order, the same in every process; see `own`."""
    return torch.randperm(everywhere(rows, generator), generator=source(generator), device=device)


def own(rows: Tensor, generator: torch.Generator | None, *values: Tensor) -> tuple[Tensor, ...]:
    """Of rows (R,) of all processes those that this one has, counted from its first; and their values (R, ...)."""
    if not isinstance(generator, Share):
        return rows, *values
    again, place = rows // generator.total, rows % generator.total - generator.first
    mine = (place >= 0) & (place < generator.rows)
    return (again * generator.rows + place)[mine], *(each[mine] for each in values)


def over_all(value: Tensor, generator: torch.Generator | None) -> Tensor:
    """The sum over all processes of a value without a gradient."""
    if not isinstance(generator, Share):
        return value
    generator.asked = True
    return generator.summed(value.detach().float())
