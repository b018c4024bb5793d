"""Logged pictures, moved to where the ego is now: the second source of observations.

The logged picture taken nearest to the ego is turned and shifted by its depth (`lift`); what
falls beside it comes from the neighbouring cameras. The others cannot be moved within pixels:
they are where they were when that picture was taken, so they must follow the log, and an ego that
is late sees them late. `envelope` says how far from the log this holds.

    >>> reprojector = Reprojector(scene, channels=["CAM_FRONT"])  # doctest: +SKIP
    >>> views = reprojector.render(pose, agents, present, step=12)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from vla_prune_sim.drive.envelope import nearest
from vla_prune_sim.drive.geometry import to_local, to_world, wrap
from vla_prune_sim.drive.lift import Eye, bridge, follow, splat
from vla_prune_sim.drive.load_nuscenes import read_image
from vla_prune_sim.drive.scene import CAMERAS, STEP_S, Scene, Shots

from vla_prune.errors import ConfigError, ShapeError, did_you_mean

KEPT = 64  # pictures with their depth, of 0.6 MB each at 400 x 224
LIDAR_POINTS = 1000  # fewer are the stub of a synthetic root
LIDAR_S, OWN_M = 0.1, 2.5  # an older reading is not used, nor what the ego's own roof reflects


@dataclass(frozen=True)
class _Shot:
    """A logged picture at the size of the views, and how deep it is."""

    picture: np.ndarray  # [H, W, 3] uint8 RGB
    inverse: np.ndarray  # [H, W] float32, 1/m
    pose: np.ndarray  # [3] of the rear axle


class Reprojector:
    """Shows one scene from near where it was logged; called like `Renderer`.

    Args:
        scene: with `Scene.shots`.
        size: width and height of a view, pixels.
        channels: cameras to show, all of the scene's where not given.
    """

    def __init__(
        self,
        scene: Scene,
        size: tuple[int, int] = (400, 224),
        channels: Iterable[str] | None = None,
    ) -> None:
        self.scene = scene
        known = [name for name in CAMERAS if name in scene.cameras and name in scene.shots]
        if not known:
            raise ConfigError(
                f"Reprojector: {scene.name} has no logged pictures; open a nuScenes root, or "
                "choose observation 'synthetic'."
            )
        self.channels = known if channels is None else list(channels)
        for name in self.channels:
            if name not in known:
                raise did_you_mean(f"Reprojector of {scene.name}", "camera", name, known)
        for camera in scene.cameras.values():
            rows = round(camera.height * size[0] / camera.width)
            if min(size) < 8 or size[1] > rows:
                raise ConfigError(
                    f"Reprojector: size is {size}; a view {size[0]} wide has 8 to {rows} rows, as "
                    f"{camera.name} is {camera.width} x {camera.height}."
                )
        self.eyes = {name: Eye(scene.cameras[name].scaled(*size)) for name in known}
        self._shot = lru_cache(KEPT)(self._read)
        self._points = lru_cache(4)(self._read_points)

    def render(
        self,
        ego_pose: np.ndarray,
        agents_pose: np.ndarray,
        present: np.ndarray,
        step: float | None = None,
    ) -> dict[str, np.ndarray]:
        """The picture of each camera, ``[H, W, 3]`` uint8 RGB.

        Args:
            ego_pose: ``[3]`` of the rear axle.
            agents_pose: not looked at: the others are in the pixels.
            present: likewise.
            step: of the log; chooses among pictures of one place, as where the log stands still.
        """
        ego_pose = np.asarray(ego_pose, float)
        if ego_pose.shape != (3,) or not np.isfinite(ego_pose).all():
            raise ShapeError(
                f"Reprojector.render: ego_pose is {ego_pose}; it needs x, y and heading, finite."
            )
        now_s = None if step is None else step * STEP_S
        return {name: self._move(name, ego_pose, now_s) for name in self.channels}

    def _move(self, name: str, ego: np.ndarray, now_s: float | None) -> np.ndarray:
        eye, shot = self.eyes[name], self._nearest(name, ego, now_s)
        u, v, inverse = follow(bridge(eye, shot.pose, eye, ego), eye.u, eye.v, shot.inverse)
        inverse = splat(u, v, inverse)
        inverse = np.where(inverse > 0, inverse, eye.flat)
        u, v, _ = follow(bridge(eye, ego, eye, shot.pose), eye.u, eye.v, inverse)
        view = cv2.remap(shot.picture, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        width = eye.camera.width
        rows, columns = np.nonzero((u < -0.5) | (u > width - 0.5))
        for other in self._beside(name):
            if not len(rows):
                break
            there, theirs = self.eyes[other], self._nearest(other, ego, now_s)
            matrix = bridge(eye, ego, there, theirs.pose)
            u, v, _ = follow(matrix, columns, rows, inverse[rows, columns])
            u, v = np.rint(u).astype(int), np.rint(v).astype(int)
            height, width = theirs.inverse.shape
            seen = (u >= 0) & (u < width) & (v >= 0) & (v < height)
            view[rows[seen], columns[seen]] = theirs.picture[v[seen], u[seen]]
            rows, columns = rows[~seen], columns[~seen]
        return view

    def _nearest(self, name: str, ego: np.ndarray, now_s: float | None) -> _Shot:
        shots = self.scene.shots[name]
        return self._shot(name, nearest(shots.pose, shots.time_s, ego, now_s))

    def _beside(self, name: str) -> list[str]:
        """The two cameras that look most nearly the same way."""
        yaw = {
            key: np.arctan2(eye.camera.rotation[1, 2], eye.camera.rotation[0, 2])
            for key, eye in self.eyes.items()
        }
        return sorted(yaw.keys() - {name}, key=lambda key: abs(wrap(yaw[key] - yaw[name])))[:2]

    def _read(self, name: str, index: int) -> _Shot:
        shots, eye, camera = self.scene.shots[name], self.eyes[name], self.scene.cameras[name]
        file, pose, time_s = shots.files[index], shots.pose[index], shots.time_s[index]
        picture = read_image(file)
        if picture.shape[:2] != (camera.height, camera.width):
            raise ShapeError(
                f"{file} is {picture.shape[1]} x {picture.shape[0]} pixels, and its camera "
                f"{camera.width} x {camera.height}; get it again."
            )
        width, height = eye.camera.width, eye.camera.height
        if width != camera.width:
            rows = round(camera.height * width / camera.width)
            picture = cv2.resize(picture, (width, rows), interpolation=cv2.INTER_AREA)
        inverse = eye.flat.copy()
        if (points := self._near_points(time_s)) is not None:
            eye.points(inverse, _in_frame(points, pose))
        tracks = self.scene.tracks
        step = int(np.clip(round(time_s / STEP_S), 0, self.scene.steps - 1))
        here = tracks.valid[:, step]
        others = tracks.pose[here, step]
        placed = np.column_stack([to_local(others[:, :2], pose), wrap(others[:, 2] - pose[2])])
        eye.boxes(inverse, placed, tracks.size[here], tracks.z[here])
        return _Shot(np.ascontiguousarray(picture[:height]), inverse, pose)

    def _near_points(self, time_s: float) -> np.ndarray | None:
        """Points ``[P, 3]`` of the LiDAR at that time, x and y in the world; None without any."""
        shots = self.scene.shots.get("LIDAR_TOP")
        if shots is None or not len(shots.time_s):
            return None
        index = int(np.abs(shots.time_s - time_s).argmin())
        if abs(shots.time_s[index] - time_s) > LIDAR_S:
            return None
        return self._points(index)

    def _read_points(self, index: int) -> np.ndarray | None:
        shots: Shots = self.scene.shots["LIDAR_TOP"]
        file = shots.files[index]
        if not file.is_file():
            return None
        values = np.fromfile(file, "<f4")
        if len(values) % 5:
            raise ShapeError(f"{file} is no whole reading; get it again, or remove it.")
        points = values.reshape(-1, 5)[:, :3]
        points = points[np.isfinite(points).all(1) & (np.hypot(*points[:, :2].T) > OWN_M)]
        if len(points) < LIDAR_POINTS:
            return None
        points = points @ shots.mount[:3, :3].T + shots.mount[:3, 3]
        return np.column_stack([to_world(points[:, :2], shots.pose[index]), points[:, 2]])


def _in_frame(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Points ``[P, 3]`` with x and y in the world, in the frame of an ego's pose ``[3]``."""
    return np.column_stack([to_local(points[:, :2], pose), points[:, 2]])
