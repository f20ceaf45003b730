"""Meta-World: 50 table-top tasks of a Sawyer arm, with scripted experts (Yu et al. 2019; the metaworld 3.1.1 package).

Data sheet
    action       (4,) float32 in [-1, 1]: hand displacement in cm along x, y, z, then gripper force (1 closes); 80 Hz.
    observation  observes=state: "state" (18,) float32: hand xyz, gripper opening, object 1 xyz + quaternion, object 2
                 the same (zeros where the task has one object); "goal" (3,) float32 if `goal_visible`.
                 observes=pixels: what a robot knows: "state" (4,) float32: hand xyz, gripper opening; and a picture
                 (pixels, pixels, 3) uint8 of every camera in `cameras`, under the camera's name. The goal is in the
                 picture where Meta-World draws it, as a small ball.
    success      Meta-World's own, per step. The episode goes on; it is truncated at `max_steps`.
    seeds        every seed is a fresh start and goal. Two of Meta-World's ways are avoided: `gym.make` draws every
                 reset from 50 stored goals, so that held-out seeds meet goals seen in training; and the goal that its
                 flag `_partially_observable` shows is clipped to a cached observation space where the goal is zero.

Observations, rewards and success are bit-identical to those of an unmodified, newly built Meta-World environment. That
includes the first observation of dial-turn, drawer-open, faucet-open, lever-pull, window-open and window-close, where
Meta-World reads the object's position before it moves the object (by up to 0.2 m); the second observation is right.
"""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.spaces import Box

from flowhand.contracts.features import Feature, Spec
from flowhand.contracts.strict import nearest, whole
from flowhand.contracts.world import Observation

from .base import Env, EnvConfig, as_named, tasks_named
from .cameras import LARGEST, Cameras
from .mujoco import Physics, load_mujoco

if TYPE_CHECKING:
    from metaworld.sawyer_xyz_env import SawyerXYZEnv

HAND = 4  # values of the hand, first of what Meta-World observes: xyz in metres and the gripper's opening
LIMIT = 500  # control steps after which Meta-World refuses to go on
_ROBOT_JOINTS = ("right_j", "r_close", "l_close")  # how their names begin
CAMERAS = ("corner", "corner2", "corner3", "corner4", "topview", "behindGripper", "gripperPOV")

TASKS: Mapping[str, str] = MappingProxyType(
    {
        "assembly-v3": "pick up the nut and place it onto the peg",
        "basketball-v3": "drop the basketball into the basket",
        "bin-picking-v3": "pick the cube from one bin and place it into the other bin",
        "box-close-v3": "grasp the lid and close the box with it",
        "button-press-topdown-v3": "press the button from above",
        "button-press-topdown-wall-v3": "press the button from above, past the wall",
        "button-press-v3": "press the button",
        "button-press-wall-v3": "press the button behind the wall",
        "coffee-button-v3": "push the button of the coffee machine",
        "coffee-pull-v3": "pull the mug away from the coffee machine to the goal",
        "coffee-push-v3": "push the mug under the coffee machine",
        "dial-turn-v3": "turn the dial",
        "disassemble-v3": "pick the nut off the peg",
        "door-close-v3": "close the door",
        "door-lock-v3": "lock the door by turning the lock",
        "door-open-v3": "open the door by its handle",
        "door-unlock-v3": "unlock the door by turning the lock",
        "drawer-close-v3": "close the drawer",
        "drawer-open-v3": "open the drawer",
        "faucet-close-v3": "close the faucet",
        "faucet-open-v3": "open the faucet",
        "hammer-v3": "hammer the screw into the wall",
        "hand-insert-v3": "push the block into the hole and reach into it",
        "handle-press-side-v3": "press the handle down from the side",
        "handle-press-v3": "press the handle down",
        "handle-pull-side-v3": "pull the handle up from the side",
        "handle-pull-v3": "pull the handle up",
        "lever-pull-v3": "pull the lever up",
        "peg-insert-side-v3": "insert the peg into the hole from the side",
        "peg-unplug-side-v3": "unplug the peg sideways",
        "pick-out-of-hole-v3": "pick the puck out of the hole and bring it to the goal",
        "pick-place-v3": "pick up the puck and place it at the goal",
        "pick-place-wall-v3": "pick up the puck, carry it over the wall and place it at the goal",
        "plate-slide-back-side-v3": "slide the plate sideways out of the cabinet",
        "plate-slide-back-v3": "slide the plate back out of the cabinet",
        "plate-slide-side-v3": "slide the plate sideways into the cabinet",
        "plate-slide-v3": "slide the plate into the cabinet",
        "push-back-v3": "pull the puck back to the goal",
        "push-v3": "push the puck to the goal",
        "push-wall-v3": "push the puck around the wall to the goal",
        "reach-v3": "reach the goal",
        "reach-wall-v3": "reach the goal behind the wall",
        "shelf-place-v3": "pick up the block and place it onto the shelf",
        "soccer-v3": "push the soccer ball into the goal",
        "stick-pull-v3": "grasp the stick and pull the box with it",
        "stick-push-v3": "grasp the stick and push the box with it",
        "sweep-into-v3": "sweep the puck into the hole",
        "sweep-v3": "sweep the puck off the table",
        "window-close-v3": "push the window closed",
        "window-open-v3": "push the window open",
    }
)
MT10 = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "door-open-v3",
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "peg-insert-side-v3",
    "window-open-v3",
    "window-close-v3",
)
SETS: Mapping[str, tuple[str, ...]] = MappingProxyType({"MT10": MT10, "MT50": tuple(TASKS)})


@dataclass
class MetaWorldConfig(EnvConfig):
    """One Meta-World task, or several for one policy.

    Raises:
        ValueError: unknown task or camera, or a number out of range.
    """

    kind: str = "metaworld"
    # a key of TASKS; several for one policy: [reach-v3,push-v3], or the sets MT10 and MT50
    task: Any = "pick-place-v3"
    # what the policy sees: state (hand, objects, goal) | pixels (the hand's own state, and a picture of each camera)
    observes: str = field(default="state", metadata={"before": "state"})
    goal_visible: bool = True  # whether the policy sees the goal among states; the scripted expert always does
    # cameras that observes=pixels looks through
    cameras: list[str] = field(default_factory=lambda: ["corner"], metadata={"before": ["corner"]})
    # height and width of each observed picture in pixels, at most 480
    pixels: int = field(default=96, metadata={"before": 96})
    max_steps: int = LIMIT  # control steps (80 per second), at most 500
    camera: str = "corner2"  # of the video
    image_size: int = 224  # pixels, height and width of the video, at most 480

    def __post_init__(self):
        self.task = as_named(self.task, tasks_named(self.task, TASKS, SETS, "Meta-World"))
        if self.observes not in ("state", "pixels"):
            raise ValueError(f"observes is {self.observes!r}, expected state or pixels")
        for camera in (self.camera, *self.cameras):
            if camera not in CAMERAS:
                raise ValueError(f"unknown camera {camera!r}: {nearest(camera, CAMERAS)}")
        if not self.cameras or len(set(self.cameras)) < len(self.cameras):
            raise ValueError(f"cameras is {list(self.cameras)}, expected one or more, all different")
        if not 1 <= self.max_steps <= LIMIT:
            raise ValueError(f"max_steps is {self.max_steps}, expected 1 to {LIMIT}: Meta-World stops there")
        for name in ("pixels", "image_size"):
            if not 1 <= getattr(self, name) <= LARGEST:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 to {LARGEST} pixels")

    def each(self) -> list[MetaWorldConfig]:
        """See `EnvConfig`."""
        return [replace(self, task=name) for name in tasks_named(self.task, TASKS, SETS, "Meta-World")]


class MetaWorldEnv(Env):
    """A Meta-World task as a world.

    Raises:
        ImportError: the metaworld package is not installed.
    """

    rest = (0.0, 0.0, 0.0, None)  # no displacement, and the gripper as it is

    def __init__(self, config: MetaWorldConfig):
        self.config = config
        self._mujoco = load_mujoco()
        (self.task,) = tasks_named(config.task, TASKS, SETS, "Meta-World")
        self._raw = _build(self.task)
        self._steps = 0
        self.features = _features(self._raw, config)
        self.task_text = TASKS[self.task]
        self.version = f"metaworld {importlib.metadata.version('metaworld')}, mujoco {self._mujoco.__version__}"
        model, data = self._raw.model, self._raw.data
        self._video = Cameras(self._mujoco, model, data, config.image_size, config.image_size)
        self._eyes = Cameras(self._mujoco, model, data, config.pixels, config.pixels, fast=True)
        handled = next(i for i in range(model.njnt) if not model.joint(i).name.startswith(_ROBOT_JOINTS))
        self.physics = Physics(model, data, int(model.jnt_bodyid[handled]))
        assert self._raw._random_reset_space is not None
        self._start_box = self._raw._random_reset_space
        self._renew_expert()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        """Start the episode that belongs to the seed; without one, draw a seed."""
        seed = None if seed is None else whole("seed", seed)
        super().reset(seed=seed, options=options)
        self._raw.seed(int(self.np_random.integers(2**31)) if seed is None else seed)
        # Meta-World resets a task twice, before and after clearing the simulator: nothing of the last episode survives.
        raw, info = self._raw.reset()
        self._renew_expert()
        self._steps = 0
        return self._observation(raw), {**info, "expert_observation": raw}

    def widen_start(self, factor: float) -> None:
        """Draw what Meta-World draws at reset (object and goal, not the hand) from a box `factor` times as wide."""
        box = self._start_box
        centre, half = (box.low + box.high) / 2, (box.high - box.low) / 2
        self._raw._random_reset_space = Box(centre - factor * half, centre + factor * half, dtype=np.float64)
        # The goal is clipped to its own box in the observation: nothing may be clipped in silence out there.
        self._raw.goal_space = Box(-np.inf, np.inf, (3,), np.float64)
        self._raw.__dict__.pop("sawyer_observation_space", None)
        if (goal := self.features.observation.get("goal")) is not None:
            observation = {**self.features.observation, "goal": replace(goal, low=None, high=None)}
            self.features = replace(self.features, observation=observation)
            self.__dict__.pop("observation_space", None)

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict]:
        """Act for one control period (12.5 ms); Meta-World clips the action to [-1, 1].

        Raises:
            ValueError: the episode was already truncated.
        """
        if self._steps >= self.config.max_steps:
            raise ValueError(f"the episode was truncated at step {self._steps}; call reset first")
        # float32 whatever comes in: Meta-World's arithmetic depends on the dtype, and demonstrations store float32.
        raw, reward, _, _, info = self._raw.step(np.asarray(action, dtype=np.float32))
        self._steps += 1
        info = {**info, "success": bool(info["success"]), "expert_observation": raw, "failure": self._failure(raw)}
        return self._observation(raw), float(reward), False, self._steps >= self.config.max_steps, info

    def _failure(self, raw: np.ndarray) -> str:
        """What to call the episode if it fails: whether the object has moved by 2 cm since the first step."""
        if self.task.startswith("reach"):  # there the object only lies about
            return "goal not reached"
        if self._steps == 1:  # not at reset, whose observation is stale in some tasks
            self._object_start, self._object_moved = raw[4:7].copy(), False
        self._object_moved |= bool(np.linalg.norm(raw[4:7] - self._object_start) > 0.02)
        return "object moved, goal not reached" if self._object_moved else "object never moved"

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

    def _observation(self, raw: np.ndarray) -> Observation:
        if self.config.observes == "pixels":
            pictures = {camera: self._eyes.picture(camera) for camera in self.config.cameras}
            return {"state": raw[:HAND].astype(np.float32), **pictures}
        observation = {"state": raw[:18].astype(np.float32)}
        if self.config.goal_visible:
            observation["goal"] = raw[36:].astype(np.float32)
        return observation

    def _renew_expert(self) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        policy = ENV_POLICY_MAP[self.task]()

        def expert(observation: np.ndarray) -> np.ndarray:
            with warnings.catch_warnings():  # its gains ask for more than [-1, 1] and it warns about that at every step
                warnings.simplefilter("ignore")
                return np.asarray(policy.get_action(observation), dtype=np.float32)

        self.expert = expert


def _build(task: str) -> SawyerXYZEnv:
    env = _faster_class(task)()
    # Draw start and goal from the generator that seed() sets, at every reset, instead of from 50 stored ones.
    env._freeze_rand_vec, env.seeded_rand_vec, env._set_task_called = False, True, True
    env._partially_observable = False
    # The observation is clipped to this cached space, in which the goal is zero until it is computed again.
    env.__dict__.pop("sawyer_observation_space", None)
    return env


@functools.cache
def _faster_class(task: str) -> type[SawyerXYZEnv]:
    """Return Meta-World's class of the task with two methods replaced by faster ones that give the same values."""
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ModuleNotFoundError as error:
        raise ImportError(f"Meta-World needs its extra: pip install 'flowhand[metaworld]' ({error})") from error
    original = ALL_V3_ENVIRONMENTS[task]
    methods = {"_initialize_simulation": _initialize_simulation, "touching_object": _touching_object}
    return type(original.__name__, (original,), methods)


@functools.lru_cache(maxsize=4)
def _compile(path: str) -> Any:  # an MjModel; mujoco ships no types
    return load_mujoco().MjModel.from_xml_path(path)


def _initialize_simulation(env: SawyerXYZEnv) -> tuple[Any, Any]:
    """Copy a model that was compiled before.

    Building pick-place-v3 takes 0.22 s (other tasks up to 2 s), nearly all of it compiling meshes; copying the 21 MB
    model takes 0.02 s. Four models are kept.
    """
    model = copy.copy(_compile(env.fullpath))
    model.vis.global_.offwidth = max(model.vis.global_.offwidth, env.width)
    model.vis.global_.offheight = max(model.vis.global_.offheight, env.height)
    model.vis.quality.offsamples = 0  # no multisampling: slow in software and hardly visible
    return model, load_mujoco().MjData(model)


def _touching_object(env: SawyerXYZEnv, object_geom_id: int) -> bool:
    """Say whether both finger pads press on the object, reading all contacts at once.

    Meta-World makes a Python object per contact, twice; without that a step of pick-place-v3 takes 0.6 of the time.
    """
    contact, force = env.data.contact, env.data.efc_force
    pairs, addresses = contact.geom, contact.efc_address
    on_object = (pairs == object_geom_id).any(axis=1)
    if not on_object.any():
        return False

    def pressed(pad: str) -> bool:
        touching = on_object & (pairs == env.data.geom(pad).id).any(axis=1)
        return sum(force[addresses[touching]]) > 0  # a plain sum, in Meta-World's order

    return pressed("leftpad_geom") and pressed("rightpad_geom")


def _features(env: SawyerXYZEnv, config: MetaWorldConfig) -> Spec:
    action = Feature((4,), "float32", "hand cm per step, gripper force 1", (-1.0,) * 4, (1.0,) * 4)
    if config.observes == "pixels":
        shape = (config.pixels, config.pixels, 3)
        pictures = {camera: Feature(shape, "uint8", "", camera=camera) for camera in config.cameras}
        state = Feature((HAND,), "float32", "hand m, gripper opening 0 to 1", names=("x", "y", "z", "gripper"))
        return Spec({"state": state, **pictures}, action, float(env.dt))
    pose = "position m, quaternion 1"
    state_unit = f"hand m, gripper opening 0 to 1, object 1 {pose}, object 2 {pose}"
    observation = {"state": Feature((18,), "float32", state_unit)}
    if config.goal_visible:
        assert env.goal_space is not None
        low, high = tuple(env.goal_space.low.tolist()), tuple(env.goal_space.high.tolist())
        observation["goal"] = Feature((3,), "float32", "m", low, high)
    return Spec(observation, action, float(env.dt))
