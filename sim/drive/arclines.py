"""The middle of a lane as nuScenes writes it: a chain of arcs and straights.

Each record is an ``arcline_path_3`` entry of the map expansion: a Dubins-like path of three parts,
of which we use one. ``nuscenes.map_expansion.arcline_path_utils`` turns records into poses again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from vla_prune_sim.drive.geometry import wrap

OFF_M, OFF_RAD = 0.01, 0.02  # how far an arc may leave the poses it stands for
STRAIGHT_RADIUS_M = 999.999  # what nuScenes writes where nothing bends


def fit_arclines(centre: np.ndarray) -> list[dict[str, Any]]:
    """Records within a centimetre of the poses ``[P, 3]``; each begins on one of them."""
    step = np.hypot(*np.diff(centre[:, :2], axis=0).T)
    poses = centre[np.concatenate([[True], step > 1e-3])]
    at = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(poses[:, :2], axis=0).T))])
    records, start, last = [], 0, len(poses) - 1
    while start < last:
        good, reach = start + 1, 2
        while start + reach <= last and _fits(poses, at, start, start + reach):
            good, reach = start + reach, 2 * reach
        bad = min(start + reach, last + 1)
        while bad - good > 1:
            middle = (good + bad) // 2
            if _fits(poses, at, start, middle):
                good = middle
            else:
                bad = middle
        records.append(_record(poses[start], poses[good]))
        start = good
    return records


def _arc(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """First heading, turn and length of the arc from ``a`` to ``b`` that turns as they do."""
    turn = float(wrap(b[2] - a[2]))
    chord = b[:2] - a[:2]
    length = float(np.hypot(*chord)) / np.sinc(turn / 2 / np.pi)
    return float(wrap(np.arctan2(chord[1], chord[0]) - turn / 2)), turn, float(length)


def _fits(poses: np.ndarray, at: np.ndarray, start: int, end: int) -> bool:
    between = poses[start : end + 1]
    heading, turn, length = _arc(between[0], between[-1])
    if abs(turn) > np.pi / 2:
        return False
    part = (at[start : end + 1] - at[start]) / (at[end] - at[start])
    chord = length * part * np.sinc(turn * part / 2 / np.pi)
    way = heading + turn * part / 2
    off = between[0, :2] + chord[:, None] * np.stack([np.cos(way), np.sin(way)], -1)
    off = np.hypot(*(off - between[:, :2]).T)
    turned = np.abs(wrap(heading + turn * part - between[:, 2]))
    return bool(off.max() < OFF_M and turned.max() < OFF_RAD)


def _record(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    heading, turn, length = _arc(a, b)
    straight = abs(turn) < 1e-5
    return {
        "start_pose": [round(float(v), 6) for v in (*a[:2], heading)],
        "end_pose": [round(float(v), 6) for v in (*b[:2], wrap(heading + turn))],
        "shape": "LSL" if straight or turn > 0 else "RSR",
        "radius": STRAIGHT_RADIUS_M if straight else round(length / abs(turn), 6),
        "segment_length": [0.0, round(length, 6), 0.0] if straight else [round(length, 6), 0, 0],
    }
