"""Where between noise and data a sampler asks the net: grids of times, from 0 to 1.

A time stands for a ratio of signal to noise, alpha / sigma = t / (1 - t), which on the linear path is the path's own.
So one table serves every path.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .paths import time_at

GRIDS = ("uniform", "power", "tabulated")
POWER = 2.0
TABLE: dict[int, tuple[float, ...]] = {
    1: (),
    2: (0.1192,),
    3: (0.1192, 0.98901),
    4: (0.1192, 0.7773, 0.98901),
    5: (0.1192, 0.54157, 0.9116, 0.98901),
    6: (0.1192, 0.40733, 0.7773, 0.9466, 0.98901),
    7: (0.1192, 0.33181, 0.64566, 0.86989, 0.96083, 0.98901),
    8: (0.1192, 0.28564, 0.54157, 0.7773, 0.9116, 0.96822, 0.98901),
    9: (0.1192, 0.25513, 0.46435, 0.68691, 0.84739, 0.93357, 0.97265, 0.98901),
    10: (0.1192, 0.23371, 0.40733, 0.60766, 0.7773, 0.8872, 0.9466, 0.97558, 0.98901),
    11: (0.1192, 0.21793, 0.36458, 0.54157, 0.70866, 0.83357, 0.9116, 0.95502, 0.97764, 0.98901),
    12: (0.1192, 0.20587, 0.33181, 0.4875, 0.64566, 0.7773, 0.86989, 0.92757, 0.96083, 0.97916, 0.98901),
    13: (0.1192, 0.19638, 0.30615, 0.44343, 0.58992, 0.72203, 0.82426, 0.89439, 0.93862, 0.96505, 0.98034, 0.98901),
    14: (
        0.1192,
        0.18872,
        0.28564,
        0.40733,
        0.54157,
        0.67003,
        0.7773,
        0.85713,
        0.9116,
        0.9466,
        0.96822,
        0.98126,
        0.98901,
    ),
    15: (
        0.1192,
        0.18243,
        0.26894,
        0.37754,
        0.5,
        0.62246,
        0.73106,
        0.81757,
        0.8808,
        0.92414,
        0.95257,
        0.97069,
        0.98201,
        0.98901,
    ),
    16: (
        0.1192,
        0.17716,
        0.25513,
        0.35271,
        0.46435,
        0.57967,
        0.68691,
        0.7773,
        0.84739,
        0.89831,
        0.93357,
        0.95719,
        0.97265,
        0.98263,
        0.98901,
    ),
}


def uniform(steps: int) -> list[float]:
    """K equal steps."""
    return [k / steps for k in range(steps + 1)]


def power(steps: int) -> list[float]:
    """Steps that become shorter towards the data, for any K."""
    return [1 - (1 - k / steps) ** POWER for k in range(steps + 1)]


def tabulated(steps: int) -> list[float]:
    """The grid that benchmarks/grids.py found for the multistep solver with so many steps.

    Raises:
        ValueError: there is none.
    """
    if steps not in TABLE:
        raise ValueError(
            f"there is a tabulated grid for {min(TABLE)} to {max(TABLE)} steps, got {steps}; take the grid 'power'"
        )
    return [0.0, *TABLE[steps], 1.0]


def times_on(path: str, kind: str, steps: int) -> list[float]:
    """The K + 1 times of a grid on the named path: uniform in its own time, the others in the ratio.

    Raises:
        ValueError: there is no tabulated grid of so many steps.
    """
    if kind == "uniform":
        return uniform(steps)
    inner = log_ratios(power(steps) if kind == "power" else tabulated(steps))
    return [0.0, *time_at(path, inner).tolist(), 1.0]


def log_ratios(grid: list[float]) -> Tensor:
    """ln(sigma / alpha) of the times between the ends, in float64."""
    # The device is named because a checkpoint's shapes are found out on the meta device, which computes nothing.
    return -torch.logit(torch.tensor(grid[1:-1], dtype=torch.float64, device="cpu"))
