"""Explicit Runge-Kutta solvers: a method is a tableau and a docstring line; the driver is written once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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


def stage_times(tableau: Tableau, steps: int) -> list[float]:
    """The times at which `integrate` evaluates the velocity, in order: steps * stages values in [0, 1]."""
    return [(k + c) / steps for k in range(steps) for c in tableau.c]


def integrate(velocity: Callable[[Tensor, int], Tensor], x: Tensor, tableau: Tableau, steps: int) -> Tensor:
    """Carries x from t=0 to t=1 in `steps` equal steps.

    Args:
        velocity: called as `velocity(x, i)` at the i-th of `stage_times`, so that everything that depends on time
            alone can be computed beforehand, for all the times at once.
        x: the state at t=0, any shape.
        tableau: the method.
        steps: number of steps K, at least 1.

    Returns:
        The state at t=1.
    """
    h = 1 / steps
    for k in range(steps):
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
