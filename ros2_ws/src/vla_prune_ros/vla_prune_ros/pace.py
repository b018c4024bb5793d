"""Not more often than so many times a second, without skipping frames that come a little early."""

from __future__ import annotations


class Pace:
    """Lets through at most ``rate_hz`` events a second on average; half a period early is fine.

    Args:
        rate_hz: events per second; may be changed at any time.
    """

    def __init__(self, rate_hz: float) -> None:
        self.rate_hz = rate_hz
        self._due = float("-inf")

    def ready(self, steady_s: float) -> bool:
        """Whether an event may happen now."""
        return steady_s >= self._due - 1e-9

    def count(self, steady_s: float) -> None:
        """One happened."""
        period = 1.0 / self.rate_hz
        self._due = max(self._due, steady_s - period / 2) + period
