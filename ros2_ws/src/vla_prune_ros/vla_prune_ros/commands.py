"""Actions to the messages that robots and vehicles take, as plain fields.

Actions are rows ``[n, A]`` in physical units with one name for each dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from vla_prune.errors import ConfigError, MissingError, ShapeError
from vla_prune_ros.stamps import header_fields, time_fields

TWIST = ("linear.x", "linear.y", "linear.z", "angular.x", "angular.y", "angular.z")
PLAN = (("x", "y"), ("dx", "dy"))  # places in the frame of the header; or steps between them


def joint_trajectory(
    rows: np.ndarray, names: Sequence[str], dt_s: float, stamp_s: float, frame_id: str = ""
) -> dict[str, Any]:
    """``trajectory_msgs/JointTrajectory`` with positions alone, for ``positions_upsampling``.

    The first row is due ``dt_s`` after it is received (stamp 0), as controllers read it.
    """
    points = [
        {"positions": [float(v) for v in row], "time_from_start": time_fields(dt_s * (i + 1))}
        for i, row in enumerate(_checked(rows, names))
    ]
    header = header_fields(0.0, frame_id)
    return {"header": header, "joint_names": list(names), "points": points}


def twist_stamped(
    rows: np.ndarray, names: Sequence[str], dt_s: float, stamp_s: float, frame_id: str = ""
) -> dict[str, Any]:
    """``geometry_msgs/TwistStamped`` of the first row; dimensions not named are zero.

    Raises:
        ConfigError: a name that is no part of a twist.
    """
    check_names("geometry_msgs/msg/TwistStamped", names)
    twist = {"linear": {a: 0.0 for a in "xyz"}, "angular": {a: 0.0 for a in "xyz"}}
    for name, value in zip(names, _checked(rows, names)[0], strict=True):
        part, axis = name.split(".")
        twist[part][axis] = float(value)
    return {"header": header_fields(stamp_s, frame_id), "twist": twist}


def places(rows: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """``[n, 2]`` places, metres, x forward and y left, of a plan in places or in steps.

    Raises:
        ConfigError: the dimensions are neither ``x, y`` nor ``dx, dy``.
    """
    check_names("nav_msgs/msg/Path", names)
    rows = _checked(rows, names)
    return np.cumsum(rows, axis=0) if tuple(names) == PLAN[1] else rows


def trajectory(
    rows: np.ndarray,
    names: Sequence[str],
    dt_s: float,
    stamp_s: float,
    frame_id: str = "base_link",
) -> dict[str, Any]:
    """``autoware_planning_msgs/Trajectory``: places with speeds along them.

    The speed of a point is that of the step that leads to it, so that a plan that brakes ends
    with 0 m/s. A standing point keeps the heading before it.
    """
    xy = places(rows, names)
    steps = np.diff(xy, axis=0, prepend=np.zeros((1, 2)))
    speeds = np.linalg.norm(steps, axis=1) / dt_s
    yaws, yaw = [], 0.0
    for step, speed in zip(steps, speeds, strict=True):
        yaw = float(np.arctan2(step[1], step[0])) if speed > 0.05 else yaw
        yaws.append(yaw)
    turns = np.diff(yaws, prepend=0.0)
    rates = (turns + np.pi) % (2 * np.pi) - np.pi
    accelerations = np.diff(speeds, append=speeds[-1]) / dt_s
    points = [
        {
            "time_from_start": time_fields(dt_s * (i + 1)),
            "pose": _pose(xy[i], yaws[i]),
            "longitudinal_velocity_mps": float(speeds[i]),
            "lateral_velocity_mps": 0.0,
            "acceleration_mps2": float(accelerations[i]),
            "heading_rate_rps": float(rates[i] / dt_s),
            "front_wheel_angle_rad": 0.0,
            "rear_wheel_angle_rad": 0.0,
        }
        for i in range(len(xy))
    ]
    return {"header": header_fields(stamp_s, frame_id), "points": points}


def path(
    rows: np.ndarray,
    names: Sequence[str],
    dt_s: float,
    stamp_s: float,
    frame_id: str = "base_link",
) -> dict[str, Any]:
    """``nav_msgs/Path``, for looking at."""
    points = trajectory(rows, names, dt_s, stamp_s, frame_id)["points"]
    poses = [
        {"header": header_fields(stamp_s + dt_s * (i + 1), frame_id), "pose": point["pose"]}
        for i, point in enumerate(points)
    ]
    return {"header": header_fields(stamp_s, frame_id), "poses": poses}


def raw(
    rows: np.ndarray, names: Sequence[str], dt_s: float, stamp_s: float, frame_id: str = ""
) -> dict[str, Any]:
    """``vla_prune_msgs/ActionChunk``, for actions that no standard message has words for."""
    rows = _checked(rows, names)
    return {
        "header": header_fields(stamp_s, frame_id),
        "names": list(names),
        "horizon": len(rows),
        "dt": float(dt_s),
        "values": np.asarray(rows, np.float32).reshape(-1),
    }


COMMANDS = {
    "trajectory_msgs/msg/JointTrajectory": joint_trajectory,
    "geometry_msgs/msg/TwistStamped": twist_stamped,
    "autoware_planning_msgs/msg/Trajectory": trajectory,
    "nav_msgs/msg/Path": path,
    "vla_prune_msgs/msg/ActionChunk": raw,
}
PLANS = ("autoware_planning_msgs/msg/Trajectory", "nav_msgs/msg/Path")  # take all rows, not one


def check_names(kind: str, names: Sequence[str], where: str = "command") -> None:
    """Raise one sentence if a command of message type ``kind`` has no words for a dimension.

    Raises:
        ConfigError: a name that is no part of a twist; or a plan of neither ``x, y`` nor
            ``dx, dy``.
    """
    if kind in PLANS and tuple(names) not in PLAN:
        raise ConfigError(
            f"{where}: a path cannot be made of {', '.join(names)}; name the dimensions x and y "
            "(places) or dx and dy (steps)."
        )
    for name in names if kind == "geometry_msgs/msg/TwistStamped" else ():
        if name not in TWIST:
            raise ConfigError(
                f"{where}: a twist has no {name!r}; name the dimensions {', '.join(TWIST)}."
            )


def check_installed(kind: str, where: str = "command") -> None:
    """Raise one sentence if the package of message type ``kind`` is not installed.

    Raises:
        MissingError: it is not.
    """
    package = kind.split("/")[0]
    if find_spec(package) is None:
        raise MissingError(
            f"{where}: a command is a {kind}, and {package} is not installed; apt install "
            f"ros-jazzy-{package.replace('_', '-')}, or take a contract without it."
        )


def command_fields(
    kind: str,
    rows: np.ndarray,
    names: Sequence[str],
    dt_s: float,
    stamp_s: float,
    frame_id: str = "",
) -> Mapping[str, Any]:
    """The fields of a command of message type ``kind``."""
    if kind in PLANS and not frame_id:
        frame_id = "base_link"
    return COMMANDS[kind](rows, names, dt_s, stamp_s, frame_id)


def _checked(rows: np.ndarray, names: Sequence[str]) -> np.ndarray:
    rows = np.asarray(rows)
    if rows.ndim != 2 or len(rows) == 0 or rows.shape[1] != len(names):
        raise ShapeError(
            f"command: actions of shape {rows.shape} do not fit the {len(names)} names; give "
            "[rows, dimensions]."
        )
    if not np.isfinite(rows).all():
        raise ShapeError("command: an action is not finite; nothing is sent but the hold.")
    return rows


def _pose(xy: np.ndarray, yaw: float) -> dict[str, Any]:
    return {
        "position": {"x": float(xy[0]), "y": float(xy[1]), "z": 0.0},
        "orientation": {
            "x": 0.0,
            "y": 0.0,
            "z": float(np.sin(yaw / 2)),
            "w": float(np.cos(yaw / 2)),
        },
    }
