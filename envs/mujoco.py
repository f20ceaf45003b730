"""MuJoCo for the worlds that need it: its physics, and an OpenGL backend that works here."""

from __future__ import annotations

import ctypes.util
import os
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Physics:
    """MuJoCo's side of a world, for what disturbs it from outside (envs/perturb.py)."""

    model: Any  # mujoco.MjModel
    data: Any  # mujoco.MjData
    body: int  # the body that matters most: the object to be handled, or the robot where there is none


class RenderingUnavailable(RuntimeError):  # noqa: N818 - it names a state of the machine, not a mistake
    """No OpenGL backend works here; the message names what to install."""


def load_mujoco() -> ModuleType:
    """Import mujoco, which loads the OpenGL backend that MUJOCO_GL asks for, or that `choose_gl_backend` finds.

    Raises:
        RenderingUnavailable: MUJOCO_GL asks for a backend whose libraries are missing.
    """
    choose_gl_backend()
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
        "itself unless something imported mujoco before. To simulate without rendering set MUJOCO_GL=disable."
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
