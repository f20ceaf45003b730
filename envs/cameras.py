"""Pictures of a MuJoCo world, with settings that a software renderer can afford."""

from __future__ import annotations

import weakref
from types import ModuleType
from typing import Any

import numpy as np

from .mujoco import RenderingUnavailable, check_rendering, rendering_help

LARGEST = 480  # pixels, of a picture's side; models set a frame buffer of 480 rows


class Cameras:
    """Renders the cameras of a MuJoCo model, without shadows and reflections.

    The 4,096-pixel shadow map is nine tenths of a software renderer's cost: 12 pictures a second with it, 100 without.
    The OpenGL context is made at the first picture, so that a world which nobody looks at needs no renderer.

    Args:
        mujoco: the module, loaded by `load_mujoco`.
        model: mujoco.MjModel.
        data: mujoco.MjData, whose present state is drawn.
        height: pixels.
        width: pixels.
        fast: draw the convex hulls of meshes and no sky, without smoothed edges: for a policy to look at, at two to
            six times the speed.
    """

    def __init__(self, mujoco: ModuleType, model: Any, data: Any, height: int, width: int, fast: bool = False):
        self._mujoco, self._model, self._data = mujoco, model, data
        self._size, self._fast = (height, width), fast
        self._renderer: Any = None
        self._options: Any = None

    def picture(self, camera: str) -> np.ndarray:
        """What the camera sees, uint8 (height, width, 3), upright also where the camera hangs upside down.

        Raises:
            RenderingUnavailable: no OpenGL backend works here.
        """
        renderer = self._renderer or self._open()
        renderer.update_scene(self._data, camera, self._options)
        picture = renderer.render()
        upside_down = self._data.camera(camera).xmat[7] < -0.1  # the camera's y axis points up in the picture
        return np.ascontiguousarray(picture[::-1, ::-1]) if upside_down else picture.copy()

    def close(self) -> None:
        """Frees the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _open(self) -> Any:
        check_rendering()
        quality = self._model.vis.quality
        samples = quality.offsamples
        quality.offsamples = 0 if self._fast else samples
        try:
            renderer = self._mujoco.Renderer(self._model, *self._size)
        # What a missing library raises depends on the backend: AttributeError, ImportError, RuntimeError, GLError ...
        except Exception as error:
            raise RenderingUnavailable(rendering_help()) from error
        finally:
            quality.offsamples = samples
        for flag in ("mjRND_SHADOW", "mjRND_REFLECTION", *(["mjRND_SKYBOX"] if self._fast else [])):
            renderer.scene.flags[getattr(self._mujoco.mjtRndFlag, flag)] = 0
        self._options = self._mujoco.MjvOption()
        self._options.flags[self._mujoco.mjtVisFlag.mjVIS_CONVEXHULL] = self._fast
        # Not left to the interpreter's exit, where EGL is gone before the renderer and a traceback is printed.
        weakref.finalize(self, renderer.close)
        self._renderer = renderer
        return renderer
