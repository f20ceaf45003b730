"""The geometry of Push-T's block: its corners, its pose, and how much of the target it covers."""

from __future__ import annotations

import math

import numpy as np

# The corners (8, 2) of the T's two rectangles in its own frame, px, in gym-pusht's order: bar, then stem.
CORNERS = np.array([(-60, 0), (60, 0), (60, 30), (-60, 30), (-15, 30), (15, 30), (15, 120), (-15, 120)], float)
BOXES = ((-60.0, 60.0, 0.0, 30.0), (-15.0, 15.0, 30.0, 120.0))  # the same as left, right, low and high
AREA = sum((right - left) * (high - low) for left, right, low, high in BOXES)
TARGET = (256.0, 256.0, math.pi / 4)  # pose of the target: x, y (px), angle (rad)
Polygon = list[tuple[float, float]]


def keypoints(poses: np.ndarray) -> np.ndarray:
    """Corners (N, 16), x and y in turn, at poses (N, 3): x, y (px), angle (rad)."""
    cosine, sine = np.cos(poses[:, 2:]), np.sin(poses[:, 2:])
    x = poses[:, :1] + cosine * CORNERS[:, 0] - sine * CORNERS[:, 1]
    y = poses[:, 1:2] + sine * CORNERS[:, 0] + cosine * CORNERS[:, 1]
    return np.stack([x, y], axis=-1).reshape(len(poses), -1)


def pose_of(points: np.ndarray) -> np.ndarray:
    """Poses (N, 3), x, y (px), angle (rad), of the block with these corners (N, 16); the inverse of `keypoints`."""
    found, (x, y) = points.reshape(len(points), 8, 2), CORNERS.mean(axis=0)
    flat, spread = CORNERS - (x, y), found - found.mean(axis=1, keepdims=True)
    # The rotation that brings the corners closest: in the plane it is one angle (Kabsch 1976).
    cosine = (spread * flat).sum(axis=(1, 2))
    sine = (spread[..., 1] * flat[:, 0] - spread[..., 0] * flat[:, 1]).sum(axis=1)
    angle = np.arctan2(sine, cosine)
    turned = np.stack([np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y], axis=1)
    return np.column_stack([found.mean(axis=1) - turned, angle])


def coverage(x: float, y: float, angle: float) -> float:
    """Share of the target that the block covers at this pose.

    gym-pusht asks GEOS, whose answer depends in its last bit on where things lie in memory, so that two runs of one
    episode differ. In the target's frame its two rectangles are boxes, and clipping at their sides has one order.
    """
    goal_x, goal_y, goal_angle = TARGET
    cosine, sine = math.cos(goal_angle), math.sin(goal_angle)
    dx, dy = x - goal_x, y - goal_y
    shift_x, shift_y, turn = cosine * dx + sine * dy, cosine * dy - sine * dx, angle - goal_angle
    cosine, sine = math.cos(turn), math.sin(turn)
    points = [(shift_x + cosine * a - sine * b, shift_y + sine * a + cosine * b) for a, b in CORNERS.tolist()]
    return sum(_area(_clipped(part, box)) for part in (points[:4], points[4:]) for box in BOXES) / AREA


def _clipped(polygon: Polygon, box: tuple[float, float, float, float]) -> Polygon:
    """The part of a convex polygon that lies in the box (Sutherland and Hodgman 1974)."""
    for axis, limit, sign in ((0, box[0], 1), (0, box[1], -1), (1, box[2], 1), (1, box[3], -1)):
        kept: Polygon = []
        for p, q in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            before, after = sign * (p[axis] - limit), sign * (q[axis] - limit)
            if before >= 0:
                kept.append(p)
            if (before > 0 > after) or (before < 0 < after):
                share = before / (before - after)
                kept.append((p[0] + share * (q[0] - p[0]), p[1] + share * (q[1] - p[1])))
        polygon = kept
    return polygon


def _area(polygon: Polygon) -> float:
    pairs = zip(polygon, polygon[1:] + polygon[:1], strict=True)
    return abs(sum(p[0] * q[1] - q[0] * p[1] for p, q in pairs)) / 2
