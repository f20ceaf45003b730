"""Units of the single values of a feature, and how to go from one to another."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from flowhand.contracts.features import Feature

PERCENT = {"0..100": (0.0, 100.0), "-100..100": (-100.0, 100.0)}  # of a range: what its ends are called
FACTORS = {("deg", "rad"): math.pi / 180, ("rad", "deg"): 180 / math.pi, ("mm", "m"): 1e-3, ("m", "mm"): 1e3}


def units(feature: Feature) -> list[str]:
    """The unit of each value of a vector: the unit of the feature, or its parts, one for each with commas between."""
    parts = [part.strip() for part in feature.unit.split(",")]
    return parts if len(parts) == feature.size else [feature.unit] * feature.size


@dataclass(frozen=True)
class Line:
    """value -> scale * value + offset."""

    scale: float = 1.0
    offset: float = 0.0

    @property
    def plain(self) -> bool:
        """Whether it leaves values as they are."""
        return self == Line()


def conversion(given: str, wanted: str, given_range: tuple[float, float], wanted_range: tuple[float, float]) -> Line:
    """How a value in one unit becomes one in another.

    Args:
        given: the unit that a value has; as `wanted`, one of m, mm, rad, deg, 0..100, -100..100, or any other.
        wanted: the unit that it should have.
        given_range: smallest and largest value in the one unit, for a share of the range; infinite: not known.
        wanted_range: the same in the other unit.

    Raises:
        ValueError: nobody knows how; in words that follow a colon.
    """
    if given == wanted:
        return Line()
    if (given, wanted) in FACTORS:
        return Line(FACTORS[given, wanted])
    if given not in PERCENT and wanted not in PERCENT:
        raise ValueError(f"no conversion from {given} to {wanted} is known")
    (a, b), (c, d) = PERCENT.get(given, given_range), PERCENT.get(wanted, wanted_range)
    if not np.isfinite([a, b, c, d]).all() or a == b or c == d:
        other = wanted if given in PERCENT else given
        raise ValueError(f"a share of the range becomes {other} only where low and high are known, and they are not")
    scale = (d - c) / (b - a)
    return Line(scale, c - scale * a)
