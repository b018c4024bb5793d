"""From chunks that come when they come to one action for every tick.

A chunk's row ``i`` belongs to the time ``origin + i * dt_s``. The origin is the stamp of the
observation behind it (``align="observation"``: rows whose time has passed are skipped), or the
moment at which the chunk takes over (``align="arrival"``: no row is skipped), or that less the
time in which rows were played since the observation (``align="played"``: as many rows are skipped
as were played, none for the time of a hold; for machines that stand still while they hold and
whose actions are steps from where they are, such as an arm's). At most ``execute`` rows are
played; then the hold rule speaks until the next chunk takes over.

Real-time chunking (Black, Galliker, Levine 2025, arXiv 2506.07339): the rows that will be played
while inference runs are frozen by ``not_before``. A policy that can inpaint the new chunk behind
them reads them with :meth:`ChunkPlayer.running_prefix`; no policy here does, so the two chunks
meet at a known time and with whatever seam there is.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from vla_prune.errors import ConfigError, ShapeError, did_you_mean
from vla_prune.runtime.hold import HoldRule
from vla_prune.types import ActionChunk

JOINS = ("replace", "append", "blend")
ALIGNS = ("observation", "arrival", "played")
KEPT = 4096  # newest seam jumps
MOST_ROWS = 10_000  # of a chunk: every tick of a plan sends them all
DT_S = (1e-3, 60.0)  # between two rows
_EPS = 1e-6  # of a row, and
_TINY = 1e-9  # seconds: times that differ by rounding are the same


@dataclass(frozen=True)
class Command:
    """What is to be sent at one tick.

    Attributes:
        action: ``[A]``; None if there is neither a chunk nor a hold action.
        index: row of the chunk; -1 from the hold rule.
        age_s: of the oldest image behind it; infinite if there is none.
        source: ``chunk`` or ``hold``.
    """

    action: np.ndarray | None
    index: int
    age_s: float
    source: str


@dataclass(frozen=True)
class Plan:
    """All that would be played if nothing new came: for machines that track a path.

    Attributes:
        actions: ``[n, A]`` from the running chunk's row 0 on, those that are gone included, the
            hold rule's behind them. Paths are in the frame of the pose at ``stamp_s``.
        elapsed_s: time since row 0 began.
        dt_s: seconds between two rows.
        stamp_s: of the oldest image behind it.
        source: of the row that is played now, ``chunk`` or ``hold``.
    """

    actions: np.ndarray
    elapsed_s: float
    dt_s: float
    stamp_s: float
    source: str


@dataclass(frozen=True)
class Offer:
    """What became of a chunk.

    Attributes:
        taken: whether it will be played.
        at_s: when it takes over.
        skipped: rows at its beginning whose time has passed.
        refused: why not, in a sentence.
        late: whether that is because all of its rows' time has passed.
    """

    taken: bool
    at_s: float = float("nan")
    skipped: int = 0
    refused: str = ""
    late: bool = False


@dataclass
class _Segment:
    """A chunk's rows and behind them those of the hold rule, on one grid of times."""

    rows: np.ndarray  # [n, A], from the chunk's row 0
    first: int  # the row that is played first
    end: int  # the first row of the hold rule
    origin: float  # when row 0 begins
    start: float  # when it takes over
    dt_s: float
    stamp_s: float
    before: _Segment | None = None  # what it took over from
    fade: int = 0  # rows that are blended with that
    played: int = -1  # the row that was played last
    expired: bool = False  # whether it was cut: nothing of the chunk is played on
    ahead: np.ndarray | None = None  # [m, A], the chunk's rows behind the end, for the hold rule
    playable: int = 0  # how many of them may still be played

    def index(self, now: float) -> int:
        """The row of this time."""
        return max(0, math.floor((now - self.origin) / self.dt_s + _EPS))

    def span(self, until: float) -> tuple[float, float]:
        """From when to when its own rows are played, if it is replaced at ``until``."""
        return self.start, min(until, self.origin + self.end * self.dt_s)

    def row(self, now: float) -> np.ndarray:
        """``[A]``, the last one for ever."""
        return self.rows[min(self.index(now), len(self.rows) - 1)]


class ChunkPlayer:
    """The running chunk. Times are message times.

    Args:
        execute: rows of a chunk that are played before the next one is wanted.
        hold: what is done when they are over and the next one is not there.
        join: when a new chunk takes over. ``replace``: at once; ``append``: when the running one's
            ``execute`` rows are over; ``blend``: at once, the first ``blend_rows`` rows weighted
            from old to new.
        align: see the module.
        lead: rows before the end of ``execute`` at which the next chunk is wanted, so that
            inference overlaps with playing.
        max_age_s: no row is played at an age beyond it, whatever the hold rule.
        blend_rows: for ``blend``.
    """

    def __init__(
        self,
        execute: int,
        hold: HoldRule,
        join: str = "replace",
        align: str = "observation",
        lead: int = 0,
        max_age_s: float = float("inf"),
        blend_rows: int = 2,
    ) -> None:
        if execute < 1 or not 0 <= lead <= execute or blend_rows < 1 or not max_age_s > 0:
            raise ConfigError(
                f"chunks: execute {execute}, lead {lead}, blend_rows {blend_rows}, max_age_s "
                f"{max_age_s:g}; execute and blend_rows are at least 1, lead is 0 to execute, "
                "max_age_s above 0."
            )
        if join not in JOINS:
            raise did_you_mean("chunks", "join", join, JOINS)
        if align not in ALIGNS:
            raise did_you_mean("chunks", "align", align, ALIGNS)
        self.execute, self.hold, self.join, self.align = execute, hold, join, align
        self.lead, self.max_age_s, self.blend_rows = lead, max_age_s, blend_rows
        self.switches = 0
        self.seam_jumps: deque[float] = deque(maxlen=KEPT)
        self._segments: list[_Segment] = []  # the running one, and those that wait
        self._last: np.ndarray | None = None  # the row played last, and the one before that
        self._before: np.ndarray | None = None
        self._limited = False  # whether less was sent than the row that was played last
        self._newest = float("-inf")  # stamp
        self._past: deque[tuple[float, float]] = deque(maxlen=KEPT)  # when rows were played

    def offer(self, chunk: ActionChunk, now: float, not_before: float = float("-inf")) -> Offer:
        """Give a chunk that has just come. Refuses what cannot be played, and never raises.

        Chunks that wait take over one after the other; a newer one that takes over no later makes
        them void.

        Args:
            chunk: with the stamp of the oldest image behind it.
            now: when it came.
            not_before: end of the rows that are frozen for real-time chunking.
        """
        self._advance(now)
        running = self._running(now)
        refused, late = self._why_not(chunk), False
        start = max(now, not_before)
        if self.join == "append" and running is not None:
            start = max(start, running.origin + running.end * running.dt_s)
        if not refused:
            origin = self._origin(chunk, start)
            first = math.floor((start - origin) / chunk.dt_s + _EPS)
            fresh = self._fresh(chunk, origin)
            end = min(first + self.execute, fresh)
            late = end <= first
            if late:
                refused = (
                    f"chunks: the chunk of the image at {chunk.stamp_s:.3f} s is too late at "
                    f"{start:.3f} s: none of its {len(chunk.actions)} rows of {chunk.dt_s:g} s "
                    "may be played."
                )
        if refused:
            return Offer(False, refused=refused, late=late)
        rows = self._with_hold(chunk.actions, end, fresh - end, chunk.dt_s)
        segment = _Segment(rows, first, end, origin, start, chunk.dt_s, chunk.stamp_s)
        segment.ahead, segment.playable = chunk.actions[end:], fresh - end
        before = [s for s in self._segments if s is running or s.start < start - _TINY]
        segment.fade = self.blend_rows if self.join == "blend" and before else 0
        self._segments = [*before, segment]
        self._newest = chunk.stamp_s
        while self._past and self._past[0][1] <= chunk.stamp_s:  # no later chunk asks for it
            self._past.popleft()
        self._advance(now)
        return Offer(True, start, first)

    def action(self, now: float) -> Command:
        """The action of this tick."""
        segment = self._advance(now)
        if segment is None:
            rows = self.hold.after(self._last, _no_rows(self._last), 0, 1.0)
            return Command(None if rows is None else rows[0], -1, float("inf"), "hold")
        row, stamp = self._play(segment, now)
        index = segment.index(now)
        fresh = index < segment.end
        return Command(row, index if fresh else -1, now - stamp, "chunk" if fresh else "hold")

    def sent(self, action: np.ndarray) -> None:
        """Say what of the row that :meth:`action` gave was sent, as limits have left it.

        The hold goes on from there: a limit may have kept the machine far behind the chunk.

        Args:
            action: ``[A]``.
        """
        if self._last is not None:
            self._limited = not np.array_equal(action, self._last)
            self._last = action

    def plan(self, now: float) -> Plan | None:
        """All that would be played if nothing new came, never blended; None before a chunk."""
        segment = self._advance(now)
        if segment is None:
            return None
        if segment.played != segment.index(now):
            self._play(segment, now)
        source = "chunk" if segment.index(now) < segment.end else "hold"
        elapsed = now - segment.origin
        return Plan(segment.rows, elapsed, segment.dt_s, segment.stamp_s, source)

    def wants_next(self, now: float) -> bool:
        """Whether the next inference should start. Whether one is under way the caller knows."""
        self._advance(now)
        if not self._segments:
            return True
        newest = self._segments[-1]
        return now >= newest.start - _TINY and newest.index(now) >= newest.end - self.lead

    def running_prefix(self, now: float, rows: int) -> np.ndarray | None:
        """``[rows, A]`` that will be played from ``now`` on if nothing new comes.

        None before a chunk. To freeze them, pass the end of their time as ``not_before`` to
        :meth:`offer`.
        """
        segment = self._advance(now)
        if segment is None:
            return None
        start = segment.index(now)
        return segment.rows[np.minimum(np.arange(start, start + rows), len(segment.rows) - 1)]

    def halt(self, now: float, refused: bool = False) -> None:
        """The hold rule takes over at once, until the next chunk; those that wait are dropped.

        It goes on from the row that was played last, in the middle of that row, too. A hold that
        has begun goes on: asked anew at every tick, a brake would take its first loss each time.

        Args:
            now: the time.
            refused: the row that was last asked for was not sent: it goes on from that before it.
        """
        segment = self._advance(now)
        if refused:
            self._last = self._before
        if segment is None:
            self._segments = []
        elif segment.expired and not refused:
            self._segments = [segment]
        else:
            self._segments = self._cut(segment, segment.index(now))

    def restart(self, now: float) -> None:
        """Message time jumped to ``now``: hold from here, with an order of stamps that is new.

        A hold that has begun goes on with its next row.
        """
        self._newest = float("-inf")
        if self._segments:
            segment = self._segments[0]
            at = min(segment.played + 1, len(segment.rows))
            self._segments = [segment] if segment.expired else self._cut(segment, at)
        self._past.clear()
        for cut in self._segments:
            cut.origin, cut.start, cut.stamp_s = now - at * cut.dt_s, now, float("-inf")

    def reset(self) -> None:
        """Forget all but the counts, as at the beginning of an episode."""
        self._segments, self._newest = [], float("-inf")
        self._last = self._before = None
        self._limited = False
        self._past.clear()

    def _origin(self, chunk: ActionChunk, start: float) -> float:
        """When row 0 of a chunk that takes over at ``start`` began, or would have."""
        if self.align == "arrival":
            return start
        if self.align == "observation":
            return min(chunk.stamp_s, start)
        ends = [s.start for s in self._segments[1:]] + [start]
        spans = [s.span(end) for s, end in zip(self._segments, ends, strict=False)]
        since = chunk.stamp_s
        return start - sum(
            max(0.0, min(until, start) - max(begin, since))
            for begin, until in (*self._past, *spans)
        )

    def _advance(self, now: float) -> _Segment | None:
        """The running segment, after those that waited have taken over."""
        while len(self._segments) > 1 and now >= self._segments[1].start - _TINY:
            old = self._segments.pop(0)
            self._past.append(old.span(self._segments[0].start))
            # What was replaced before any of its rows was played leaves no trace.
            self._segments[0].before = old.before if old.played < 0 else old
            old.before = None
        segment = self._running(now)
        if segment is None:
            return None
        if not segment.expired and now - segment.stamp_s > self.max_age_s + _TINY:
            self._segments[:1] = self._cut(segment, segment.index(now))
            return self._running(now)
        return segment

    def _running(self, now: float) -> _Segment | None:
        started = self._segments and now >= self._segments[0].start - _TINY
        return self._segments[0] if started else None

    def _play(self, segment: _Segment, now: float) -> tuple[np.ndarray, float]:
        """The row of this time, blended where it has to be, and the oldest stamp behind it."""
        if self._limited and segment.played < segment.end <= segment.index(now):
            self._hold_from_sent(segment)
        row, stamp, index = segment.row(now), segment.stamp_s, segment.index(now)
        old = segment.before
        if old is not None and index - segment.first < segment.fade:
            share = (index - segment.first + 1) / (segment.fade + 1)
            row = (share * row + (1.0 - share) * old.row(now)).astype(row.dtype)
            stamp = min(stamp, old.stamp_s)
        if segment.played < 0 and old is not None:
            self.switches += 1
            self.seam_jumps.append(float(np.abs(row - old.row(now)).max()))
        if segment.played != index:
            self._before = self._last
        segment.played, self._last = index, row
        return row, stamp

    def _cut(self, segment: _Segment, at: int) -> list[_Segment]:
        """The same, but that the hold rule takes over at row ``at`` and plays nothing on.

        It goes on from the row that was played last. Empty if there was none and the rule then
        commands nothing.
        """
        rest = self.hold.after(self._last, segment.rows[at:], 0, segment.dt_s)
        if rest is None:
            self._past.append(segment.span(segment.origin + at * segment.dt_s))
            return []
        cut = replace(
            segment,
            rows=np.concatenate([segment.rows[:at], rest]),
            end=min(segment.end, at),
            before=None,
            played=max(segment.played, 0),
            expired=True,
        )
        return [cut]

    def _hold_from_sent(self, segment: _Segment) -> None:
        """Begin the hold where the machine was sent to, not where the chunk wanted it."""
        rest = self.hold.after(self._last, segment.ahead, segment.playable, segment.dt_s)
        segment.rows = np.concatenate([segment.rows[: segment.end], rest])
        self._limited = False

    def _with_hold(self, rows: np.ndarray, end: int, playable: int, dt_s: float) -> np.ndarray:
        """``rows[:end]`` and behind them the hold rule's."""
        rest = self.hold.after(rows[end - 1], rows[end:], playable, dt_s)
        return rows[:end] if rest is None else np.concatenate([rows[:end], rest])

    def _fresh(self, chunk: ActionChunk, origin: float) -> int:
        """How many rows begin before the age limit."""
        if math.isinf(self.max_age_s):
            return len(chunk.actions)
        left = (self.max_age_s - (origin - chunk.stamp_s)) / chunk.dt_s
        return min(len(chunk.actions), max(0, math.floor(left + _EPS) + 1))

    def _why_not(self, chunk: ActionChunk) -> str:
        actions = chunk.actions
        timed = DT_S[0] <= chunk.dt_s <= DT_S[1]
        if actions.ndim != 2 or 0 in actions.shape or len(actions) > MOST_ROWS or not timed:
            return (
                f"chunks: actions of shape {actions.shape} every {chunk.dt_s:g} s are no chunk; "
                f"it takes [H, A] with at most {MOST_ROWS} rows and a time above 0 between them, "
                f"{DT_S[0]:g} to {DT_S[1]:g} s."
            )
        if self._last is not None and actions.shape[1] != len(self._last):
            return (
                f"chunks: an action has {actions.shape[1]} numbers, those before had "
                f"{len(self._last)}; reset() begins with another machine."
            )
        if not np.isfinite(actions).all():
            return (
                "chunks: the chunk holds NaN or infinite actions; it is not played, and the "
                "policy's weights and inputs want a look."
            )
        if not chunk.stamp_s >= self._newest:
            return (
                f"chunks: the image at {chunk.stamp_s:.3f} s is older than that of the last chunk "
                f"({self._newest:.3f} s); it is not played."
            )
        try:
            self.hold.after(actions[0], actions[:0], 0, chunk.dt_s)
        except ShapeError as error:
            return str(error)
        return ""


def _no_rows(last: np.ndarray | None) -> np.ndarray:
    return np.zeros((0, 0 if last is None else len(last)))
