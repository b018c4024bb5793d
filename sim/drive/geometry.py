"""Plane geometry that every file of this room shares: poses, boxes, polylines. Knows nothing else.

A pose is ``[..., 3]``: x and y in metres, heading in radians, counter-clockwise from x.
"""

from __future__ import annotations

import numpy as np


def wrap(angle: np.ndarray | float) -> np.ndarray:
    """The same angle in [-pi, pi)."""
    return (np.asarray(angle) + np.pi) % (2 * np.pi) - np.pi


def to_world(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Points ``[..., P, 2]`` given in the frame of ``pose`` ``[..., 3]``, in the world."""
    cos, sin = np.cos(pose[..., 2, None]), np.sin(pose[..., 2, None])
    x, y = points[..., 0], points[..., 1]
    return np.stack(
        [pose[..., 0, None] + cos * x - sin * y, pose[..., 1, None] + sin * x + cos * y], axis=-1
    )


def to_local(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """World points ``[..., P, 2]`` in the frame of ``pose`` ``[..., 3]``."""
    cos, sin = np.cos(pose[..., 2, None]), np.sin(pose[..., 2, None])
    x, y = points[..., 0] - pose[..., 0, None], points[..., 1] - pose[..., 1, None]
    return np.stack([cos * x + sin * y, -sin * x + cos * y], axis=-1)


def corners(pose: np.ndarray, length: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Corners ``[..., 4, 2]`` of boxes centred at ``pose`` ``[..., 3]``, counter-clockwise.

    Front left, rear left, rear right, front right.
    """
    half = np.array([[0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5], [0.5, -0.5]])
    size = np.stack(np.broadcast_arrays(length, width), axis=-1)
    return to_world(half * size[..., None, :], pose)


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether convex boxes overlap: corners ``[..., 4, 2]`` each, broadcast; separating axes."""
    apart = np.zeros(np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), bool)
    for box in (a, b):
        for edge in (box[..., 0, :] - box[..., 1, :], box[..., 1, :] - box[..., 2, :]):
            pa, pb = ((box_ * edge[..., None, :]).sum(-1) for box_ in (a, b))
            apart |= (pa.max(-1) < pb.min(-1)) | (pb.max(-1) < pa.min(-1))
    return ~apart


class Polyline:
    """A path by arc length.

    Args:
        points: ``[P, 2]`` metres, at least two that differ.

    Attributes:
        points: without repeated ones.
        at: ``[P]`` arc length of each, metres.
        length: of the whole.
    """

    def __init__(self, points: np.ndarray) -> None:
        points = np.asarray(points, float)[:, :2]
        step = np.linalg.norm(np.diff(points, axis=0), axis=1)
        keep = np.concatenate([[True], step > 1e-6])
        self.points = points[keep]
        if len(self.points) < 2:
            raise ValueError("a polyline needs two points that differ.")
        delta = np.diff(self.points, axis=0)
        self._step = np.linalg.norm(delta, axis=1)
        self._direction = delta / self._step[:, None]
        self.at = np.concatenate([[0.0], np.cumsum(self._step)])
        self.length = float(self.at[-1])

    def pose(self, s: np.ndarray | float) -> np.ndarray:
        """Pose ``[..., 3]`` at arc length ``s``; straight on beyond the ends."""
        s = np.asarray(s, float)
        i = np.clip(np.searchsorted(self.at, s, side="right") - 1, 0, len(self._step) - 1)
        xy = self.points[i] + self._direction[i] * (s - self.at[i])[..., None]
        heading = np.arctan2(self._direction[i, 1], self._direction[i, 0])
        return np.concatenate([xy, heading[..., None]], axis=-1)

    def project(self, xy: np.ndarray, near: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Arc length and left offset of points ``[..., 2]``; both ``[...]``.

        Args:
            xy: the points.
            near: look only within 30 m of this arc length, for paths that cross themselves.
        """
        xy = np.asarray(xy, float)
        low, high = 0, len(self._step)
        if near is not None:
            # At least one segment, also for places beyond the ends.
            low = min(max(0, int(np.searchsorted(self.at, near - 30.0)) - 1), high - 1)
            high = min(max(low + 1, int(np.searchsorted(self.at, near + 30.0))), high)
        start, way, step = (v[low:high] for v in (self.points, self._direction, self._step))
        away = xy[..., None, :] - start  # [..., P, 2]
        along = (away * way).sum(-1)
        inside = np.clip(along, 0.0, step)
        gap = np.linalg.norm(away - inside[..., None] * way, axis=-1)
        best = gap.argmin(-1)
        pick = lambda v: np.take_along_axis(v, best[..., None], -1)[..., 0]  # noqa: E731
        # Beyond the path's ends the first and last segment go on straight.
        free, straight = pick(inside), pick(along)
        if low == 0:
            free = np.where(best == 0, np.minimum(straight, step[0]), free)
        if high == len(self._step):
            free = np.where(best == len(step) - 1, np.maximum(straight, free), free)
        cross = way[best, 0] * pick(away[..., 1]) - way[best, 1] * pick(away[..., 0])
        return self.at[low:high][best] + free, cross

    def curvature(self, s: np.ndarray | float, span: float = 4.0) -> np.ndarray:
        """Mean curvature around ``s``, 1/m, left positive."""
        s = np.asarray(s, float)
        before, after = self.pose(s - span / 2)[..., 2], self.pose(s + span / 2)[..., 2]
        return wrap(after - before) / span
