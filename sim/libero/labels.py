"""Privileged labels of a picture: what each patch shows, and where target and goal are in it.

Rays against the collision shapes, so that things in front hide things behind; a segmentation
picture would cost as much as a second frame. Knows no file format.

    >>> patches(scene, "akita_black_bowl_1", "plate_1", "agentview")  # doctest: +SKIP
"""

from __future__ import annotations

import mujoco
import numpy as np

from .camera import project
from .scene import Scene

PATCHES = 12
RAYS = 3  # a patch and side
COLLISION, DRAWN = 0, 1  # groups of geoms
BACKGROUND, TARGET, GOAL, ROBOT, OTHER = range(5)


def patches(scene: Scene, target: str, goal: str, camera: str) -> np.ndarray:
    """What each of 12 x 12 patches of an upright picture shows, ``[12, 12]`` uint8.

    0 background, 1 target, 2 goal (plate or basket), 3 robot, 4 another movable object. The first
    of target, goal, other, robot that two of a patch's nine rays hit.
    """
    hit = shown_geoms(scene, camera, PATCHES * RAYS, COLLISION)
    table = np.full(scene.model.ngeom + 1, BACKGROUND, np.uint8)
    for name, kind in [(n, OTHER) for n in scene.objects] + [
        ("robot", ROBOT),
        (goal, GOAL),
        (target, TARGET),
    ]:
        table[:-1][scene.geom_owner == name] = kind
    kinds = table[hit].reshape(PATCHES, RAYS, PATCHES, RAYS).transpose(0, 2, 1, 3)
    kinds = kinds.reshape(PATCHES, PATCHES, RAYS * RAYS)
    result = np.full((PATCHES, PATCHES), BACKGROUND, np.uint8)
    for kind in (ROBOT, OTHER, GOAL, TARGET):
        result[(kinds == kind).sum(-1) >= 2] = kind
    return result


def shown_geoms(scene: Scene, camera: str, side: int, group: int) -> np.ndarray:
    """The geom behind each pixel of an upright picture, ``[side, side]`` int32; -1 for none.

    One `mj_ray` a pixel: `mj_multiRay` of MuJoCo 3.8 passes through the hand and the fingers where
    the camera is near them.

    Args:
        scene: at this instant.
        camera: its name in the model.
        side: of the picture, pixels.
        group: of the geoms that stop a ray, ``COLLISION`` or ``DRAWN``.
    """
    model, data = scene.model, scene.data
    cam = model.camera(camera).id
    grid = (np.arange(side) + 0.5) / side
    half = np.tan(np.radians(model.cam_fovy[cam]) / 2)
    u, v = np.meshgrid(grid, grid)
    rays = np.stack([(2 * u - 1) * half, (1 - 2 * v) * half, -np.ones_like(u)], axis=-1)
    rays = rays.reshape(-1, 3) @ data.cam_xmat[cam].reshape(3, 3).T
    eye = data.cam_xpos[cam].copy()
    groups = (np.arange(6) == group).astype(np.uint8)
    geom, hit = np.empty(1, np.int32), np.empty(len(rays), np.int32)
    for i, ray in enumerate(rays):
        mujoco.mj_ray(model, data, eye, ray, groups, 1, -1, geom)
        hit[i] = geom[0]
    return hit.reshape(side, side)


def pixel(scene: Scene, point: np.ndarray, camera: str) -> tuple[np.ndarray, bool]:
    """Where a point ``[3]`` is in an upright picture, ``[2]`` from 0 to 1, and whether inside."""
    uv, depth = project(scene.model, scene.data, camera, point[None])
    inside = depth[0] > 0 and bool(np.all((uv[0] >= 0) & (uv[0] < 1)))
    return uv[0], inside
