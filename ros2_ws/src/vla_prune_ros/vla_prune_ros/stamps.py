"""Message stamps and seconds, as plain dicts on the way out."""

from __future__ import annotations

from typing import Any

BILLION = 1_000_000_000


class Stamp(float):
    """Seconds that know their nanoseconds; a float of today's date resolves no more than 0.2 us.

    So what goes out carries the very stamp of the picture that came in, and readers that match
    stamps find it.
    """

    __slots__ = ("nanoseconds",)

    def __new__(cls, nanoseconds_: int) -> Stamp:
        """From whole nanoseconds."""
        made = super().__new__(cls, nanoseconds_ / BILLION)
        made.nanoseconds = nanoseconds_
        return made

    def __getnewargs__(self) -> tuple[int]:
        """For copies."""
        return (self.nanoseconds,)


def seconds(stamp: Any) -> Stamp:
    """A ``builtin_interfaces/Time`` (any object with ``sec`` and ``nanosec``) as seconds."""
    return Stamp(nanoseconds(stamp))


def nanoseconds(stamp: Any) -> int:
    """A ``builtin_interfaces/Time`` as whole nanoseconds."""
    return stamp.sec * BILLION + stamp.nanosec


def time_fields(seconds_: float) -> dict[str, int]:
    """Seconds as the fields of ``builtin_interfaces/Time`` or ``Duration``."""
    exact = isinstance(seconds_, Stamp)
    sec, nanosec = divmod(seconds_.nanoseconds if exact else round(seconds_ * BILLION), BILLION)
    return {"sec": int(sec), "nanosec": int(nanosec)}


def header_fields(stamp_s: float, frame_id: str = "") -> dict[str, Any]:
    """The fields of ``std_msgs/Header``."""
    return {"stamp": time_fields(stamp_s), "frame_id": frame_id}
