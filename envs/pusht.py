"""Push-T: a disc pushes a T-shaped block onto its place (Chi et al. 2023; the gym-pusht 0.1.8 package).

Data sheet
    action       (2,) float32 in [0, 512]: where the disc is to be, x and y in pixels of the plane; 10 Hz. It gets there
                 within some steps (a PD control inside the simulator).
    observation  `env.observation` chooses:
                 "keypoints"  "agent" (2,) the disc, "keypoints" (16,) the corners of the block's two rectangles, px
                 "pose"       "agent" (2,), "pose" (4,) of the block: x and y in px, cosine and sine of its angle
                 "image"      "agent" (2,), "image" (S, S, 3) uint8 with S = `camera_size`
    score        info["score"] = min(1, coverage / .95) of every step, where coverage is how much of the place the block
                 covers. The score of an episode is its maximum (Chi et al. 2023).
    success      coverage above .95. The episode goes on in the world; it is truncated at `max_steps`.
    seeds        gym-pusht's own start states: disc and block anywhere, the place always the same. There is no expert.
    recorded     `observed` turns the states of the public human demonstrations (disc x, y, block x, y, angle) into what
                 this world observes. Their own key points and frames are not read: the points are nine others than the
                 simulator's, and images are drawn anew from the states. They end at a coverage below .902.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from flowhand.contracts.features import Feature, Spec
from flowhand.contracts.strict import nearest, whole
from flowhand.contracts.world import Observation

from .base import Env, EnvConfig
from .pusht_block import coverage, keypoints, pose_of

SIDE = 512.0  # of the plane, px
ENOUGH = 0.95  # coverage above which the task is solved
OBSERVATIONS = ("keypoints", "pose", "image")
CONTROL_DT_S = 0.1
HUMAN_EPISODES = 206  # of the public demonstrations
NEAR = 1e-3  # px and rad: a recorded state that is nearer to a known start is that one


@dataclass
class PushTConfig(EnvConfig):
    """What is observed, and how long.

    Raises:
        ValueError: an unknown observation, or a number out of range.
    """

    kind: str = "pusht"
    observation: str = "keypoints"  # keypoints (of the block) | pose (of the block) | image; each with the disc's place
    max_steps: int = 300  # control steps (10 per second)
    camera_size: int = 96  # pixels, height and width of the observed image
    image_size: int = 224  # pixels, height and width of render(), at most 512

    def __post_init__(self) -> None:
        if self.observation not in OBSERVATIONS:
            raise ValueError(f"unknown observation {self.observation!r}: {nearest(self.observation, OBSERVATIONS)}")
        if self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}, expected 1 or more")
        for name in ("camera_size", "image_size"):
            if not 1 <= getattr(self, name) <= SIDE:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 to {SIDE:.0f} pixels")


class PushTEnv(Env):
    """The world of this file.

    Raises:
        ImportError: the gym-pusht package is not installed.
    """

    task = "pusht"
    task_text = "push the T-shaped block onto the T-shaped target"

    def __init__(self, config: PushTConfig):
        self.config = config
        self._raw = _simulator()(obs_type="state")
        self._raw._get_coverage = lambda: 0.0  # its own measure takes a third of a step; see `coverage`
        self._beside: Any = None  # a simulator for recorded states
        self._vector = import_module("pymunk").Vec2d  # a fifth quicker in the simulator than an array
        self._steps = 0
        gym_pusht, pymunk = map(importlib.metadata.version, ("gym-pusht", "pymunk"))
        self.version = f"gym-pusht {gym_pusht}, pymunk {pymunk}"
        self.features = _features(config)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        """Start the episode that belongs to the seed; without one, draw a seed."""
        seed = None if seed is None else whole("seed", seed)
        super().reset(seed=seed, options=options)
        state, _ = self._raw.reset(seed=int(self.np_random.integers(2**31)) if seed is None else seed)
        self._steps = 0
        covered = coverage(*state[2:].tolist())
        return self._observation(state), {"score": _score(covered), "success": covered > ENOUGH}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict]:
        """Act for one control period (0.1 s); the action is clipped to the plane. Reward: the score of the step."""
        x, y = np.clip(np.asarray(action, np.float32), 0, SIDE).tolist()
        state = self._raw.step(self._vector(x, y))[0]
        self._steps += 1
        covered = coverage(*state[2:].tolist())
        score = _score(covered)
        info = {"success": covered > ENOUGH, "score": score, "coverage": covered, "failure": "target not covered"}
        return self._observation(state), score, False, self._steps >= self.config.max_steps, info

    def begin_at(self, recorded: Mapping[str, np.ndarray]) -> tuple[Observation, dict]:
        """Start an episode where a recorded one is: disc and block there, at rest.

        The first states of the public human demonstrations are known better than they are recorded: the block may lie
        in a wall at first, and is then pushed out of it. These begin as they did there.

        Args:
            recorded: the observation of one control step, as `observed` takes it, without its first axis.

        Raises:
            ValueError: there is no such state.
        """
        state = _states({name: np.asarray(values)[None] for name, values in recorded.items()})[0]
        _, info = self.reset(seed=0)
        for start in human_starts()[(human_starts()[:, :2] == state[:2]).all(1)]:
            begun = self._raw.reset(options={"reset_to_state": start})[0]
            if np.abs(begun - state).max() < NEAR:
                return self._observation(begun), info
        self._raw.reset(seed=0)
        place(self._raw, state)
        return self._observation(state), info

    def as_recorded(self) -> dict[str, np.ndarray]:
        """The present state as recordings have it: "state" (5,), disc x, y, block x, y (px), angle (rad)."""
        return {"state": np.array(self._raw.get_obs(), np.float64)}

    def observed(self, recorded: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What this world observes in recorded states.

        Args:
            recorded: "state" (N, 5): disc x, y, block x, y (px), angle (rad), as Diffusion Policy recorded; or "state"
                (N, 2), the disc, and "environment_state" (N, 16), the block's corners, as LeRobot's copy has it.

        Raises:
            ValueError: there are no such states.
        """
        states = _states(recorded)
        seen = {"agent": states[:, :2].astype(np.float32)}
        if self.config.observation == "keypoints":
            seen["keypoints"] = keypoints(states[:, 2:]).astype(np.float32)
        elif self.config.observation == "pose":
            seen["pose"] = _pose(states[:, 2:])
        else:
            seen["image"] = np.stack([self._drawn(state) for state in states])
        return seen

    def mirrored(
        self, recorded: Mapping[str, np.ndarray], action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Recorded states and actions, mirrored at the target's own axis, the diagonal x + y = 512.

        Block and target are symmetric about it, and so are the walls, up to one pixel.
        """
        states = _states(recorded)
        places = SIDE - states[:, [1, 0, 3, 2]]
        return {"state": np.column_stack([places, math.pi / 2 - states[:, 4]])}, SIDE - action[:, ::-1]

    def render(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the view from above, uint8 (image_size, image_size, 3); it needs no display."""
        return self._image(self.config.image_size)

    def close(self) -> None:
        """Nothing to free: images are drawn in memory."""

    def _observation(self, state: np.ndarray) -> Observation:
        if self.config.observation == "image":
            return {"agent": state[:2].astype(np.float32), "image": self._image(self.config.camera_size)}
        return {name: values[0] for name, values in self.observed({"state": state[None]}).items()}

    def _image(self, size: int) -> np.ndarray:
        return _picture(self._raw, size)

    def _drawn(self, state: np.ndarray) -> np.ndarray:
        """The camera's view of a recorded state, drawn beside the episode that may be running."""
        if self._beside is None:
            self._beside = _simulator()(obs_type="state")
            self._beside.reset(seed=0)
        place(self._beside, state)
        return _picture(self._beside, self.config.camera_size)


@cache
def human_starts() -> np.ndarray:
    """What the simulator was told at the start of each of the 206 human demonstrations (206, 5).

    They are draws of numpy's RandomState of the seeds 0 to 205, one for each episode (Chi et al. 2023, the recorder of
    Diffusion Policy); held against the record by benchmarks/replay_pusht.py.
    """
    found = []
    for seed in range(HUMAN_EPISODES):
        random = np.random.RandomState(seed)
        places = [random.randint(*ends) for ends in ((50, 450), (50, 450), (100, 400), (100, 400))]
        found.append([*places, random.randn() * 2 * np.pi - np.pi])
    return np.array(found)


def place(simulator: Any, state: np.ndarray) -> None:
    """Puts disc and block there; `state` (5,) is disc x, y, block x, y (px), angle (rad).

    The angle comes first, since it turns the block about its centre of mass. gym-pusht's `reset_to_state` has the other
    order, and so puts the block up to 90 px beside the place that was asked for.
    """
    x, y, block_x, block_y, angle = map(float, state)
    simulator.agent.position = x, y
    simulator.block.angle = angle
    simulator.block.position = block_x, block_y
    for body in (simulator.agent, simulator.block):
        simulator.space.reindex_shapes_for_body(body)


def _states(recorded: Mapping[str, np.ndarray]) -> np.ndarray:
    """Disc x, y, block x, y, angle (N, 5) of recorded observations."""
    state, corners = (np.asarray(recorded.get(name, ()), np.float64) for name in ("state", "environment_state"))
    if state.ndim == 2 and state.shape[1] == 5:
        return state
    if state.ndim == 2 and state.shape[1] == 2 and corners.shape == (len(state), 16):
        return np.column_stack([state, pose_of(corners)])
    raise ValueError(
        "env=pusht reads recorded demonstrations from 'state' (N, 5), disc x, y, block x, y, angle, or from 'state' "
        "(N, 2), the disc, and 'environment_state' (N, 16), the block's corners; got "
        + ", ".join(f"{name} {np.shape(values)}" for name, values in recorded.items())
    )


def _pose(poses: np.ndarray) -> np.ndarray:
    return np.column_stack([poses[:, :2], np.cos(poses[:, 2]), np.sin(poses[:, 2])]).astype(np.float32)


def _picture(simulator: Any, size: int) -> np.ndarray:
    return np.ascontiguousarray(simulator._get_img(simulator._draw(), size, size))


def _score(covered: float) -> float:
    return min(1.0, covered / ENOUGH)


@cache
def _simulator() -> Any:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # it greets on the standard output
    try:
        with warnings.catch_warnings():  # of its dependencies, about what they themselves import
            warnings.simplefilter("ignore")
            from gym_pusht.envs.pusht import PushTEnv as Simulator
    except ModuleNotFoundError as error:
        raise ImportError(f"env=pusht needs its extra: pip install 'flowhand[pusht]' ({error})") from error
    return Simulator


def _features(config: PushTConfig) -> Spec:
    observation = {"agent": Feature((2,), "float32", "px", names=("x", "y"))}
    if config.observation == "keypoints":
        observation["keypoints"] = Feature(
            (16,), "float32", "px", names=tuple(f"{i} {axis}" for i in range(8) for axis in "xy")
        )
    elif config.observation == "pose":
        names = ("x", "y", "cos", "sin")
        observation["pose"] = Feature((4,), "float32", "position px, direction 1", names=names)
    else:
        size = config.camera_size
        observation["image"] = Feature((size, size, 3), "uint8", "1", camera="top")
    return Spec(observation, Feature((2,), "float32", "px", (0.0, 0.0), (SIDE, SIDE), names=("x", "y")), CONTROL_DT_S)
