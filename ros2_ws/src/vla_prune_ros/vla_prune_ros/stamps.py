"""Message stamps and seconds, as plain dicts on the way out."""

from __future__ import annotations

from typing import Any

BILLION = 1_000_000_000


def seconds(stamp: Any) -> float:
    """A ``builtin_interfaces/Time`` (any object with ``sec`` and ``nanosec``) as seconds."""
    return stamp.sec + stamp.nanosec / BILLION


def nanoseconds(stamp: Any) -> int:
    """A ``builtin_interfaces/Time`` as whole nanoseconds."""
    return stamp.sec * BILLION + stamp.nanosec


def time_fields(seconds_: float) -> dict[str, int]:
    """Seconds as the fields of ``builtin_interfaces/Time`` or ``Duration``."""
    sec, nanosec = divmod(round(seconds_ * BILLION), BILLION)
    return {"sec": int(sec), "nanosec": int(nanosec)}


def header_fields(stamp_s: float, frame_id: str = "") -> dict[str, Any]:
    """The fields of ``std_msgs/Header``."""
    return {"stamp": time_fields(stamp_s), "frame_id": frame_id}
