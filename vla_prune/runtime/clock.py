"""Two times: message time for stamps and ages, steady time for deadlines.

Message time can be set, simulated, paused or looped; steady time only goes forward. An age is a
difference of message times, a deadline one of steady times, never a mixture.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

from vla_prune.errors import ConfigError


class Clock(Protocol):
    """Where the runtime gets its times from."""

    def now(self) -> float:
        """Message time: what stamps are written in, seconds."""
        ...

    def steady(self) -> float:
        """Monotonic time: what deadlines are counted in, seconds."""
        ...


class SystemClock:
    """This computer's: the wall clock for stamps, the monotonic one for deadlines."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def steady(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()


class ManualClock:
    """Moves when it is told to: for simulation and tests. Counts whole nanoseconds.

    Args:
        start_s: message time at the beginning; steady time begins at 0.
    """

    def __init__(self, start_s: float = 0.0) -> None:
        self._now, self._steady = _ns(start_s), 0

    def now(self) -> float:
        """Message time, seconds."""
        return self._now / 1e9

    def steady(self) -> float:
        """Steady time, seconds."""
        return self._steady / 1e9

    def advance(self, dt_s: float) -> None:
        """Let both times pass.

        Raises:
            ConfigError: ``dt_s`` is negative.
        """
        if dt_s < 0:
            raise ConfigError(
                f"clock: advance({dt_s:g}) would go backwards; time passes by 0 s or more, and "
                "jump() sets the message time."
            )
        self._now += _ns(dt_s)
        self._steady += _ns(dt_s)

    def jump(self, to_s: float) -> None:
        """Set the message time, as a looped bag does; steady time does not notice."""
        self._now = _ns(to_s)


@dataclass(frozen=True)
class Jump:
    """Message time did not go on as it should.

    Attributes:
        by_s: how far it is from where it would be; negative for backwards.
    """

    by_s: float

    def __str__(self) -> str:
        """For the log."""
        way = "back" if self.by_s < 0 else "forward"
        return (
            f"the clock jumped {way} by {abs(self.by_s):.3f} s; the command is held and all that "
            "is remembered starts anew."
        )


@dataclass
class ClockWatch:
    """Says when message time jumped, such as at the end of a bag that loops.

    Whoever is told so holds the command and resets slots, chunk and policy state.

    Attributes:
        forward_s: how far message time may run ahead between two looks.
        back_s: how far it may go back.
        rate: fastest replay that is no jump, message seconds per steady second. A paused clock is
            none either: ages stop with it.
        jumps: how many there were.
    """

    forward_s: float = 1.0
    back_s: float = 0.05
    rate: float = 1.0
    jumps: int = 0
    _last: tuple[float, float] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse bounds that every look would break."""
        if self.forward_s < 0 or self.back_s < 0 or self.rate <= 0:
            raise ConfigError(
                f"clock watch: forward_s {self.forward_s:g}, back_s {self.back_s:g} and rate "
                f"{self.rate:g}; the bounds are 0 s or more and the rate above 0."
            )

    def check(self, clock: Clock) -> Jump | None:
        """What happened since the last look; None if time went on as it should."""
        now, steady = clock.now(), clock.steady()
        last, self._last = self._last, (now, steady)
        if last is None:
            return None
        gone, allowed = now - last[0], self.rate * (steady - last[1])
        if -self.back_s <= gone <= allowed + self.forward_s:
            return None
        self.jumps += 1
        return Jump(gone - allowed if gone > 0 else gone)


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
