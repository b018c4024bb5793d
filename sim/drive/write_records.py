"""The small change of nuScenes tables: tokens, links, quaternions, numbers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np


def attribute_of(category: str, speed: float) -> str:
    """What nuScenes says of a box that moves at ``speed`` m/s; empty for things."""
    if category.startswith("human.pedestrian"):
        return "pedestrian.moving" if speed > 0.2 else "pedestrian.standing"
    if category in ("vehicle.bicycle", "vehicle.motorcycle"):
        return "cycle.with_rider" if speed > 0.2 else "cycle.without_rider"
    if category.startswith("vehicle"):
        return "vehicle.moving" if speed > 0.2 else "vehicle.stopped"
    return ""


def rotation_quaternion(rotation: np.ndarray) -> list[float]:
    """``w, x, y, z`` of a rotation matrix ``[3, 3]``."""
    vector = cv2.Rodrigues(np.asarray(rotation, float))[0][:, 0]
    half = np.linalg.norm(vector) / 2
    return [float(np.cos(half)), *(vector / 2 * np.sinc(half / np.pi)).tolist()]


def heading_quaternion(heading: float) -> list[float]:
    """``w, x, y, z`` of a heading in radians."""
    return [float(np.cos(heading / 2)), 0.0, 0.0, float(np.sin(heading / 2))]


def token_of(*parts: Any) -> str:
    """The same 32 digits for the same parts."""
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def links_of(tokens: list[str]) -> list[dict[str, str]]:
    """``prev`` and ``next`` of each record of a chain."""
    chain = ["", *tokens, ""]
    return [{"prev": a, "next": b} for a, b in zip(chain[:-2], chain[2:], strict=True)]


def floats(values: Any) -> list:
    """Lists of numbers to the micrometre."""
    return np.round(np.asarray(values, float), 6).tolist()


def write_json(path: Path, value: Any) -> None:
    """As short as JSON can be."""
    path.write_text(json.dumps(value, separators=(",", ":")))
