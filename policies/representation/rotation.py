"""Rotations: their forms, matrices, and the six numbers that a net learns (Zhou 2019, arXiv 1812.07035).

Products are written out as sums: they are small, and an export to int8 rounds what is a matrix product.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TINY = 1e-12  # below it a length has no direction


def matrix(values: Tensor, form: str) -> Tensor:
    """Rotations (..., n) of this form as matrices (..., 3, 3); quaternions and columns need not have length 1."""
    if form == "axis_angle":
        angle = _length(values)
        half = 0.5 * angle
        # sin(x/2) / x, which is 1/2 at 0
        scale = torch.where(angle > 1e-4, torch.sin(half) / angle.clamp(min=1e-4), 0.5 - angle.square() / 48)
        return _of_quaternion(torch.cat([values * scale, torch.cos(half)], dim=-1))
    if form == "quaternion_xyzw":
        return _of_quaternion(_unit(values))
    if form == "quaternion_wxyz":
        return _of_quaternion(_unit(values.roll(-1, -1)))
    found = orthonormal(values)
    return found.transpose(-1, -2) if form == "rotation_6d_rows" else found


def values(matrix: Tensor, form: str, reference: Tensor) -> Tensor:
    """Matrices (..., 3, 3) in this form (..., n), of equal ones that which is nearest to the reference (..., n)."""
    if form == "rotation_6d":
        return six(matrix)
    if form == "rotation_6d_rows":
        return six(matrix.transpose(-1, -2))
    quaternion = _quaternion(matrix)
    if form == "axis_angle":
        return _vector(quaternion, reference)
    if form == "quaternion_wxyz":
        quaternion = quaternion.roll(1, -1)
    return torch.where((quaternion * reference).sum(-1, keepdim=True) < 0, -quaternion, quaternion)


def six(matrix: Tensor) -> Tensor:
    """The first two columns of matrices (..., 3, 3), one after the other: (..., 6)."""
    return torch.cat([matrix[..., 0], matrix[..., 1]], dim=-1)


def orthonormal(six: Tensor) -> Tensor:
    """The rotation matrices (..., 3, 3) of two columns (..., 6), however far from orthonormal (Gram-Schmidt)."""
    first, second = _unit(six[..., :3]), six[..., 3:]
    second = _unit(second - (first * second).sum(-1, keepdim=True) * first)
    (a, b, c), (d, e, f) = first.unbind(-1), second.unbind(-1)
    third = torch.stack([b * f - c * e, c * d - a * f, a * e - b * d], dim=-1)
    return torch.stack([first, second, third], dim=-1)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Products of matrices (..., 3, 3)."""
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)


def inverse(matrix: Tensor) -> Tensor:
    """Inverses of rotation matrices (..., 3, 3)."""
    return matrix.transpose(-1, -2)


def _length(vector: Tensor) -> Tensor:
    return vector.square().sum(-1, keepdim=True).sqrt()


def _unit(vector: Tensor) -> Tensor:
    return vector / _length(vector).clamp(min=TINY)


def _of_quaternion(quaternion: Tensor) -> Tensor:
    """Matrices (..., 3, 3) of unit quaternions x, y, z, w (..., 4)."""
    x, y, z, w = quaternion.unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _quaternion(matrix: Tensor) -> Tensor:
    """Unit quaternions x, y, z, w (..., 4) of rotation matrices, from their largest component (Shepperd 1978)."""
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in matrix.unbind(-2))
    candidates = [  # each is four times one component times all of them
        torch.stack([1 + a - e - i, b + d, c + g, h - f], dim=-1),
        torch.stack([b + d, 1 - a + e - i, f + h, c - g], dim=-1),
        torch.stack([c + g, f + h, 1 - a - e + i, d - b], dim=-1),
        torch.stack([h - f, c - g, d - b, 1 + a + e + i], dim=-1),
    ]
    best, largest = candidates[0], candidates[0][..., :1]
    for place, candidate in enumerate(candidates[1:], start=1):
        square = candidate[..., place : place + 1]
        best, largest = torch.where(square > largest, candidate, best), torch.maximum(square, largest)
    return _unit(best)


def _vector(quaternion: Tensor, reference: Tensor) -> Tensor:
    """Axis times angle (..., 3) of unit quaternions, whole turns about the axis chosen by the reference (..., 3)."""
    part, w = quaternion[..., :3], quaternion[..., 3:]
    part = torch.where(w < 0, -part, part)
    sine = _length(part)
    axis = part / sine.clamp(min=TINY)
    angle = 2 * torch.atan2(sine, w.abs())
    turns = torch.round(((reference * axis).sum(-1, keepdim=True) - angle) / (2 * math.pi))
    return (angle + 2 * math.pi * turns) * axis
