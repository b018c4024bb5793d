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
BACKGROUND, TARGET, GOAL, ROBOT, OTHER = range(5)


def patches(scene: Scene, target: str, goal: str, camera: str) -> np.ndarray:
    """What each of 12 x 12 patches of an upright picture shows, ``[12, 12]`` uint8.

    0 background, 1 target, 2 goal (plate or basket), 3 robot, 4 another movable object. The first
    of target, goal, other, robot that two of a patch's nine rays hit.
    """
    model, data = scene.model, scene.data
    side = PATCHES * RAYS
    grid = (np.arange(side) + 0.5) / side
    half = np.tan(np.radians(model.cam_fovy[model.camera(camera).id]) / 2)
    u, v = np.meshgrid(grid, grid)
    rays = np.stack([(2 * u - 1) * half, (1 - 2 * v) * half, -np.ones_like(u)], axis=-1)
    cam = model.camera(camera).id
    rays = (rays.reshape(-1, 3) @ data.cam_xmat[cam].reshape(3, 3).T).ravel()
    count = side * side
    hit, away = np.full(count, -1, np.int32), np.empty(count)
    # Group 0 holds the collision shapes.
    group = np.array([1, 0, 0, 0, 0, 0], np.uint8)
    eye = data.cam_xpos[cam].copy()
    mujoco.mj_multiRay(model, data, eye, rays, group, 1, -1, hit, away, None, count, 10.0)
    _hand_too(scene, eye, rays.reshape(-1, 3), hit, away)
    table = np.full(model.ngeom + 1, BACKGROUND, np.uint8)
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


def _hand_too(
    scene: Scene, eye: np.ndarray, rays: np.ndarray, hit: np.ndarray, away: np.ndarray
) -> None:
    """Add the hits on the gripper's palm, which `mj_multiRay` of MuJoCo 3.8 passes through."""
    model, data = scene.model, scene.data
    palm = model.geom("gripper0_hand_collision").id
    to = data.geom_xpos[palm] - eye
    # Distance of the palm's centre from each ray; only rays through its bounding sphere count.
    length = np.linalg.norm(rays, axis=1)
    along = rays @ to / length
    off = np.sqrt(np.maximum(to @ to - along**2, 0.0))
    for i in np.flatnonzero(off < model.geom_rbound[palm]):
        reach = mujoco.mj_rayMesh(model, data, palm, eye, rays[i])
        if reach >= 0 and (hit[i] < 0 or reach < away[i]):
            hit[i], away[i] = palm, reach


def pixel(scene: Scene, point: np.ndarray, camera: str) -> tuple[np.ndarray, bool]:
    """Where a point ``[3]`` is in an upright picture, ``[2]`` from 0 to 1, and whether inside."""
    uv, depth = project(scene.model, scene.data, camera, point[None])
    inside = depth[0] > 0 and bool(np.all((uv[0] >= 0) & (uv[0] < 1)))
    return uv[0], inside
