"""ALOHA: two ViperX arms hand over a cube or put a peg into a socket (Zhao et al. 2023; the gym-aloha 0.1.5 package).

Data sheet
    action       (14,) float32: the target of each joint, left arm then right arm: six angles in rad and the opening of
                 the gripper (0 closed, 1 open); 50 Hz. They are clipped to the ranges of the model. gym-aloha's own
                 space says [-1, 1], which would cut off what the arms can do, and is not used.
    observation  "state" (14,) float32: the joints as they are, in the same units.
                 observes=state: for every object (cube; peg and socket) its pose (7,) float32 under its name: position
                 in m and quaternion, w first.
                 observes=pixels: a picture (pixels, pixels, 3) uint8 of every camera in `cameras`, under its name.
    reward       gym-aloha's: the stage of the task, 0 to 4, after the step; `info["stage"]` holds it in words.
    success      stage 4, per step. transfer_cube: the left gripper touches the cube and the table does not. insertion:
                 the peg touches the pin in the socket. The episode goes on; it is truncated at `max_steps`.
    seeds        the start is what gym-aloha draws from the seed: the cube in a square of 0.2 m; peg and socket each in
                 a box of 0.1 m by 0.2 m.

Positions, contacts and rewards are bit-identical to those of gym-aloha for the same start and float32 actions. Its
environment renders three pictures of 480 x 640 at every step, whoever looks at them, and keeps the start in a global
variable; here MuJoCo steps the package's model directly.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np

from flowhand.contracts.features import Feature, Spec
from flowhand.contracts.strict import nearest, whole
from flowhand.contracts.world import Observation, check_action

from .aloha_expert import AlohaExpert, Kinematics
from .base import Env, EnvConfig
from .cameras import LARGEST, Cameras
from .mujoco import Physics, load_mujoco

SUBSTEPS = 10  # of 2 ms
ARM_JOINTS = 16  # of the simulation: a gripper has two fingers
CAMERAS = ("top", "angle", "front_close", "left_pillar", "right_pillar")
POSE = ("x", "y", "z", "qw", "qx", "qy", "qz")


@dataclass(frozen=True)
class Task:
    """What tells one task from the other: its model, its words, and what its contacts mean."""

    model: str  # file of the package
    text: str  # the instruction
    objects: tuple[str, ...]  # observed, in the order of the simulation's joints
    middle: tuple[float, ...]  # of the range of starts: x, y of every object, m
    stages: tuple[str, ...]  # what the rewards 0 to 4 mean


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "transfer_cube": Task(
            "bimanual_viperx_transfer_cube.xml",
            "pick up the cube with the right arm and hand it over to the left arm",
            ("cube",),
            (0.1, 0.5),
            (
                "cube not touched",
                "cube touched by the right gripper",
                "cube lifted by the right gripper",
                "cube touched by the left gripper on the table",
                "cube handed over",
            ),
        ),
        "insertion": Task(
            "bimanual_viperx_insertion.xml",
            "pick up the peg with the right arm and the socket with the left arm, and put the peg into the socket",
            ("peg", "socket"),
            (0.15, 0.5, -0.15, 0.5),
            (
                "peg or socket not touched",
                "peg and socket touched",
                "peg and socket lifted",
                "peg touches the socket in the air",
                "peg inserted",
            ),
        ),
    }
)


@dataclass
class AlohaConfig(EnvConfig):
    """One ALOHA task.

    Raises:
        ValueError: unknown task or camera, or a number out of range.
    """

    kind: str = "aloha"
    task: str = "transfer_cube"  # transfer_cube | insertion
    observes: str = "state"  # state (joints and objects) | pixels (joints and cameras)
    cameras: list[str] = field(default_factory=lambda: ["top"])  # that observes=pixels looks through
    pixels: int = 96  # height and width of each observed picture, at most 480
    max_steps: int = 300  # control steps (50 per second)
    camera: str = "angle"  # of the video
    image_size: int = 224  # pixels, height and width of the video, at most 480

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"unknown ALOHA task {self.task!r}: {nearest(self.task, TASKS)}")
        if self.observes not in ("state", "pixels"):
            raise ValueError(f"observes is {self.observes!r}, expected state or pixels")
        for camera in (self.camera, *self.cameras):
            if camera not in CAMERAS:
                raise ValueError(f"unknown camera {camera!r}: {nearest(camera, CAMERAS)}")
        if not self.cameras or len(set(self.cameras)) < len(self.cameras):
            raise ValueError(f"cameras is {list(self.cameras)}, expected one or more, all different")
        if self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}, expected 1 or more")
        for name in ("pixels", "image_size"):
            if not 1 <= getattr(self, name) <= LARGEST:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 to {LARGEST} pixels")


class AlohaEnv(Env):
    """An ALOHA task as a world.

    Raises:
        ImportError: the gym-aloha package is not installed.
    """

    rest = (None,) * 14  # joint targets: the robot stays where it was last told to be

    def __init__(self, config: AlohaConfig):
        self.config = config
        self._gym_aloha = _package()
        self._mujoco = load_mujoco()
        self._task = TASKS[config.task]
        path = self._gym_aloha.constants.ASSETS_DIR / self._task.model
        self._model = model = self._mujoco.MjModel.from_xml_path(str(path))
        self._data = data = self._mujoco.MjData(model)
        self.features = _features(self._gym_aloha, model, config)
        self.task, self.task_text = config.task, self._task.text
        self.version = f"gym-aloha {importlib.metadata.version('gym-aloha')}, mujoco {self._mujoco.__version__}"
        self._video = Cameras(self._mujoco, model, data, config.image_size, config.image_size)
        self._eyes = Cameras(self._mujoco, model, data, config.pixels, config.pixels, fast=True)
        self.physics = Physics(model, data, int(model.jnt_bodyid[ARM_JOINTS]))
        self._names = [model.geom(i).name for i in range(model.ngeom)]
        self._kinematics = Kinematics(self._mujoco, model)
        self.expert = AlohaExpert(config.task, self._kinematics)
        self._judge = _JUDGES[config.task]
        self._widening, self._steps = 1.0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        """Start the episode that belongs to the seed; without one, draw a seed."""
        seed = None if seed is None else whole("seed", seed)
        super().reset(seed=seed, options=options)
        start = self._start(int(self.np_random.integers(2**31)) if seed is None else seed)
        self._mujoco.mj_resetData(self._model, self._data)
        # Without motors, before and twice after the start is set, as gym-aloha does: the solver starts from the last.
        off = int(self._mujoco.mjtDisableBit.mjDSBL_ACTUATION)
        self._model.opt.disableflags |= off
        self._mujoco.mj_forward(self._model, self._data)
        self._data.qpos[:ARM_JOINTS] = self._data.ctrl[:] = self._gym_aloha.constants.START_ARM_POSE
        self._data.qpos[ARM_JOINTS:] = start
        for _ in range(2):
            self._mujoco.mj_forward(self._model, self._data)
        self._model.opt.disableflags &= ~off
        self.expert = AlohaExpert(self.config.task, self._kinematics)
        self._steps = 0
        return self._observation(), {"expert_observation": self._data.qpos.copy(), "stage": self._task.stages[0]}

    def _start(self, seed: int) -> np.ndarray:
        """What gym-aloha draws: the poses of the objects, (7,) each, one after the other."""
        draw = self._gym_aloha.utils
        if self.config.task == "transfer_cube":
            start = draw.sample_box_pose(seed)
        else:
            start = np.concatenate(draw.sample_insertion_pose(seed))
        if self._widening != 1:
            place = start.reshape(-1, 7)[:, :2]
            middle = np.reshape(self._task.middle, (-1, 2))
            place[:] = middle + self._widening * (place - middle)
        return start

    def widen_start(self, factor: float) -> None:
        """Draw x and y of the objects from a range `factor` times as wide about the same centre."""
        self._widening = factor

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict]:
        """Act for one control period (20 ms); MuJoCo clips the targets to the ranges of the motors.

        Raises:
            ValueError: the action has another shape, or is not finite.
        """
        where = f"{self.task}, step {self._steps}"
        self._data.ctrl[:] = self._targets(check_action(action, self.features, where=where))
        # In the order of dm_control, which leaves positions and contacts as they are at the end of the step.
        self._mujoco.mj_step2(self._model, self._data)
        self._mujoco.mj_step(self._model, self._data, SUBSTEPS - 1)
        self._mujoco.mj_step1(self._model, self._data)
        self._steps += 1
        reward = self._judge(self._touching())
        stage = self._task.stages[reward]
        info = {
            "success": reward == 4,
            "stage": stage,
            "failure": stage,
            "expert_observation": self._data.qpos.copy(),
        }
        return self._observation(), float(reward), False, self._steps >= self.config.max_steps, info

    def _targets(self, action: np.ndarray) -> np.ndarray:
        """Targets (16,) of the motors: a gripper's opening becomes the places of its two fingers."""
        arms = []
        for arm in (action[:7], action[7:]):
            finger = self._gym_aloha.constants.unnormalize_puppet_gripper_position(arm[6])
            arms += [arm[:6], [finger, -finger]]
        return np.concatenate(arms)

    def _touching(self) -> set[tuple[str, str]]:
        """The names of the geometries that touch."""
        return {(self._names[a], self._names[b]) for a, b in self._data.contact.geom.tolist()}

    def render(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the camera image, uint8 (image_size, image_size, 3), upright.

        Raises:
            RenderingUnavailable: no OpenGL backend works here.
        """
        return self._video.picture(self.config.camera)

    def close(self) -> None:
        """Free the renderers."""
        self._video.close()
        self._eyes.close()

    def _observation(self) -> Observation:
        raw = self._data.qpos
        normalize = self._gym_aloha.constants.normalize_puppet_gripper_position
        joints = np.concatenate([raw[:6], [normalize(raw[6])], raw[8:14], [normalize(raw[14])]])
        observation = {"state": joints.astype(np.float32)}
        if self.config.observes == "pixels":
            return observation | {camera: self._eyes.picture(camera) for camera in self.config.cameras}
        poses = raw[ARM_JOINTS:].reshape(-1, 7).astype(np.float32)
        return observation | dict(zip(self._task.objects, poses, strict=True))


def _judge_transfer(touching: set[tuple[str, str]]) -> int:
    """gym-aloha's reward of transfer_cube."""
    right = ("red_box", "vx300s_right/10_right_gripper_finger") in touching
    left = ("red_box", "vx300s_left/10_left_gripper_finger") in touching
    table = ("red_box", "table") in touching
    if left:
        return 3 if table else 4
    return 0 if not right else 1 if table else 2


def _judge_insertion(touching: set[tuple[str, str]]) -> int:
    """gym-aloha's reward of insertion."""
    walls = [f"socket-{i}" for i in range(1, 5)]
    right = ("red_peg", "vx300s_right/10_right_gripper_finger") in touching
    left = any((wall, "vx300s_left/10_left_gripper_finger") in touching for wall in walls)
    table = any((name, "table") in touching for name in ("red_peg", *walls))
    if ("red_peg", "pin") in touching:
        return 4
    if any(("red_peg", wall) in touching for wall in walls) and not table:
        return 3
    return 0 if not (left and right) else 1 if table else 2


_JUDGES = {"transfer_cube": _judge_transfer, "insertion": _judge_insertion}


def _package() -> ModuleType:
    """gym-aloha, as far as it needs neither dm_control nor a renderer."""
    try:
        import gym_aloha.constants  # pyright: ignore[reportMissingImports]
        import gym_aloha.utils  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ImportError(f"ALOHA needs its extra: pip install 'flowhand[aloha]' ({error})") from error
    return gym_aloha


def _features(gym_aloha: ModuleType, model: Any, config: AlohaConfig) -> Spec:
    names = tuple(gym_aloha.constants.JOINTS)
    motors = model.actuator_ctrlrange.astype(np.float32)
    ranges = np.concatenate([motors[:6], [[0, 1]], motors[8:14], [[0, 1]]])
    low, high = (tuple(map(float, side)) for side in ranges.T)
    joints = Feature((14,), "float32", "joints rad, gripper opening 1", names=names)
    action = Feature((14,), "float32", "joints rad, gripper opening 1", low, high, names=names)
    if config.observes == "pixels":
        shape = (config.pixels, config.pixels, 3)
        seen = {camera: Feature(shape, "uint8", "", camera=camera) for camera in config.cameras}
    else:
        pose = Feature((7,), "float32", "position m, quaternion 1", names=POSE)
        seen = dict.fromkeys(TASKS[config.task].objects, pose)
    return Spec({"state": joints, **seen}, action, float(model.opt.timestep * SUBSTEPS))
