"""Logs read at other instants than they were written: poses, speeds and who was there."""

from __future__ import annotations

import numpy as np
from vla_prune_sim.drive.geometry import wrap
from vla_prune_sim.drive.scene import STEP_S, Tracks

from vla_prune.errors import ShapeError

SETTLED_M = 1.0  # a vehicle or thing whose boxes never get this far stands
ALIVE = ("human.", "animal")


def speed_along(poses: np.ndarray, step_s: float = STEP_S) -> np.ndarray:
    """``[..., T]`` m/s along the heading by central differences of poses ``[..., T, 3]``."""
    if poses.shape[-2] < 2:
        return np.zeros(poses.shape[:-1])
    rate = np.gradient(poses[..., :2], step_s, axis=-2)
    return rate[..., 0] * np.cos(poses[..., 2]) + rate[..., 1] * np.sin(poses[..., 2])


def resample(
    times: np.ndarray, poses: np.ndarray, at: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A track from boxes seen now and then.

    Args:
        times: ``[K]`` when it was seen, seconds.
        poses: ``[K, 3]`` centre and heading.
        at: ``[T]`` when it is asked for, seconds.

    Returns:
        Pose ``[T, 3]``, speed ``[T]`` and whether it was there ``[T]``.
    """
    heading = np.unwrap(poses[:, 2])
    columns = (*poses[:, :2].T, heading)
    pose = np.stack([np.interp(at, times, column) for column in columns], -1)
    speed = np.zeros(len(at))
    if len(times) > 1:
        rate = np.gradient(poses[:, :2], times, axis=0)
        along = rate[:, 0] * np.cos(heading) + rate[:, 1] * np.sin(heading)
        speed = np.interp(at, times, along)
    pose[:, 2] = wrap(pose[:, 2])
    return pose, speed, (at >= times[0] - 1e-3) & (at <= times[-1] + 1e-3)


def settled(category: str, poses: np.ndarray) -> np.ndarray:
    """Boxes ``[K, 3]`` of who stands, all at their median; those of all others as they are.

    Annotators draw a parked car anew in every keyframe, some centimetres off, which would read as
    a car that shuffles at walking pace. People sway; they stay as they are.
    """
    if category.startswith(ALIVE) or np.linalg.norm(np.ptp(poses[:, :2], axis=0)) > SETTLED_M:
        return poses
    heading = np.median(np.unwrap(poses[:, 2]))
    still = np.append(np.median(poses[:, :2], axis=0), wrap(heading))
    return np.broadcast_to(still, poses.shape)


def check_size(scene: str, who: str, size: tuple[float, float, float]) -> None:
    """Refuse a length, width or height that is no positive number: nobody could ever touch it."""
    if not (np.isfinite(size).all() and min(size) > 0):
        told = " x ".join(f"{side:g}" for side in size)
        raise ShapeError(
            f"{scene}: the size of {who} is {told} m; mend it, or leave the scene out."
        )


def stack_tracks(
    tokens: tuple[str, ...],
    categories: list[str],
    size: list[tuple[float, float, float]],
    z: list[float],
    moves: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    steps: int,
) -> Tracks:
    """Tracks from what `resample` gave for each; none at all is fine."""
    pose, speed, valid = zip(*moves, strict=True) if moves else ((), (), ())
    return Tracks(
        tokens=tokens,
        categories=tuple(categories),
        size=np.reshape(size, (-1, 3)).astype(float),
        pose=np.reshape(pose, (-1, steps, 3)).astype(float),
        z=np.array(z, float),
        speed=np.reshape(speed, (-1, steps)).astype(float),
        valid=np.reshape(valid, (-1, steps)).astype(bool),
    )
