"""Whether the loop holds its rate, counted as FIELD.md 5 says it must be.

A cycle's response time is release lateness plus execution, in steady time. Misses are counted in
all and in a row. What an actuator gets is judged by the age of the picture behind it, in message
time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass

import numpy as np

from vla_prune.errors import ConfigError

KEPT = 4096  # newest samples from which percentiles are taken: two minutes at 30 Hz


@dataclass(frozen=True)
class Cycle:
    """One release of the loop. Seconds.

    Attributes:
        lateness_s: from release to start.
        execution_s: from start to end.
        slack_s: what was left of the period; negative for a miss.
    """

    lateness_s: float
    execution_s: float
    slack_s: float

    @property
    def missed(self) -> bool:
        """Whether the cycle ended after its period."""
        return self.slack_s < 0


@dataclass(frozen=True)
class DeadlineReport:
    """How a loop went. NaN where there was nothing to measure.

    Attributes:
        cycles: that ran.
        skipped: releases at which nothing could start; each is a miss.
        misses: in all, skipped ones included.
        run: misses in a row up to now.
        longest_run: most misses in a row.
        miss_rate: misses over releases.
        slack_p50_s: median slack.
        slack_p1_s: slack that 99% of the cycles had or exceeded.
        age_p50_s: age of the oldest picture behind a command when it was sent: median,
        age_p95_s: 95th,
        age_p99_s: and 99th percentile.
        commands: that were sent.
        stale_ratio: share of them that came from the hold rule.
        rate_hz: effective control rate: commands from fresh actions per second.
    """

    cycles: int
    skipped: int
    misses: int
    run: int
    longest_run: int
    miss_rate: float
    slack_p50_s: float
    slack_p1_s: float
    age_p50_s: float
    age_p95_s: float
    age_p99_s: float
    commands: int
    stale_ratio: float
    rate_hz: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


class DeadlineMonitor:
    """Watches one loop.

    Args:
        period_s: a cycle has to end within this time after its release.
    """

    def __init__(self, period_s: float) -> None:
        if not period_s > 0:
            raise ConfigError(f"deadline: the period is {period_s} s; give more than 0.")
        self.period_s = period_s
        self.cycles = self.skipped = self.misses = self.run = self.longest_run = 0
        self.commands = self.stale = 0
        self._slack: deque[float] = deque(maxlen=KEPT)
        self._age: deque[float] = deque(maxlen=KEPT)
        self._first = self._last = float("nan")

    def cycle(self, release_s: float, start_s: float, end_s: float) -> Cycle:
        """Count one cycle. Steady times: when it was due, when it began, when it ended."""
        done = Cycle(start_s - release_s, end_s - start_s, release_s + self.period_s - end_s)
        if -1e-9 <= done.slack_s < 0:  # rounding of times is no miss
            done = Cycle(done.lateness_s, done.execution_s, 0.0)
        self.cycles += 1
        self._slack.append(done.slack_s)
        self._count(done.missed)
        return done

    def skip(self, releases: int = 1) -> None:
        """Count releases at which nothing could start, such as while the last cycle ran on."""
        self.skipped += releases
        for _ in range(releases):
            self._count(True)

    def command(self, at_s: float, age_s: float, stale: bool) -> None:
        """Count one command that was sent.

        Args:
            at_s: when; any clock, always the same.
            age_s: of the oldest picture behind it, message time; not finite if there is none.
            stale: whether it came from the hold rule.
        """
        self.commands += 1
        self.stale += stale
        if np.isfinite(age_s):
            self._age.append(age_s)
        self._first = at_s if self.commands == 1 else self._first
        self._last = at_s

    def report(self) -> DeadlineReport:
        """Everything so far; percentiles over the newest samples."""
        releases = self.cycles + self.skipped
        # n commands span n - 1 intervals; the last one is taken to last as long as the others.
        span = (self._last - self._first) * self.commands / max(self.commands - 1, 1)
        fresh = self.commands - self.stale
        return DeadlineReport(
            self.cycles,
            self.skipped,
            self.misses,
            self.run,
            self.longest_run,
            self.misses / releases if releases else float("nan"),
            *_percentiles(self._slack, (50, 1)),
            *_percentiles(self._age, (50, 95, 99)),
            self.commands,
            self.stale / self.commands if self.commands else float("nan"),
            fresh / span if span > 0 else float("nan"),
        )

    def _count(self, missed: bool) -> None:
        self.misses += missed
        self.run = self.run + 1 if missed else 0
        self.longest_run = max(self.longest_run, self.run)


def _percentiles(samples: deque[float], which: tuple[int, ...]) -> tuple[float, ...]:
    if not samples:
        return (float("nan"),) * len(which)
    return tuple(float(value) for value in np.percentile(np.asarray(samples), which))
