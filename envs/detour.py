"""Detour: drive round a pillar, on either side. The smallest task with two right answers.

A disc of 1 kg and 3 cm radius starts on the left, must reach the goal on the right, and must not touch the pillar of
15 cm radius between them. Its demonstrator passes on the left or on the right side by the toss of a coin, so from the
same start there are two good motions, and their mean drives into the pillar.

| observation | size | unit | meaning |
|---|---|---|---|
| state | 4 | m, m/s | position x, y and velocity x, y |
| goal | 2 | m | position x, y |

| action | range | unit | meaning |
|---|---|---|---|
| 0, 1 | -0.5 to 0.5 | m/s | wanted velocity along x and y |

Start: x = -0.45 m, y uniform in +-0.03 m, at rest. Goal: x = 0.45 m, y uniform in +-0.03 m. Success: within 3 cm of the
goal. The episode terminates when the pillar is touched. Control at 20 Hz. `info["mode"]` says on which side the disc
passed: "left", "right" (seen along the drive), or "" before.

With task=left or task=right, the demonstrator passes on that side, and only that is a success. The observation does not
tell the side: a policy for both must be told it in words.

Version 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from flowhand.contracts.features import Feature, Spec
from flowhand.contracts.strict import whole
from flowhand.contracts.world import Observation

from .base import Env, EnvConfig, as_named, tasks_named
from .mujoco import Physics, RenderingUnavailable, load_mujoco, rendering_help

if TYPE_CHECKING:
    import mujoco

SUBSTEPS = 10  # of 5 ms
SPEED = 0.4  # of the demonstrator, m/s
CLEARANCE = 0.26  # of its way from the pillar's centre, m
REACHED = 0.03  # m

TASKS: Mapping[str, str] = MappingProxyType(
    {
        "detour": "drive round the pillar to the goal",
        "left": "pass the pillar on the left and drive to the goal",
        "right": "pass the pillar on the right and drive to the goal",
    }
)


@dataclass
class DetourConfig(EnvConfig):
    """Free to choose the side, or told it in words, which alone tell the two tasks apart."""

    kind: str = "detour"
    # detour (either side will do) | left | right; several for one policy: [left,right]
    task: Any = field(default="detour", metadata={"before": "detour"})
    max_steps: int = 120  # control steps (20 per second)
    image_size: int = 224  # pixels, height and width of render(), at most 480

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}, expected 1 or more")
        if not 1 <= self.image_size <= 480:
            raise ValueError(f"image_size is {self.image_size}, expected 1 to 480 pixels")
        self.task = as_named(self.task, tasks_named(self.task, TASKS, {}, "detour"))

    def each(self) -> list[DetourConfig]:
        """See `EnvConfig`."""
        return [replace(self, task=name) for name in tasks_named(self.task, TASKS, {}, "detour")]


class DetourEnv(Env):
    """The world of this file."""

    rest = (0.0, 0.0)  # no velocity

    def __init__(self, config: DetourConfig):
        self.config = config
        (self._side,) = tasks_named(config.task, TASKS, {}, "detour")
        self.task = "detour" if self._side == "detour" else f"detour-{self._side}"
        self.task_text = TASKS[self._side]
        self._mujoco = load_mujoco()
        self._model = self._mujoco.MjModel.from_xml_path(str(Path(__file__).parent / "assets" / "detour.xml"))
        self._data = self._mujoco.MjData(self._model)
        self._renderer: mujoco.Renderer | None = None
        self.version = f"detour 1, mujoco {self._mujoco.__version__}"
        self.features = _features(self._model.opt.timestep * SUBSTEPS)
        self.expert = _Demonstrator(1.0)
        self.physics = Physics(self._model, self._data, self._model.body("robot").id)
        self._spread = 0.03  # of start and goal along y, m

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        """Start the episode that belongs to the seed; without one, draw one."""
        seed = None if seed is None else whole("seed", seed)
        super().reset(seed=seed, options=options)
        self._mujoco.mj_resetData(self._model, self._data)
        start, goal = self.np_random.uniform(-self._spread, self._spread, size=2)
        self._data.qpos[:] = (-0.45, start)
        self._goal = np.array([0.45, goal])
        self._model.site("goal").pos[:2] = self._goal
        drawn: float = self.np_random.choice([-1.0, 1.0])
        self.expert = _Demonstrator({"left": 1.0, "right": -1.0}.get(self._side, drawn))
        self._mujoco.mj_forward(self._model, self._data)
        self._steps, self._mode = 0, ""
        solved = float(np.hypot(*(self._data.qpos - self._goal))) < REACHED
        return self._observation(), {"expert_observation": self._all(), "success": solved}

    def widen_start(self, factor: float) -> None:
        """Draw y of start and goal from a range `factor` times as wide."""
        self._spread = 0.03 * factor

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict]:
        """Act for one control period (50 ms); the action is clipped to its range. Reward: minus the distance, in m."""
        self._data.ctrl[:] = np.clip(action, -0.5, 0.5)
        touched = False
        for _ in range(SUBSTEPS):
            self._mujoco.mj_step(self._model, self._data)
            touched |= self._data.ncon > 0
        self._steps += 1
        x, y = self._data.qpos
        if not self._mode and x > 0:
            self._mode = "left" if y > 0 else "right"
        distance = float(np.hypot(*(self._data.qpos - self._goal)))
        asked = self._side == "detour" or self._mode in ("", self._side)
        info = {
            "success": distance < REACHED and not touched and asked,
            "failure": "touched the pillar" if touched else "goal not reached" if asked else "passed on the other side",
            "mode": self._mode,
            "expert_observation": self._all(),
        }
        return self._observation(), -distance, touched, self._steps >= self.config.max_steps, info

    def render(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the view from above, uint8 (image_size, image_size, 3).

        Raises:
            RenderingUnavailable: no OpenGL backend works here.
        """
        renderer = self._renderer = self._renderer or self._make_renderer()
        renderer.update_scene(self._data, "top")
        return renderer.render()

    def _make_renderer(self) -> mujoco.Renderer:
        try:
            return self._mujoco.Renderer(self._model, self.config.image_size, self.config.image_size)
        # What a missing library raises depends on the backend: AttributeError, ImportError, RuntimeError ...
        except Exception as error:
            raise RenderingUnavailable(rendering_help()) from error

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _all(self) -> np.ndarray:
        """Position, velocity and goal, float64 (6,): what the demonstrator sees."""
        return np.concatenate([self._data.qpos, self._data.qvel, self._goal])

    def _observation(self) -> Observation:
        everything = self._all().astype(np.float32)
        return {"state": everything[:4], "goal": everything[4:]}


class _Demonstrator:
    """Drives over a point beside the pillar, then to the goal, at constant speed that fades near the goal."""

    def __init__(self, side: float):
        self.side = side  # +1 left, -1 right
        self._passed = False

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        position, goal = observation[:2], observation[4:]
        self._passed |= bool(position[0] > 0)
        target = goal if self._passed else np.array([0.02, self.side * CLEARANCE])
        way = target - position
        distance = float(np.hypot(*way))
        speed = min(SPEED, 4 * distance) if self._passed else SPEED
        return (way / max(distance, 1e-6) * speed).astype(np.float32)


def _features(control_dt_s: float) -> Spec:
    observation = {
        "state": Feature((4,), "float32", "position m, velocity m/s"),
        "goal": Feature((2,), "float32", "m"),
    }
    return Spec(observation, Feature((2,), "float32", "m/s", (-0.5,) * 2, (0.5,) * 2), float(control_dt_s))
