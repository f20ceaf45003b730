"""A scripted expert for ALOHA: both hands follow waypoints that it derives from where the objects are.

A waypoint is a place of each hand and an opening of each gripper. Each hand has a reference that moves to its waypoint
at a limited speed and waits for a hand that lags behind; damped least squares turns it into joint targets (Buss 2004,
Eq. 11). The next waypoint comes when the hands are where they should be and the grippers have closed, not when a time
is over, and an object that was dropped is picked up again.

A hand always points away from its arm's base, as seen from above. So the two rolling joints of an arm need not move to
turn it, which they would do fast and far, since the wrist is nearly straight on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

LEFT, RIGHT = 0, 1
SIDES = ("left", "right")
FIRST = (0, 8)  # joint of each arm in the simulation; six angles, then two fingers
OBJECTS = 16  # where their poses begin
CLOSED, OPEN = 0.01844, 0.058  # place of a finger at the openings 0 and 1, m
PINCH = 0.14  # from the gripper's frame to between its finger tips, m
SPEED = 0.008  # of a reference, m per control step
TURN = 0.06  # of a reference, rad per control step
FADE = 0.25  # largest part of what is left to go, per control step
LEASH = 0.04  # how far a reference may be ahead of its hand, m
GRIPPED = {"cube": 0.65, "peg": 0.4, "socket": 0.7}  # below these openings a gripper has closed on its object
DOWN = np.pi / 2  # how far a hand points down to pick something up, rad
INWARDS = (1.0, -1.0)  # along x, from an arm's base to the other arm
HALF_LENGTH = 0.06  # of peg and socket, m
LOST = 0.05  # between a hand and what it should hold, m


class Hand(NamedTuple):
    """Where a hand is: between its finger tips, (3,) in m, and its axes as columns (3, 3), x out of the hand."""

    position: np.ndarray
    axes: np.ndarray

    def pitch(self, side: int) -> float:
        """How far it points down, rad; beyond a right angle it points back."""
        x, y, z = self.axes[:, 0]
        return float(np.arctan2(-z, np.copysign(np.hypot(x, y), INWARDS[side] * x)))


def _turn(axis: int, angle: float) -> np.ndarray:
    """The matrix (3, 3) of a rotation about x, y or z, rad."""
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix, (a, b) = np.eye(3), ((axis + 1) % 3, (axis + 2) % 3)
    matrix[a, a] = matrix[b, b] = cosine
    matrix[b, a], matrix[a, b] = sine, -sine
    return matrix


def _rotation_vector(turn: np.ndarray) -> np.ndarray:
    """Axis times angle (3,), rad, of a rotation matrix of less than half a turn."""
    sine = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]]) / 2
    size = float(np.sqrt(sine @ sine))
    return sine * (np.arctan2(size, (np.trace(turn) - 1) / 2) / max(size, 1e-9))


class Kinematics:
    """Forward and inverse kinematics of both hands, on simulation data of its own.

    Args:
        mujoco: the module.
        model: mujoco.MjModel of the world.
    """

    def __init__(self, mujoco: ModuleType, model: Any):
        self._mujoco, self._model, self._data = mujoco, model, mujoco.MjData(model)
        self._bodies = [model.body(f"vx300s_{side}/gripper_link").id for side in SIDES]
        self._bases = [model.body(f"vx300s_{side}").pos[:2].copy() for side in SIDES]
        limits = np.stack([model.jnt_range[first : first + 6] for first in FIRST])
        self._low, self._high = limits[..., 0], limits[..., 1]

    def hands(self, angles: np.ndarray) -> list[Hand]:
        """Where both hands are at the angles (2, 6) of the arms, rad."""
        for first, arm in zip(FIRST, angles, strict=True):
            self._data.qpos[first : first + 6] = arm
        self._mujoco.mj_kinematics(self._model, self._data)
        frames = [self._data.xmat[body].reshape(3, 3).copy() for body in self._bodies]
        return [Hand(self._data.xpos[b] + PINCH * f[:, 0], f) for b, f in zip(self._bodies, frames, strict=True)]

    def goal(self, side: int, aim: np.ndarray) -> Hand:
        """The hand at this aim, (5,): x, y, z in m, how far it points down and how far it is turned about itself."""
        x, y = aim[:2] - self._bases[side]
        return Hand(aim[:3], _turn(2, np.arctan2(y, x)) @ _turn(1, aim[3]) @ _turn(0, aim[4]))

    def square(self, side: int, position: np.ndarray) -> float:
        """The roll, rad, at which the fingers of a hand that points straight down close along y of the world."""
        x, y = (position[:2] - self._bases[side]) * INWARDS[side]
        return float(np.arctan2(y, x))

    def angles(self, start: np.ndarray, aims: list[np.ndarray], damping: float = 0.03) -> np.ndarray:
        """The angles (2, 6) after one step of damped least squares from those at the start to the hands' aims."""
        jacobian, steps = np.zeros((6, self._model.nv)), []
        hands = self.hands(start)
        self._mujoco.mj_comPos(self._model, self._data)
        for side, (hand, aim) in enumerate(zip(hands, aims, strict=True)):
            goal = self.goal(side, aim)
            self._mujoco.mj_jac(self._model, self._data, jacobian[:3], jacobian[3:], hand.position, self._bodies[side])
            error = np.concatenate([goal.position - hand.position, _rotation_vector(goal.axes @ hand.axes.T)])
            arm = jacobian[:, FIRST[side] : FIRST[side] + 6]
            steps.append(arm.T @ np.linalg.solve(arm @ arm.T + damping**2 * np.eye(6), error))
        return np.clip(start + steps, self._low, self._high)


class Dropped(Exception):  # noqa: N818 - an event of the episode, no error
    """A hand does not hold what it should."""


class AlohaExpert:
    """The expert of one episode: from the positions of all joints of the simulation to joint targets (14,) float32.

    Args:
        task: transfer_cube or insertion.
        kinematics: of the world's arms.
    """

    def __init__(self, task: str, kinematics: Kinematics):
        self._task, self._kinematics = task, kinematics
        self._waypoints: Iterator[None] | None = None
        self.aims: list[Callable[[], np.ndarray]] = []  # of each hand: where it should be, as things are now
        self.grips = [1.0, 1.0]  # of each hand: the opening it should have

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """The action for the episode's next observation."""
        measured = np.stack([observation[first : first + 6] for first in FIRST])
        self.hands = self._kinematics.hands(measured)
        self.openings = [(observation[first + 6] - CLOSED) / (OPEN - CLOSED) for first in FIRST]
        self.objects = observation[OBJECTS:].reshape(-1, 7)
        if self._waypoints is None:
            self._references = [_aim(hand.position, hand.pitch(s)) for s, hand in enumerate(self.hands)]
            self._angles = measured
            self._waypoints = _again_when_dropped(self, ATTEMPTS[self._task])
        next(self._waypoints)
        for side, (aim, hand) in enumerate(zip(self.aims, self.hands, strict=True)):
            self._references[side] = _advance(self._references[side], aim(), hand)
        self._angles = self._kinematics.angles(self._angles, self._references)
        return np.concatenate([[*a, grip] for a, grip in zip(self._angles, self.grips, strict=True)]).astype(np.float32)

    def until(self, done: Callable[[], bool], holds: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Act until something is so; raises `Dropped` as soon as the hands do not hold what they should."""
        while not done():
            if not holds():
                raise Dropped
            yield

    def pick(self, side: int, position: np.ndarray) -> np.ndarray:
        """The aim of a hand that is there from above, its fingers along y of the world."""
        return _aim(position, DOWN, self._kinematics.square(side, position))

    def near(self, side: int, distance: float = 0.01, turn: float = 0.15) -> bool:
        """Whether the hand is at its waypoint, up to this distance in m and turn in rad."""
        hand, goal = self.hands[side], self._kinematics.goal(side, self.aims[side]())
        way, rotation = goal.position - hand.position, _rotation_vector(goal.axes @ hand.axes.T)
        return bool(way @ way < distance**2 and rotation @ rotation < turn**2)

    def holds(self, side: int, item: int) -> bool:
        """Whether the object is where the hand is."""
        way = self.hands[side].position - self.objects[item, :3]
        return bool(way @ way < LOST**2)


def _advance(reference: np.ndarray, aim: np.ndarray, hand: Hand) -> np.ndarray:
    """The next reference (5,): nearer to the aim, and not too far from the hand."""
    way, ahead = aim - reference, reference[:3] - hand.position
    free = np.clip(2 - 2 * np.sqrt(ahead @ ahead) / LEASH, 0, 1)
    limits = (SPEED / max(np.sqrt(way[:3] @ way[:3]), 1e-9), TURN / max(np.sqrt(way[3:] @ way[3:]), 1e-9))
    return reference + free * min(FADE, *limits) * way


def _again_when_dropped(expert: AlohaExpert, attempt: Callable[[AlohaExpert], Iterator[None]]) -> Iterator[None]:
    while True:
        try:
            yield from attempt(expert)
        except Dropped:
            continue


def _aim(position: np.ndarray, pitch: float, roll: float = 0.0) -> np.ndarray:
    return np.array([*position, pitch, roll])


def _hand_over(expert: AlohaExpert) -> Iterator[None]:
    """The right hand brings the cube to the middle, and the left hand takes it there."""
    middle, away = np.array([0.0, 0.5, 0.25]), np.array([0.1, 0.0, 0.1])

    def cube(x: float = 0.0, z: float = 0.0) -> np.ndarray:
        return expert.objects[0, :3] + (x, 0, z)

    def carried() -> bool:
        return expert.holds(RIGHT, 0)

    expert.grips = [1.0, 1.0]
    expert.aims = [lambda: _aim(middle - (0.1, 0, 0), 0.0, np.pi / 2), lambda: expert.pick(RIGHT, cube(z=0.08))]
    yield from expert.until(lambda: expert.near(RIGHT, 0.02) and expert.openings[RIGHT] > 0.8)
    expert.aims[RIGHT] = lambda: expert.pick(RIGHT, cube())
    yield from expert.until(lambda: expert.near(RIGHT, 0.008))
    expert.grips[RIGHT] = 0.0
    yield from expert.until(lambda: expert.openings[RIGHT] < GRIPPED["cube"])
    expert.aims[RIGHT] = lambda: expert.pick(RIGHT, expert.hands[RIGHT].position + middle - cube())
    yield from expert.until(lambda: expert.near(RIGHT, 0.015) and expert.near(LEFT, 0.015), carried)
    expert.aims[LEFT] = lambda: _aim(cube(x=-0.005), 0.0, np.pi / 2)
    yield from expert.until(lambda: expert.near(LEFT, 0.01), carried)
    expert.grips[LEFT] = 0.0
    yield from expert.until(lambda: expert.openings[LEFT] < GRIPPED["cube"], carried)
    expert.grips[RIGHT] = 1.0
    expert.aims = [lambda: _aim(middle, 0.0, np.pi / 2), lambda: _aim(middle + away, DOWN)]
    yield from expert.until(lambda: False, lambda: expert.holds(LEFT, 0))


def _insert(expert: AlohaExpert) -> Iterator[None]:
    """The right hand lifts the peg and the left hand the socket, and they bring the two together."""
    items = (1, 0)  # of the left and the right hand: socket and peg

    def above(side: int, height: float) -> Callable[[], np.ndarray]:
        # The peg is thin, and fingers that touch the table do not close.
        offset = (-0.02 * INWARDS[side], 0, height + (0.0, 0.01)[side])
        return lambda: expert.pick(side, expert.objects[items[side], :3] + offset)

    def carry(side: int, x: float) -> Callable[[], np.ndarray]:
        """The front end of the object at x, in the middle of the air, and the object level."""

        def aim() -> np.ndarray:
            item, hand = expert.objects[items[side]], expert.hands[side]
            front = INWARDS[side] * _first_axis(item[3:])
            end = item[:3] + HALF_LENGTH * front
            return _aim(hand.position + np.array([x, 0.5, 0.2]) - end, hand.pitch(side) + np.arcsin(front[2]))

        return aim

    def both(distance: float) -> bool:
        return expert.near(LEFT, distance) and expert.near(RIGHT, distance)

    def carried() -> bool:
        return expert.holds(LEFT, 1) and expert.holds(RIGHT, 0)

    expert.grips = [1.0, 1.0]
    expert.aims = [above(LEFT, 0.08), above(RIGHT, 0.08)]
    yield from expert.until(lambda: both(0.02) and min(expert.openings) > 0.8)
    expert.aims = [above(LEFT, 0.0), above(RIGHT, 0.0)]
    yield from expert.until(lambda: both(0.008))
    expert.grips = [0.0, 0.0]
    gripped = (GRIPPED["socket"], GRIPPED["peg"])
    yield from expert.until(lambda: all(a < b for a, b in zip(expert.openings, gripped, strict=True)))
    expert.aims = [carry(LEFT, 0.0), carry(RIGHT, 0.03)]
    yield from expert.until(lambda: both(0.008), carried)
    expert.aims[RIGHT] = carry(RIGHT, -0.03)
    yield from expert.until(lambda: False, carried)


def _first_axis(quaternion: np.ndarray) -> np.ndarray:
    """Where x points, (3,), after the rotation of a quaternion with w first."""
    w, x, y, z = quaternion
    return np.array([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)])


ATTEMPTS = {"transfer_cube": _hand_over, "insertion": _insert}
