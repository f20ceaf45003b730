"""A script that solves so101: over the cube, down, close, up, over the box, open."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHOULDER = np.array([0.03, 0.115])  # of the shoulder_lift's axis: distance from the pan's axis, height; m
UPPER, FOREARM, TOOL = 0.116, 0.135, 0.150  # lengths; the tool from the wrist's axis to the finger's tip; m
OPEN, CLOSED = 0.95, 0.15  # of the jaw, rad
OVER, GRASP, CARRY, DROP = 0.075, 0.006, 0.085, 0.065  # heights of the tip, m
CLEAR = 0.006  # between the fixed finger and the cube before the jaw closes, m
LIFTED = 0.03  # height of a cube that is held, m
# Largest steps of one control period, of pan (rad), reach (m), height (m), roll (rad) and jaw (rad).
STEP = np.array([0.05, 0.010, 0.008, 0.10, 0.12])
SETTLED = 0.03  # rad: the arm has come to where it was told
WAITS = {"grasp": 6, "release": 8}  # control steps in which the jaw closes or opens
SLACK = 25  # control steps after which a phase goes on though the arm has not come there


def joints(pan: float, reach: float, height: float, roll: float, jaw: float) -> np.ndarray:
    """Joint angles (6,) with the tool pointing down: the planar arm with two links, elbow up.

    Args:
        pan: of the arm about the vertical axis, rad.
        reach: of the finger's tip from the pan's axis, m.
        height: of the tip, m.
        roll: of the gripper about the tool, rad.
        jaw: opening, rad.
    """
    r, z = reach - SHOULDER[0], height + TOOL - SHOULDER[1]
    distance = np.clip(np.hypot(r, z), abs(UPPER - FOREARM) + 1e-6, UPPER + FOREARM - 1e-6)
    inner = np.arccos((UPPER**2 + distance**2 - FOREARM**2) / (2 * UPPER * distance))
    first = np.arctan2(z, r) + inner  # of the upper arm above the horizontal
    r, z = distance * np.cos(np.arctan2(z, r)), distance * np.sin(np.arctan2(z, r))
    second = np.arctan2(z - UPPER * np.sin(first), r - UPPER * np.cos(first))
    lift, elbow = np.pi / 2 - first, -second - (np.pi / 2 - first)
    return np.array([pan, lift, elbow, -lift - elbow, roll, jaw])


def place(angles: np.ndarray) -> np.ndarray:
    """Pan, reach, height, roll and jaw of joint angles (6,), for a tool that points down."""
    pan, lift, elbow, wrist, roll, jaw = angles
    bend = lift + elbow
    r = UPPER * np.sin(lift) + FOREARM * np.cos(bend) - TOOL * np.sin(bend + wrist)
    z = UPPER * np.cos(lift) - FOREARM * np.sin(bend) - TOOL * np.cos(bend + wrist)
    return np.array([pan, SHOULDER[0] + r, SHOULDER[1] + z, roll, jaw])


@dataclass
class _Cube:
    position: np.ndarray  # (3,) m
    turn: float  # rad


class SO101Expert:
    """From joint angles, position and turn of the cube (10,) to joint targets (6,); it begins wherever the arm is.

    Args:
        box: middle of the box, (2,) m.
    """

    def __init__(self, box: np.ndarray):
        self._box = box
        self._phase, self._waited = "over", 0
        self._told: np.ndarray | None = None  # pan, reach, height, roll, jaw that were commanded last
        self._grip = np.zeros(5)  # what was commanded last when this phase began

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """Joint targets (6,), rad, for joint angles, position and turn of the cube."""
        angles, cube = observation[:6], _Cube(observation[6:9], float(observation[9]))
        if self._told is None:
            self._told = place(angles)
        self._choose(angles, cube)
        goal = self._goal(cube)
        way = goal - self._told
        share = min(1.0, 1.0 / max(float(np.max(np.abs(way) / STEP)), 1e-9))
        self._told = self._told + share * way
        return joints(*self._told).astype(np.float32)

    def _choose(self, angles: np.ndarray, cube: _Cube) -> None:
        """The next phase, where this one is over."""
        assert self._told is not None
        self._waited += 1
        came = bool(np.abs(self._goal(cube) - self._told).max() < 1e-6)
        settled = came and bool(np.abs(joints(*self._told) - angles)[:5].max() < SETTLED)
        held = cube.position[2] > LIFTED
        if self._phase in WAITS:
            if came and self._waited >= WAITS[self._phase]:
                self._go("lift" if self._phase == "grasp" else "away")
        elif self._phase in ("carry", "lift") and came and not held:
            self._go("over")  # it was lost
        elif settled or (came and self._waited > SLACK):
            following = {"over": "down", "down": "grasp", "lift": "carry", "carry": "release", "away": "away"}
            if self._phase == "away" and not self._inside(cube):
                self._go("over")
            elif self._phase != "away":
                self._go(following[self._phase])

    def _go(self, phase: str) -> None:
        assert self._told is not None
        self._phase, self._waited = phase, 0
        self._grip = self._told.copy()

    def _inside(self, cube: _Cube) -> bool:
        return bool((np.abs(cube.position[:2] - self._box) < 0.045).all())

    def _goal(self, cube: _Cube) -> np.ndarray:
        """Pan, reach, height, roll and jaw to go to in this phase."""
        if self._phase == "over":
            return self._above(cube)
        pan, reach, _, roll, _ = self._grip
        if self._phase == "down":
            return np.array([pan, reach, GRASP, roll, OPEN])
        if self._phase == "grasp":
            return np.array([pan, reach, GRASP, roll, CLOSED])
        if self._phase == "lift":
            return np.array([pan, reach, CARRY, roll, CLOSED])
        x, y = self._box
        over = [np.arctan2(y, x), np.hypot(x, y)]
        if self._phase == "carry":
            return np.array([*over, DROP, 0.0, CLOSED])
        return np.array([*over, DROP if self._phase == "release" else CARRY, 0.0, OPEN])

    def _above(self, cube: _Cube) -> np.ndarray:
        """Over the cube, its faces between the fingers, the fixed one a little away from it."""
        x, y = cube.position[:2]
        pan = np.arctan2(y, x)
        # Of the four ways to take a cube, the one with the least roll.
        turn = pan - ((pan - cube.turn + np.pi / 4) % (np.pi / 2) - np.pi / 4)
        x, y = x + CLEAR * np.sin(turn), y - CLEAR * np.cos(turn)
        pan = np.arctan2(y, x)
        return np.array([pan, np.hypot(x, y), OVER, pan - turn, OPEN])
