"""How deep a logged picture is, and where its pixels go when the camera moves.

Depth is kept as its inverse, 1/m: it is linear on planes and zero at infinity. It comes from flat
ground, a wall far away above the horizon, the boxes of the others, and a LiDAR where there is one.

    >>> eye = Eye(camera)  # doctest: +SKIP
    >>> u, v, inverse = follow(bridge(eye, pose, eye, other), eye.u, eye.v, eye.flat)
    ... # doctest: +SKIP
"""

from __future__ import annotations

import cv2
import numpy as np
from vla_prune_sim.drive.geometry import corners, to_local
from vla_prune_sim.drive.ground import sight_lines
from vla_prune_sim.drive.scene import Camera

FAR_M, BOXES_M, NEAR_M = 60.0, 80.0, 0.3
REACH = 0.03  # of the picture's width: how far the LiDAR's word carries


class Eye:
    """A camera: what of it does not change.

    Attributes:
        camera: the camera.
        u: ``[1, W]`` float32 column of each pixel; ``v`` ``[H, 1]`` its row.
        rays: ``[H, W, 3]`` float32 where it looks in the ego's frame, one metre deep.
        flat: ``[H, W]`` float32 inverse depth of an empty world.
    """

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        self.u = np.arange(camera.width, dtype=np.float32)[None]
        self.v = np.arange(camera.height, dtype=np.float32)[:, None]
        self.rays = sight_lines(camera).astype(np.float32)
        self.flat = np.maximum(-self.rays[..., 2] / camera.translation[2], 1 / FAR_M)
        self.flat = self.flat.astype(np.float32)

    def boxes(
        self, inverse: np.ndarray, pose: np.ndarray, size: np.ndarray, z: np.ndarray
    ) -> None:
        """Put boxes into an inverse depth.

        Args:
            inverse: ``[H, W]``; changed in place.
            pose: ``[N, 3]`` centres and headings in the ego's frame.
            size: ``[N, 3]`` length, width, height.
            z: ``[N]`` height of the centres.
        """
        for i in np.flatnonzero(np.hypot(*pose[:, :2].T) < BOXES_M):
            half = size[i] / 2
            ring = corners(pose[i], size[i, 0], size[i, 1])
            levels = np.repeat([z[i] - half[2], z[i] + half[2]], 4)
            window = self._window(np.column_stack([np.tile(ring, (2, 1)), levels]))
            if window is None:
                continue
            cos, sin = np.cos(pose[i, 2]), np.sin(pose[i, 2])
            turn = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]], np.float32)
            start = turn @ (self.camera.translation - np.array([*pose[i, :2], z[i]]))
            rays = self.rays[window] @ turn.T
            rays = np.where(np.abs(rays) < 1e-6, np.float32(1e-6), rays)
            # Where a ray passes the three pairs of planes; inside from `enter` to `leave`.
            planes = np.stack([(-half - start) / rays, (half - start) / rays])
            enter, leave = planes.min(0).max(-1), planes.max(0).min(-1)
            hit = (enter < leave) & (enter > NEAR_M)
            near = np.where(hit, 1 / np.maximum(enter, NEAR_M), 0)
            np.maximum(inverse[window], near, out=inverse[window], casting="same_kind")

    def points(self, inverse: np.ndarray, points: np.ndarray) -> None:
        """Let points ``[P, 3]`` in the ego's frame correct an inverse depth in place.

        Each pixel near one takes over by how much the nearest point is off what was there, so that
        ground stays smooth between the LiDAR's rings.
        """
        spots = (points - self.camera.translation) @ self.to_pixels.T
        spots = spots[spots[:, 2] > 1.0]
        u, v = np.rint(spots[:, :2] / spots[:, 2:]).astype(int).T
        height, width = inverse.shape
        inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
        if not inside.any():
            return
        seen = np.zeros_like(inverse)
        np.maximum.at(seen, (v[inside], u[inside]), (1 / spots[inside, 2]).astype(np.float32))
        away, label = cv2.distanceTransformWithLabels(
            (seen == 0).astype(np.uint8), cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
        )
        known = seen > 0
        off = np.zeros(int(label.max()) + 1, np.float32)
        off[label[known]] = (seen - inverse)[known]
        off = np.where(away <= REACH * width, off[label], np.float32(0))
        np.maximum(inverse + cv2.medianBlur(off, 5), 1 / 1000.0, out=inverse, casting="same_kind")

    @property
    def to_pixels(self) -> np.ndarray:
        """``[3, 3]`` from directions in the ego's frame to homogeneous pixels."""
        return self.camera.intrinsic @ self.camera.rotation.T

    def _window(self, box: np.ndarray) -> tuple[slice, slice] | None:
        """The part of the picture that may show corners ``[8, 3]``; None where there is none."""
        spots = (box - self.camera.translation) @ self.to_pixels.T
        if (spots[:, 2] < NEAR_M).all():
            return None
        if (spots[:, 2] < NEAR_M).any():
            return slice(None), slice(None)
        flat = spots[:, :2] / spots[:, 2:]
        size = (self.camera.width, self.camera.height)
        (u0, v0), (u1, v1) = (
            np.clip(edge, 0, size).astype(int)
            for edge in (np.floor(flat.min(0)), np.ceil(flat.max(0)) + 1)
        )
        return (slice(v0, v1), slice(u0, u1)) if u1 > u0 and v1 > v0 else None


def bridge(a: Eye, pose_a: np.ndarray, b: Eye, pose_b: np.ndarray) -> np.ndarray:
    """``[3, 4]`` from ``(u, v, 1, inverse depth)`` in ``a`` to homogeneous pixels in ``b``.

    The first three columns turn (a homography, right at any depth), the last one shifts by depth.

    Args:
        a: the camera that saw.
        pose_a: ``[3]`` of the ego then.
        b: the camera that shall see.
        pose_b: ``[3]`` of the ego then.
    """
    angle = pose_a[2] - pose_b[2]
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    way = np.append(to_local(pose_a[None, :2], pose_b)[0], 0.0)
    shift = b.to_pixels @ (turn @ a.camera.translation + way - b.camera.translation)
    homography = b.to_pixels @ turn @ np.linalg.inv(a.to_pixels)
    return np.column_stack([homography, shift]).astype(np.float32)


def follow(
    matrix: np.ndarray, u: np.ndarray, v: np.ndarray, inverse: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Column, row and inverse depth over there; that is 0 for what is behind the camera.

    Args:
        matrix: of `bridge`.
        u: columns, ``v`` rows, that broadcast to the shape of ``inverse``.
        v: rows.
        inverse: 1/m.
    """
    x, y, depth = (row[0] * u + row[1] * v + row[2] + row[3] * inverse for row in matrix)
    ahead = depth > 1e-3
    depth = np.where(ahead, depth, np.float32(1))
    outside = np.float32(-1e4)
    return np.where(ahead, x / depth, outside), y / depth, np.where(ahead, inverse / depth, 0)


def splat(u: np.ndarray, v: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """The nearest inverse depth that falls on each pixel, ``[H, W]``; 0 where none does.

    Args:
        u: ``[H, W]`` columns.
        v: ``[H, W]`` rows.
        inverse: ``[H, W]``; what is 0 is left out.
    """
    height, width = inverse.shape
    column, row = np.rint(u), np.rint(v)
    fits = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (inverse > 0)
    found = np.zeros(height * width, np.float32)
    np.maximum.at(found, (row[fits] * width + column[fits]).astype(np.int64), inverse[fits])
    # Where the picture was stretched, the gaps of a pixel are closed.
    return cv2.morphologyEx(
        found.reshape(height, width), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)
    )
