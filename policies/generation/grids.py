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
    2: (0.53355,),
    3: (0.40781, 0.87565),
    4: (0.19522, 0.27907, 0.85414),
    5: (0.173, 0.3624, 0.73926, 0.92913),
    6: (0.17404, 0.36381, 0.68907, 0.88034, 0.97275),
    7: (0.07618, 0.22651, 0.47575, 0.75233, 0.91257, 0.98187),
    8: (0.09853, 0.16745, 0.38385, 0.64691, 0.83309, 0.94454, 0.98149),
    9: (0.09492, 0.15606, 0.33452, 0.57742, 0.78788, 0.90988, 0.96484, 0.98677),
    10: (0.10107, 0.18132, 0.33605, 0.54836, 0.70415, 0.87274, 0.94038, 0.95938, 0.9895),
    11: (0.10308, 0.18401, 0.33853, 0.54975, 0.70373, 0.87234, 0.93904, 0.9536, 0.97362, 0.9904),
    12: (0.10773, 0.19078, 0.31972, 0.45886, 0.63674, 0.72835, 0.87519, 0.91087, 0.94297, 0.96605, 0.98723),
    13: (0.10757, 0.18976, 0.31378, 0.45335, 0.63006, 0.71915, 0.86768, 0.89733, 0.93508, 0.95852, 0.97689, 0.98909),
    14: (
        0.11982,
        0.17385,
        0.27589,
        0.39276,
        0.53478,
        0.65372,
        0.76804,
        0.87616,
        0.89043,
        0.93377,
        0.9506,
        0.96748,
        0.98848,
    ),
    15: (
        0.12387,
        0.16175,
        0.27183,
        0.37658,
        0.51948,
        0.63459,
        0.74203,
        0.86043,
        0.87491,
        0.91568,
        0.93628,
        0.95458,
        0.97228,
        0.98845,
    ),
    16: (
        0.12396,
        0.17112,
        0.28547,
        0.38399,
        0.51783,
        0.63621,
        0.71801,
        0.84429,
        0.86707,
        0.90608,
        0.93434,
        0.94933,
        0.96582,
        0.9806,
        0.99033,
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
