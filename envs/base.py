"""What every world offers: dictionaries of arrays in, one action out, and a description of both.

A world is a `gymnasium.Env` whose observation is a flat dictionary of numpy arrays. A seed fixes the start state and
the goal completely, whatever ran in the same object before. The world never stops at success; the rollout decides
about that.
"""

from __future__ import annotations

import ctypes.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Dict

from flowhand.contracts.features import Spec
from flowhand.contracts.world import Expert, Observation

from .spaces import FeatureSpace


@dataclass
class EnvConfig:
    """The choice of a world; every adapter adds its own fields."""

    kind: str = "???"  # a key of envs.ENVS


@dataclass(frozen=True)
class Physics:
    """MuJoCo's side of a world, for what disturbs it from outside (envs/perturb.py)."""

    model: Any  # mujoco.MjModel
    data: Any  # mujoco.MjData
    body: int  # the body that matters most: the object to be handled, or the robot where there is none


class Env(gymnasium.Env[Observation, np.ndarray]):
    """A world to act in.

    `reset(seed=...)` and `step(action)` follow Gymnasium. Where there is a scripted expert, their `info` holds what it
    sees as `expert_observation`, which may be more than the policy sees. The `info` of `step` always holds `success`
    (bool, this step). It may hold `failure`, what kind of failure it is, in words, if the episode ends here, and
    `mode`, which of several ways the episode has taken.

    Attributes:
        features: names, shapes, dtypes, units and ranges of observation and action, and the control period, from which
            Gymnasium's spaces are made. (Its own attribute `spec` is how the world was registered.)
        task: the short name of the task, as it stands in records.
        task_text: the task as an instruction in plain English.
        version: the simulator and its version.
        expert: a function from `info["expert_observation"]` to an action, made anew by every `reset`, or None.
        perturbation: what disturbs the world, as it stands in records; empty if nothing does.
        physics: MuJoCo's model and data, or None in a world without.
        rest: the action at which the robot stands still, for each dimension, where that is None by repeating the last
            one; None: not known.
    """

    features: Spec
    task: str
    task_text: str
    version: str
    expert: Expert | None = None
    perturbation: str = ""
    physics: Physics | None = None
    rest: Sequence[float | None] | None = None
    metadata: ClassVar[dict] = {"render_modes": ["rgb_array"]}  # pyright: ignore[reportIncompatibleVariableOverride]
    render_mode = "rgb_array"

    @cached_property
    def action_space(self) -> FeatureSpace:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The space of the actions, as the features say."""
        return FeatureSpace(self.features.action)

    @cached_property
    def observation_space(self) -> Dict:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The space of the observations, as the features say."""
        return Dict({name: FeatureSpace(feature) for name, feature in self.features.observation.items()})

    def widen_start(self, factor: float) -> None:
        """Draw starts and goals, from the next reset on, from a range `factor` times as wide about the same centre.

        Raises:
            ValueError: this world cannot.
        """
        raise ValueError(f"{self.task} has no range of start states that can be widened; set initial_shift=0")


class RenderingUnavailable(RuntimeError):  # noqa: N818 - it names a state of the machine, not a mistake
    """No OpenGL backend works here; the message names what to install."""


def load_mujoco() -> ModuleType:
    """Import mujoco, which loads the OpenGL backend that MUJOCO_GL asks for.

    Raises:
        RenderingUnavailable: MUJOCO_GL asks for a backend whose libraries are missing.
    """
    try:
        import mujoco
    except AttributeError as error:  # what PyOpenGL raises where a shared library is missing
        raise RenderingUnavailable(rendering_help()) from error
    return mujoco


def rendering_help() -> str:
    """Say which backend was tried and what to install, for an error message."""
    return (
        f"MuJoCo cannot render here with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')!r}. On a machine without a display "
        "run `apt-get install --no-install-recommends libegl1 libgl1` for MUJOCO_GL=egl, or "
        "`apt-get install --no-install-recommends libosmesa6` for MUJOCO_GL=osmesa; one that is installed is chosen by "
        "itself if envs is imported before mujoco. To simulate without rendering set MUJOCO_GL=disable."
    )


def choose_gl_backend() -> None:
    """Set MUJOCO_GL, which MuJoCo reads when it is first imported, for a Linux machine without a display.

    Unset it means a window system, and there is none: the choice is EGL, else OSMesa, where their libraries are
    installed. A value that the user has set stands.
    """
    if os.environ.get("MUJOCO_GL") or _has_window_system() or "mujoco" in sys.modules:
        return
    if ctypes.util.find_library("EGL") and ctypes.util.find_library("GL"):
        os.environ["MUJOCO_GL"] = "egl"
    elif ctypes.util.find_library("OSMesa"):
        os.environ["MUJOCO_GL"] = "osmesa"


def check_rendering() -> None:
    """Fail early where MuJoCo's renderer would fail halfway and print more errors when it is deleted.

    Raises:
        RenderingUnavailable: there is no OpenGL context, or only one that needs a display.
    """
    context = getattr(load_mujoco(), "GLContext", None)
    if context is None or (context.__module__ == "mujoco.glfw" and not _has_window_system()):
        raise RenderingUnavailable(rendering_help())


def _has_window_system() -> bool:
    return sys.platform != "linux" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
