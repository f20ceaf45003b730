"""An arm like the SO-101 picks up a cube and drops it into a box, seen by one camera.

Six servos are told positions, as LeRobot's SO-101 is; the sixth is the jaw. A cube of 25 mm lies somewhere in an area
of 10 x 10 cm, turned by any angle.

| observation | size | unit | meaning |
|---|---|---|---|
| state | 6 | rad | measured joint angles |
| front | (pixels, pixels, 3) | | picture of the camera in front of the arm; `observes=pixels` |
| cube | 5 | m | position of the cube and the sine and cosine of four times its turn; `observes=state` |

| action | range | unit | meaning |
|---|---|---|---|
| 0 to 5 | ranges of the joints | rad | wanted joint angles, in the order of `JOINTS` |

Start: the arm at rest near its start pose (+-0.02 rad), the cube uniform in x = 0.13 to 0.23 m, y = -0.04 to 0.06 m,
turned by -45 to 45 degrees, after which it looks the same. Success: the cube lies in the box and nothing of the gripper
touches it.
Control at 30 Hz. The expert is a script with inverse kinematics (envs/so101_expert.py).

The arm is made of primitives with the proportions of the SO-101; lengths, masses and gains are not measured ones.

Version 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowhand.contracts.features import Feature, Spec
from flowhand.contracts.strict import whole
from flowhand.contracts.world import Observation

from .base import Env, EnvConfig
from .cameras import LARGEST, Cameras
from .mujoco import Physics, load_mujoco
from .so101_expert import SO101Expert

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
NAMES = tuple(f"{joint}.pos" for joint in JOINTS)  # as LeRobot has them
START = np.array([0.0, -0.75, 0.65, 0.1, 0.0, 0.4])  # rad
SUBSTEPS = 16
CAMERA = "front"
AREA = np.array([[0.13, -0.04], [0.23, 0.06]])  # of the cube's centre, m
HALF = 0.0125  # of the cube's edge, m
INSIDE = 0.043  # from the middle of the box to its walls, m
RIM = 0.04  # height of the walls, m
SEEN = ("pixels", "state")


@dataclass
class SO101Config(EnvConfig):
    """How long the task may take, and what of it is observed."""

    kind: str = "so101"
    observes: str = "pixels"  # beside the joints: pixels (one camera) | state (the cube's pose)
    pixels: int = 96  # height and width of the camera's picture, at most 480
    max_steps: int = 300  # control steps (30 per second)

    def __post_init__(self) -> None:
        if self.observes not in SEEN:
            raise ValueError(f"env.observes={self.observes!r} is unknown; choices: {', '.join(SEEN)}")
        if not 16 <= self.pixels <= LARGEST:
            raise ValueError(f"env.pixels={self.pixels} must lie in 16..{LARGEST}")
        if self.max_steps < 1:
            raise ValueError(f"env.max_steps={self.max_steps} must be 1 or more")


class SO101Env(Env):
    """The world of this file."""

    task = "so101"
    task_text = "pick up the red cube and drop it into the blue box"
    rest = (None,) * 6  # a servo holds the last position

    def __init__(self, config: SO101Config):
        self.config = config
        self._mujoco = mujoco = load_mujoco()
        self._model = mujoco.MjModel.from_xml_path(str(Path(__file__).parent / "assets" / "so101.xml"))
        self._data = mujoco.MjData(self._model)
        self._joints = np.array([self._model.joint(name).qposadr[0] for name in JOINTS])
        self._cube = int(self._model.joint("cube").qposadr[0])
        self._touching = {self._model.geom(name).id for name in ("fixed_finger", "jaw")}
        self._cube_geom = self._model.geom("cube").id
        self.box = np.array(self._model.body("box").pos[:2])
        self.low, self.high = self._model.actuator_ctrlrange.T.copy()
        self._cameras: dict[int, Cameras] = {}
        self._area = AREA
        self.version = f"so101 1, mujoco {mujoco.__version__}"
        self.features = self._features()
        self.expert = SO101Expert(self.box)
        self.physics = Physics(self._model, self._data, self._model.body("cube").id)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        """Start the episode that belongs to the seed; without one, draw one."""
        seed = None if seed is None else whole("seed", seed)
        super().reset(seed=seed, options=options)
        self._mujoco.mj_resetData(self._model, self._data)
        start = START + self.np_random.uniform(-0.02, 0.02, 6)
        place, turn = self.np_random.uniform(*self._area), self.np_random.uniform(-np.pi / 4, np.pi / 4)
        self._data.qpos[self._joints] = self._data.ctrl[:] = start
        self._data.qpos[self._cube : self._cube + 7] = [*place, HALF, np.cos(turn / 2), 0, 0, np.sin(turn / 2)]
        self._mujoco.mj_forward(self._model, self._data)
        self._steps = 0
        self.expert = SO101Expert(self.box)
        return self._observation(), {"expert_observation": self.everything(), "success": False}

    def widen_start(self, factor: float) -> None:
        """Draw the cube from an area `factor` times as wide."""
        middle = AREA.mean(0)
        self._area = middle + factor * (AREA - middle)

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict]:
        """Act for one control period; the action is clipped to the joints' ranges. Reward: 1 at success, else 0."""
        self._data.ctrl[:] = np.clip(action, self.low, self.high)
        for _ in range(SUBSTEPS):
            self._mujoco.mj_step(self._model, self._data)
        self._steps += 1
        success, (_, _, height) = self._solved(), self._data.qpos[self._cube : self._cube + 3]
        info = {
            "success": success,
            "failure": "cube never lifted" if height < 2 * HALF else "cube not dropped into the box",
            "expert_observation": self.everything(),
        }
        return self._observation(), float(success), False, self._steps >= self.config.max_steps, info

    def everything(self) -> np.ndarray:
        """Joint angles, position of the cube and its turn, float64 (10,): what the expert sees."""
        w, x, y, z = self._data.qpos[self._cube + 3 : self._cube + 7]
        turn = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
        return np.concatenate([self.angles, self._data.qpos[self._cube : self._cube + 3], [turn]])

    @property
    def angles(self) -> np.ndarray:
        """Measured joint angles (6,), rad."""
        return self._data.qpos[self._joints].copy()

    def picture(self, pixels: int) -> np.ndarray:
        """What the camera sees, uint8 (pixels, pixels, 3); RenderingUnavailable where nothing can be drawn."""
        if pixels not in self._cameras:
            self._cameras[pixels] = Cameras(self._mujoco, self._model, self._data, pixels, pixels, fast=True)
        return self._cameras[pixels].picture(CAMERA)

    def render(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the camera's view, uint8 (240, 240, 3)."""
        return self.picture(240)

    def close(self) -> None:
        """Free the renderers."""
        for cameras in self._cameras.values():
            cameras.close()
        self._cameras.clear()

    def _solved(self) -> bool:
        """Whether the cube lies in the box, and no finger touches it."""
        x, y, z = self._data.qpos[self._cube : self._cube + 3]
        if not (np.abs([x, y] - self.box) < INSIDE).all() or z > RIM:
            return False
        pairs = self._data.contact.geom
        held = (pairs == self._cube_geom).any(1) & np.isin(pairs, list(self._touching)).any(1)
        return not held.any()

    def _observation(self) -> Observation:
        observation = {"state": self.angles.astype(np.float32)}
        if self.config.observes == "pixels":
            return observation | {CAMERA: self.picture(self.config.pixels)}
        turn = 4 * self.everything()[9]
        cube = np.concatenate([self._data.qpos[self._cube : self._cube + 3], [np.sin(turn), np.cos(turn)]])
        return observation | {"cube": cube.astype(np.float32)}

    def _features(self) -> Spec:
        low, high = tuple(map(float, self.low)), tuple(map(float, self.high))
        joints = Feature((6,), "float32", "rad", low, high, names=NAMES)
        n = self.config.pixels
        seen = {
            "pixels": {CAMERA: Feature((n, n, 3), "uint8", "", camera=CAMERA)},
            "state": {"cube": Feature((5,), "float32", "m", names=("x", "y", "z", "sin 4 turn", "cos 4 turn"))},
        }
        # Measured angles may lie a little outside the ranges, where a joint is pushed against its stop.
        state = Feature((6,), "float32", "rad", names=NAMES)
        return Spec({"state": state, **seen[self.config.observes]}, joints, 1 / 30)
