"""Pictures of a MuJoCo scene, from our own GL context. Knows nothing of tasks or robots.

robosuite's renderer never makes its context current, so that two environments in one process spoil
each other's pictures; this one does so before every frame.

    >>> camera = Camera(model, data, LOOKS["stock"])  # doctest: +SKIP
    >>> camera.image("agentview", 224)  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import mujoco
import numpy as np

from vla_prune.errors import MissingError

from . import gl


@dataclass(frozen=True)
class Look:
    """How a frame is drawn.

    Attributes:
        reflections: draw mirrored images in reflective surfaces (the stove top), a second pass.
        shadows: draw shadows of lights that cast them.
        samples: anti-aliasing samples a pixel; 0 is none, None the model's own (4).
        cull: leave out geoms that lie wholly outside the view. Changes no pixel without shadows.
    """

    reflections: bool = True
    shadows: bool = True
    samples: int | None = None
    cull: bool = False


LOOKS = {
    "stock": Look(),
    "fast": Look(reflections=False, shadows=False, samples=0, cull=True),
}


class Camera:
    """Renders named cameras of one model. Call `close` when done."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, look: Look) -> None:
        self.model, self.data, self.look = model, data, look
        self._size = (640, 480)
        self._gl = gl_context(*self._size)
        self._gl.make_current()
        stock_samples = model.vis.quality.offsamples
        if look.samples is not None:
            model.vis.quality.offsamples = look.samples
        self._con = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        model.vis.quality.offsamples = stock_samples
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._con)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = int(look.reflections)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = int(look.shadows)
        self._option = mujoco.MjvOption()
        # Group 0 holds collision shapes, group 1 what is meant to be seen.
        self._option.geomgroup[0] = 0
        self._option.geomgroup[1] = 1
        self._pert = mujoco.MjvPerturb()
        self._view = mujoco.MjvCamera()
        self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._group = model.geom_group.copy()

    def image(self, name: str, size: int) -> np.ndarray:
        """One frame of a camera as GL gives it, bottom row first: ``[size, size, 3]`` uint8."""
        self._gl.make_current()
        self._view.fixedcamid = self.model.camera(name).id
        if self.look.cull:
            self.model.geom_group[~self._in_view(self._view.fixedcamid)] = 5
        mujoco.mjv_updateScene(
            self.model,
            self.data,
            self._option,
            self._pert,
            self._view,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        if self.look.cull:
            self.model.geom_group[:] = self._group
        rect = mujoco.MjrRect(0, 0, size, size)
        mujoco.mjr_render(rect, self._scene, self._con)
        pixels = np.empty((size, size, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, rect, self._con)
        return pixels

    def _in_view(self, camera: int) -> np.ndarray:
        """Which geoms' bounding spheres touch the view cone of a camera: ``[G]`` bool."""
        rel = self.data.geom_xpos - self.data.cam_xpos[camera]
        rel = rel @ self.data.cam_xmat[camera].reshape(3, 3)
        half = np.tan(np.radians(self.model.cam_fovy[camera]) / 2)
        radius = self.model.geom_rbound
        depth, slope = -rel[:, 2], np.hypot(1.0, half)
        inside = depth > -radius
        for axis in (0, 1):
            inside &= (np.abs(rel[:, axis]) - half * depth) / slope < radius
        # Planes have no bounding radius.
        return inside | (radius == 0)

    def close(self) -> None:
        """Free the GL objects."""
        if self._gl is not None:
            self._gl.make_current()
            self._con.free()
            self._gl.free()
            self._gl = None


def gl_context(width: int, height: int):
    """A context of the back end that MUJOCO_GL names.

    `mujoco.GLContext` is fixed when mujoco is first imported, which may be before anybody chose.
    """
    name = gl.ensure()
    try:
        module = importlib.import_module(f"mujoco.{name}")
        return module.GLContext(width, height)
    except (ImportError, RuntimeError) as error:
        raise MissingError(
            f"{gl.VARIABLE}={name} gives no off-screen context ({error}); try"
            f" {' or '.join(other for other in gl.LIBRARIES if other != name)}."
        ) from error


def project(
    model: mujoco.MjModel, data: mujoco.MjData, camera: str, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """World points to normalised picture coordinates of an upright picture.

    Args:
        model: the model.
        data: its state.
        camera: camera name; the picture is square.
        points: ``[N, 3]`` metres.

    Returns:
        ``[N, 2]`` (u rightward, v downward, both 0 to 1 inside) and ``[N]`` depth in metres.
    """
    cam = model.camera(camera).id
    rel = (points - data.cam_xpos[cam]) @ data.cam_xmat[cam].reshape(3, 3)
    depth = -rel[:, 2]
    scale = 2 * np.tan(np.radians(model.cam_fovy[cam]) / 2) * np.maximum(depth, 1e-6)
    uv = np.stack([0.5 + rel[:, 0] / scale, 0.5 - rel[:, 1] / scale], axis=1)
    return uv, depth
