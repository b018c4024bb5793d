"""The six cameras of a nuScenes car, for worlds that bring no calibration of their own.

Typical values of the calibration that the nuScenes tables give for their cars (Caesar et al. 2020,
arXiv 1903.11027), from which each real car differs by a centimetre or a degree. Where we differ:
all cameras are level. Lens distortion is left out, as nuScenes pictures are already rectified.

    >>> cameras = nuscenes_cameras()
    >>> list(cameras)[0], round(cameras["CAM_FRONT"].intrinsic[0, 0])
    ('CAM_FRONT', 1266)
"""

from __future__ import annotations

import numpy as np
from vla_prune_sim.drive.scene import CAMERAS, Camera

WIDTH, HEIGHT = 1600, 900
# Channel -> yaw in degrees (left positive), x, y, z in metres in the ego's frame, focal length and
# principal point in pixels.
MOUNTS = {
    "CAM_FRONT": (0.3, 1.701, 0.016, 1.511, 1266.4, 816.3, 491.5),
    "CAM_FRONT_RIGHT": (-56.4, 1.551, -0.493, 1.496, 1260.8, 807.9, 495.3),
    "CAM_FRONT_LEFT": (55.1, 1.524, 0.495, 1.509, 1272.6, 826.6, 479.8),
    "CAM_BACK": (180.1, 0.028, 0.003, 1.579, 796.9, 857.8, 476.9),
    "CAM_BACK_LEFT": (108.6, 1.036, 0.485, 1.591, 1256.7, 792.1, 492.8),
    "CAM_BACK_RIGHT": (-110.5, 1.015, -0.481, 1.562, 1259.5, 807.3, 501.2),
}


def nuscenes_cameras() -> dict[str, Camera]:
    """The six cameras by channel, 1600x900, all level; a fresh dict at each call."""
    return {name: _camera(name, *MOUNTS[name]) for name in CAMERAS}


def _camera(
    name: str, yaw_deg: float, x: float, y: float, z: float, focal: float, cx: float, cy: float
) -> Camera:
    yaw = np.deg2rad(yaw_deg)
    forward = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    return Camera(
        name=name,
        width=WIDTH,
        height=HEIGHT,
        intrinsic=np.array([[focal, 0.0, cx], [0.0, focal, cy], [0.0, 0.0, 1.0]]),
        rotation=np.stack([right, [0.0, 0.0, -1.0], forward], axis=1),
        translation=np.array([x, y, z]),
    )
