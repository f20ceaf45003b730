"""A small world, a planner that knows its way, and robots that fail, for tests of recording, take-over and shadow."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from flowhand.contracts.features import ChunkConfig, Feature, Spec

NAMES = ("shoulder", "elbow")
STEP = 0.1  # that the point moves in a control step at most


def point_spec(dt: float | None = 0.1, **more: Feature) -> Spec:
    observation = {"state": Feature((2,), "float32", "rad", names=NAMES), "goal": Feature((2,), "float32", "rad")}
    action = Feature((2,), "float32", "rad", (-4.0, -4.0), (4.0, 4.0), names=NAMES)
    return Spec(observation | more, action, dt)


class PointWorld:
    """A point goes to where the action is; the task is solved at the goal."""

    task, task_text, version, perturbation, rest = "point", "go to the goal", "point 1", "", None

    def __init__(self, dt: float | None = 0.1, fails: Callable[[int], bool] = lambda seed: False, most: int = 200):
        self.features, self._fails, self._most = point_spec(dt), fails, most
        self.expert: Any = None

    def reset(self, *, seed=None, options=None):
        random = np.random.default_rng(seed)
        self._point, self._goal = random.uniform(-1, 1, (2, 2))
        self._steps, self._failing = 0, self._fails(seed or 0)
        self.expert = lambda observed: observed
        return self._observation(), self._info(False)

    def step(self, action):
        self._point = self._point + np.clip(np.asarray(action, float) - self._point, -STEP, STEP)
        self._steps += 1
        solved = bool(np.abs(self._point - self._goal).max() < 1e-6) and not self._failing
        return self._observation(), -1.0, False, self._steps >= self._most, self._info(solved)

    def _observation(self):
        return {"state": self._point.astype(np.float32), "goal": self._goal.astype(np.float32)}

    def _info(self, solved):
        return {"success": solved, "expert_observation": self._goal.copy()}

    def render(self):
        return np.zeros((8, 8, 3), np.uint8)

    def close(self):
        pass


class PointPlanner:
    """Goes to the goal, or, with a sign flipped, elsewhere.

    Args:
        signs: of each dimension of what it does.
        spec: of the world.
    """

    noise_shape, continues = (), {}
    words, identity, changed_head, device_name = "a planner of a test", None, {}, "cpu"

    def __init__(self, signs=(1.0, 1.0), spec: Spec | None = None):
        self.spec, self.chunk = spec or point_spec(), ChunkConfig(1, 8, 4)
        self._signs = np.array(signs, np.float32)

    def plan(self, observation, noise, prefix=None):
        state, goal = observation["state"][:, -1], observation["goal"][:, -1]
        steps = np.arange(1, self.chunk.prediction_horizon + 1, dtype=np.float32)[None, :, None]
        way = np.clip((goal - state)[:, None], -steps * STEP, steps * STEP)
        return (self._signs * (state[:, None] + way)).astype(np.float32)


class RobotArm:
    """A robot in real time, which fails as told.

    Args:
        fault: "", or slow | silent | hung | nan | stale | raises | deaf | no camera.
        at: of the readings, or commands, from which on it fails.
        times: how often.
    """

    def __init__(self, fault: str = "", at: int = 10, times: int = 10**9, dt: float = 0.02, camera: bool = False):
        more = {"front": Feature((16, 16, 3), "uint8", "", camera="front")} if camera else {}
        self.features = point_spec(dt, **more)
        self.command = np.zeros(2)
        self.sent: list[np.ndarray] = []
        self._fault, self._at, self._times, self._dt, self._camera = fault, at, times, dt, camera
        self._reads = 0
        self.observed_at = time.monotonic()

    def _fails(self, fault: str, count: int) -> bool:
        return self._fault == fault and self._at <= count < self._at + self._times

    def read(self):
        self._reads += 1
        count = self._reads
        if self._fails("slow", count):
            time.sleep(1.5 * self._dt)
        if self._fails("hung", count):
            time.sleep(0.4)
        if self._fails("raises", count):
            raise RuntimeError("the bus does not answer")
        if not self._fails("stale", count):
            self.observed_at = time.monotonic()
        state = np.array([count, 0], np.float32) * 0.001
        if self._fails("nan", count):
            state[1] = np.nan
        observation = {"state": state, "goal": np.zeros(2, np.float32)}
        if self._camera and not self._fails("no camera", count):
            observation["front"] = np.full((16, 16, 3), count % 200, np.uint8)
        return observation

    def write(self, action):
        if self._fails("deaf", self._reads):
            raise RuntimeError("the command was not taken")
        self.sent.append(np.array(action))
