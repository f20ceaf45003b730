"""A robot with one fault, and time that passes only when somebody waits or a device takes some."""

from __future__ import annotations

from collections import deque

import numpy as np

from flowhand.contracts.features import Feature, Spec

FAULTS = (
    "frozen camera",
    "swapped cameras",
    "slow camera",
    "dead joint",
    "flipped sign",
    "half rate",
    "wrong unit",
    "limit beyond the Spec",
    "stuck gripper",
    "delayed command",
)
SIZE = 12  # rows and columns of a picture


class Clock:
    """Seconds."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, until: float) -> None:
        """Time passes until then."""
        self.now = max(self.now, until)


class Planted:
    """A robot around another one, with a fault in what it reads or takes. It steps the other at every command.

    Args:
        robot: that has none.
        spec: of it.
        fault: one of FAULTS, or empty.
        clock: that is read, and moved on by devices that take time.
        seed: of noise and of times.
        at_step: reading from which cameras freeze or are exchanged.
    """

    concurrent = True

    def __init__(self, robot, spec: Spec, fault: str, clock: Clock, seed: int = 0, at_step: int = 100):
        self.robot, self.spec, self.fault, self.clock, self.at_step = robot, spec, fault, clock, at_step
        self.random = np.random.default_rng(seed)
        self.cameras = [name for name, feature in spec.observation.items() if feature.kind == "image"]
        self.readings = 0
        self.kept: dict = {}
        self.waiting: deque[np.ndarray] = deque()
        self.start = np.array(robot.read()["state"], float)

    def read(self):
        """What the robot reads, with the fault."""
        self.clock.now += 0.004 * self.random.uniform(1, 2)
        self.observed_at = self.clock.now
        observation, turn = dict(self.robot.read()), self.readings % 2
        self.readings += 1
        if self.fault == "half rate":
            observation = self._held(("state",), observation, turn)
        if self.fault == "slow camera":
            observation = self._held(self.cameras[:1], observation, turn)
        if self.fault == "frozen camera" and self.readings > self.at_step:
            observation = self._held(self.cameras[:1], observation, "state" in self.kept or 1)
        if self.fault == "swapped cameras" and self.readings > self.at_step:
            one, other = self.cameras[:2]
            observation[one], observation[other] = observation[other], observation[one]
        if self.fault == "flipped sign":
            observation["state"] = observation["state"].copy()
            observation["state"][1] = 2 * self.start[1] - observation["state"][1]
        if self.fault == "wrong unit":
            observation["state"] = np.degrees(observation["state"])
        self.kept = {**observation, **self.kept} if self.fault == "frozen camera" else dict(observation)
        return observation

    def _held(self, names, observation, turn):
        """The values of the reading before, where it is their turn."""
        return {n: self.kept.get(n, v) if n in names and turn and n in self.kept else v for n, v in observation.items()}

    def write(self, action):
        """Hands the command on, with the fault."""
        action = np.array(action, float)
        if self.fault == "dead joint":
            action[2] = self.start[2]
        if self.fault == "stuck gripper":
            action[-1] = self.start[-1] + np.clip(action[-1] - self.start[-1], -0.02, 0.02)
        if self.fault == "delayed command":
            self.waiting.append(action)
            action = self.waiting.popleft() if len(self.waiting) > 10 else self.start
        self.robot.write(action)

    def limits(self):
        """What the robot takes."""
        low, high = (end.astype(float) for end in self.spec.action.bounds())
        if self.fault == "limit beyond the Spec":
            high[0] -= 0.3 * (high[0] - low[0])
        return low, high


NAMES = ("pan", "lift", "roll", "gripper")
JOINTS = Feature((4,), "float32", "rad", (-1.5, -1.0, -2.0, 0.0), (1.5, 1.0, 2.0, 1.2), names=NAMES)
PICTURE = Feature((SIZE, SIZE, 3), "uint8", "")
SPEC = Spec({"state": JOINTS, "front": PICTURE, "wrist": PICTURE}, JOINTS, 1 / 30)


class Lagging:
    """Four joints that follow with a lag, and two cameras that see them.

    Args:
        noise: of states, rad, and of pictures, grey levels.
        seed: of the noise and of where the joints stand.
    """

    def __init__(self, noise: float, seed: int):
        self.random, self.noise = np.random.default_rng(seed), noise
        low, high = (end.astype(float) for end in JOINTS.bounds())
        self.angles = low + (high - low) * self.random.uniform(0.2, 0.8, 4)
        self.wanted = self.angles.copy()
        scene = np.random.default_rng(7)  # the same in all
        self.scenes = scene.integers(40, 200, (2, SIZE, SIZE, 3)).astype(float)
        self.weights = scene.normal(0, 8, (2, 4, SIZE, SIZE, 1))

    def read(self):
        state = self.angles + self.noise * 1e-3 * self.random.normal(size=4)
        pictures = self.scenes + np.einsum("j,cjxyz->cxyz", self.angles, self.weights)
        pictures += self.noise * self.random.normal(size=pictures.shape)
        pictures = np.clip(pictures, 0, 255).astype(np.uint8)
        return {"state": state.astype(np.float32), "front": pictures[0], "wrist": pictures[1]}

    def write(self, action):
        self.wanted = action
        self.angles = self.angles + 0.5 * (self.wanted - self.angles)  # two thirds in 50 ms
