"""From noise to data: Runge-Kutta methods on the velocity, and walks that mix the predicted data; each driver once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor


@dataclass(frozen=True)
class Tableau:
    """Butcher tableau of an explicit method: stage times c, coefficients a (lower triangle), weights b."""

    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]

    @property
    def stages(self) -> int:
        """Velocity evaluations per step."""
        return len(self.c)


SOLVERS = {
    # One evaluation a step, order 1: on a nearly straight flow nothing else pays.
    "euler": Tableau(order=1, c=(0.0,), a=((),), b=(1.0,)),
    # Two evaluations, order 2, never looks at the end of a step (where a data prediction is singular at t=1).
    "midpoint": Tableau(order=2, c=(0.0, 0.5), a=((), (0.5,)), b=(0.0, 1.0)),
    # Two evaluations, order 2, the trapezoid rule of EDM.
    "heun": Tableau(order=2, c=(0.0, 1.0), a=((), (1.0,)), b=(0.5, 0.5)),
    # Four evaluations, order 4.
    "rk4": Tableau(
        order=4, c=(0.0, 0.5, 0.5, 1.0), a=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6)
    ),
}


def stage_times(tableau: Tableau, grid: Sequence[float]) -> list[float]:
    """The times at which `integrate` evaluates the velocity, in order: K * stages values in [0, 1]."""
    return [start + c * (end - start) for start, end in pairwise(grid) for c in tableau.c]


def integrate(velocity: Callable[[Tensor, int], Tensor], x: Tensor, tableau: Tableau, grid: Sequence[float]) -> Tensor:
    """Carries x from the first to the last of the times of the grid, one step between every two.

    Args:
        velocity: called as `velocity(x, i)` at the i-th of `stage_times`, so that everything that depends on time
            alone can be computed beforehand, for all the times at once.
        x: the state at the first time, any shape.
        tableau: the method.
        grid: K + 1 times (grids.py).

    Returns:
        The state at the last time.
    """
    for k, (start, end) in enumerate(pairwise(grid)):
        h = end - start
        slopes: list[Tensor] = []
        for stage, row in enumerate(tableau.a):
            y = x
            for weight, slope in zip(row, slopes, strict=True):
                if weight:
                    y = y + (h * weight) * slope
            slopes.append(velocity(y, k * tableau.stages + stage))
        for weight, slope in zip(tableau.b, slopes, strict=True):
            if weight:
                x = x + (h * weight) * slope
    return x


def jump(velocity: Callable[[Tensor, int], Tensor], x: Tensor, steps: int) -> Tensor:
    """Carries x from time 0 to 1 in K equal jumps; `velocity(x, k)` is the average over the k-th."""
    for k in range(steps):
        x = x + velocity(x, k) / steps
    return x


def descend(slope: Callable[[Tensor, int], Tensor], x: Tensor, levels: Sequence[float]) -> Tensor:
    """Heun's method down the noise levels, the last step to 0 by Euler's (Karras 2022, Algorithm 1).

    `slope(x, i)` is the change of x with the noise at the i-th level.
    """
    for i, (level, after) in enumerate(pairwise(levels)):
        step, first = after - level, slope(x, i)
        euler = x + step * first
        x = euler if i + 2 == len(levels) else x + step / 2 * (first + slope(euler, i + 1))
    return x


@dataclass(frozen=True)
class Update:
    """Weights with which a sampler adds up the next x; a weight of 0 leaves its term out."""

    data: float  # of the predicted data, clipped
    x: float = 0.0  # of the current x
    noise: float = 0.0  # of the predicted noise
    previous: float = 0.0  # of the data predicted one step earlier
    fresh: float = 0.0  # of new noise


Level = tuple[float, float]  # alpha, sigma


def ddim(levels: list[Level], i: int) -> Update:
    """Deterministic (Song 2021, Eq. 12 without noise): moves the predicted data and noise to the next level."""
    alpha, sigma = levels[i + 1]
    return Update(data=alpha, noise=sigma)


def ddpm(levels: list[Level], i: int) -> Update:
    """A draw from q(x_next | x, data) with the smaller of the two variances of Ho 2020 (Eq. 7, "fixed small")."""
    (alpha, sigma), (next_alpha, next_sigma) = levels[i], levels[i + 1]
    ratio = alpha / next_alpha
    beta = 1 - ratio**2
    return Update(
        data=next_alpha * beta / sigma**2,
        x=ratio * next_sigma**2 / sigma**2,
        fresh=next_sigma / sigma * math.sqrt(beta),
    )


def multistep(levels: list[Level], i: int) -> Update:
    """DPM-Solver++ 2M: of second order in the logarithm of alpha / sigma (Lu 2022b, Algorithm 2), at the ends of first.

    So is the second step where the walk starts from pure noise, whose logarithm is infinitely far away.
    """
    (alpha, sigma), (next_alpha, next_sigma) = levels[i], levels[i + 1]
    data, x = next_alpha - next_sigma * alpha / sigma, next_sigma / sigma
    if i == 0 or next_sigma == 0 or levels[i - 1][0] == 0:
        return Update(data=data, x=x)
    before, now, after = (math.log(a / s) for a, s in levels[i - 1 : i + 2])
    lead = (after - now) / (now - before) / 2
    return Update(data=data * (1 + lead), x=x, previous=-data * lead)


def walk(
    denoise: Callable[[Tensor, int], tuple[Tensor, Tensor | None]],
    x: Tensor,
    updates: Sequence[Update],
    fresh: Sequence[Tensor] = (),
) -> Tensor:
    """Carries x from noise to data, one update after every evaluation.

    Args:
        denoise: called as `denoise(x, i)`; gives the predicted data and, where an update weighs it, the noise.
        x: the state at the first level, any shape.
        updates: one for each evaluation.
        fresh: new noise for each step, where an update weighs it.
    """
    previous = x
    for i, update in enumerate(updates):
        data, noise = denoise(x, i)
        after = update.data * data
        if update.x:
            after = after + update.x * x
        if noise is not None:
            after = after + update.noise * noise
        if update.previous:
            after = after + update.previous * previous
        if update.fresh:
            after = after + update.fresh * fresh[i]
        x, previous = after, data
    return x
