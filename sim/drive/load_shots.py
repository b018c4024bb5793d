"""Rows of a nuScenes root that belong to one sensor: what it took, when, and from where.

Sensors take turns, so a picture is up to 50 ms from the keyframe whose sample names it. `Shots`
keep the pose that the root gives for each picture itself. Knows the tables, not the scenes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from vla_prune_sim.drive.scene import CAMERAS, Shots

from vla_prune.errors import ShapeError

UNIT = 0.05  # a rotation's length may be off by that much


def load_shots(tables: Any, scene: str, sample: Mapping[str, Any]) -> dict[str, Shots]:
    """Each camera's pictures and the LiDAR's points, of which sweeps may be left out on disk.

    Args:
        tables: the devkit's NuScenes.
        scene: its name.
        sample: its first one.
    """
    shots = {}
    for channel in (*CAMERAS, "LIDAR_TOP"):
        rows, poses = readings(tables, scene, sample, channel)
        files = [Path(tables.dataroot) / row["filename"] for row in rows]
        here = [
            row["is_key_frame"] or file.is_file() for row, file in zip(rows, files, strict=True)
        ]
        mounted = tables.get("calibrated_sensor", rows[0]["calibrated_sensor_token"])
        stamps = np.array([row["timestamp"] for row in rows]) - sample["timestamp"]
        shots[channel] = Shots(
            files=tuple(file for file, is_here in zip(files, here, strict=True) if is_here),
            pose=poses[here],
            time_s=stamps[here] / 1e6,
            mount=mounting(channel, mounted),
        )
    return shots


def mounting(channel: str, sensor: Mapping[str, Any]) -> np.ndarray:
    """Where a sensor sits on the car, ``[4, 4]``; refuses what is no place or no rotation."""
    from pyquaternion import Quaternion

    rotation, place = (np.array(sensor[key], float) for key in ("rotation", "translation"))
    whole = rotation.shape == (4,) and abs(np.linalg.norm(rotation) - 1.0) < UNIT
    if not (whole and place.shape == (3,) and np.isfinite(place).all()):
        raise ShapeError(
            f"{channel}: rotation and translation of {sensor['token']} are no unit quaternion and "
            "place; mend calibrated_sensor.json."
        )
    mount = np.eye(4)
    mount[:3, :3], mount[:3, 3] = Quaternion(rotation).rotation_matrix, place
    return mount


def readings(
    tables: Any, scene: str, sample: Mapping[str, Any], channel: str
) -> tuple[list[dict], np.ndarray]:
    """A sensor's ``K`` rows from a sample on, and the rear axle's pose ``[K, 3]`` at each."""
    rows = chain(tables, scene, "sample_data", sample["data"][channel])
    poses = np.array([pose_of(tables.get("ego_pose", row["ego_pose_token"])) for row in rows])
    finite(scene, "the ego", poses)
    return rows, poses


def chain(tables: Any, scene: str, table: str, token: str) -> list[dict]:
    """Records linked by ``next``, whose time stamps must ascend."""
    records = []
    while token:
        record = tables.get(table, token)
        if records and record["timestamp"] <= records[-1]["timestamp"]:
            raise ShapeError(
                f"{scene}: time stamp {record['timestamp']} of {table} {token} does not come "
                f"after {records[-1]['timestamp']}; mend {table}.json."
            )
        records.append(record)
        token = record["next"]
    return records


def pose_of(row: Mapping[str, Any]) -> list[float]:
    """x, y and heading of a record with a translation and a rotation; NaN where one is broken."""
    rotation = np.array(row["rotation"], float)
    whole = abs(np.linalg.norm(rotation) - 1.0) < UNIT  # no NaN is
    if not (whole and np.isfinite(np.array(row["translation"], float)).all()):
        return [np.nan] * 3
    w, x, y, z = rotation
    # Where the x axis points, seen from above.
    heading = np.arctan2(2 * (w * z + x * y), w * w + x * x - y * y - z * z)
    return [*row["translation"][:2], heading]


def finite(scene: str, who: str, poses: np.ndarray) -> None:
    """Refuse poses with a NaN."""
    if not np.isfinite(poses).all():
        raise ShapeError(
            f"{scene}: a pose of {who} is not finite; mend the tables, or leave the scene out."
        )
