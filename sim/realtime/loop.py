"""One episode in simulated time: pictures go, chunks come, the world never waits. Knows no policy.

Order within one of the world's own steps: a picture is taken if one is due, all thinking that
could begin by now begins, chunks that are ready take over, and the world moves on one step with
what is played. Thinking begins and ends between the steps, too; what it leads to is felt from the
next step on. The slot, the chunks, the hold rule and the deadlines are those of a robot
(`vla_prune.runtime`).

A policy that runs by itself thinks once a period at most, about the newest of the period's
pictures when it is free. A period none of whose pictures is thought about is a miss. A picture is
drawn only if it can be thought about: one that a newer picture will have overwritten before the
policy is free is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, floor

import numpy as np
from vla_prune_sim.realtime.config import RealtimeConfig
from vla_prune_sim.realtime.move import Move, Moving

from vla_prune.errors import ConfigError, ShapeError
from vla_prune.runtime.chunks import ChunkPlayer
from vla_prune.runtime.clock import ManualClock
from vla_prune.runtime.deadline import DeadlineMonitor
from vla_prune.runtime.slot import NewestSlot
from vla_prune.types import ActionChunk, Observation

EPS = 1e-9


@dataclass(frozen=True)
class Thought:
    """What came of a picture.

    Attributes:
        chunk: the actions.
        seconds: that thinking took.
        hand_over: the hold rule takes over as thinking begins, and the chunk is not played.
    """

    chunk: ActionChunk
    seconds: float
    hand_over: bool = False


@dataclass(frozen=True)
class Ready:
    """A chunk on its way to the actuator, and when it gets there."""

    chunk: ActionChunk
    at_s: float
    play: bool


Think = Callable[[Observation, float], Thought]


class RealtimeLoop:
    """Plays one episode.

    Args:
        config: how time passes.
        body: the episode, started.
        think: about an observation, beginning at a time.
        limit_s: when it is over at the latest; None for never.

    Attributes:
        monitor: of the deadlines.
        player: of the chunks.
        slot: of the pictures.
        now_s: time of the episode.
    """

    def __init__(
        self, config: RealtimeConfig, body: Moving, think: Think, limit_s: float | None = None
    ) -> None:
        if not body.step_s > 0:
            raise ConfigError(
                f"realtime: the world's step is {body.step_s:g} s, so its clock would not go "
                "forward; give more than 0."
            )
        self._every = _steps("camera_s", config.camera, body)
        _steps("period_s", config.period_s, body)  # refused where it is no multiple
        self.config, self.body, self.think, self.limit_s = config, body, think, limit_s
        self.clock = ManualClock()
        lead = config.lead if config.mode == "overlap" else 0
        self.player = ChunkPlayer(
            config.execute, config.hold_rule(), config.join, config.align, lead, config.max_age_s
        )
        self.monitor = DeadlineMonitor(config.deadline)
        self.slot = NewestSlot(config.max_age_s)
        self._runs_free = config.mode in ("asynchronous", "realtime_chunking")
        self._transit: deque[tuple[float, Observation]] = deque()  # arrival, picture
        self._ready: deque[Ready] = deque()
        self._free_at = 0.0
        self._captured = float("-inf")
        self._release = float("-inf")  # when the next picture is due, if it is wanted
        self._paths: dict[float, np.ndarray] = {}  # stamp -> the rows as the policy gave them
        self._path: np.ndarray | None = None
        self._begun = -1  # the last period one of whose pictures was thought about
        self._held: int | None = None  # the period of the picture in the slot
        self._lost = self._too_late = self._refused = 0
        self._why = ""  # the first chunk was refused
        self._first = True

    @property
    def now_s(self) -> float:
        """Since the episode began."""
        return self.clock.now()

    def run(self, first: Observation) -> None:
        """To the end; ``first`` is what starting the episode showed."""
        step, seen = 0, first
        while not self.body.over and not self._late():
            now = self.clock.now()
            if not self._runs_free:  # a chunk that comes now may want the next one
                self._serve(now)
            if self._due(step, now):
                self._capture(self.body.observe() if seen is None else seen, now)
            seen = None
            self._serve(now)
            self.body.move(self._move(now))
            step += 1
            self.clock.advance(self.body.step_s)
        self._count_last_periods(self.clock.now())

    def figures(self) -> dict[str, float | int | str | None]:
        """What the episode says of its timing, milliseconds where so named; None if not known.

        An age is None, too, if no command had a picture behind it.
        """
        report = self.monitor.report()
        jumps = self.player.seam_jumps
        found = {
            "age_p50_ms": 1e3 * report.age_p50_s,
            "age_p95_ms": 1e3 * report.age_p95_s,
            "age_p99_ms": 1e3 * report.age_p99_s,
            "rate_hz": report.rate_hz,
            "misses": report.misses,
            "longest_miss_run": report.longest_run,
            "miss_rate": report.miss_rate,
            "releases": report.cycles + report.skipped,
            "stale_ratio": report.stale_ratio,
            "seam_jump": float(np.mean(jumps)) if jumps else float("nan"),
            "too_late": self._too_late,
            "refused": self._refused,
        }
        why = {"refused_because": self._why} if self._why else {}
        return {k: None if v != v else v for k, v in found.items()} | why

    def _late(self) -> bool:
        return self.limit_s is not None and self.clock.now() >= self.limit_s - EPS

    def _due(self, step: int, now: float) -> bool:
        """Whether a picture is taken now."""
        if not self._runs_free:
            idle = not self._transit and not self._ready and self._free_at <= now + EPS
            rested = now >= self._captured + self.config.period_s - EPS
            wanted = rested and self.player.wants_next(now)
            if wanted and not idle and now >= self._release - EPS:
                self.monitor.skip()
                self._release = now + self.config.period_s
            return wanted and idle
        if step % self._every:
            return False
        self._think_until(now - 3 * EPS)  # what began between two steps
        free_in_time = self._free_at < now + self.config.transport_s + self.config.camera - EPS
        return free_in_time and self._period_of(now) > self._begun

    def _period_of(self, stamp_s: float) -> int:
        """The period that a picture belongs to."""
        return floor(stamp_s / self.config.period_s + 1e-6)

    def _count_last_periods(self, now: float) -> None:
        """Periods behind the last thought whose pictures can no longer be thought about."""
        if not self._runs_free:
            return
        since = now - self.config.transport_s + self.config.camera
        over = ceil(since / self.config.period_s - 1e-6) - 1  # their last picture has come
        waiting = {self._held, *(self._period_of(picture.stamp_s) for _, picture in self._transit)}
        lost = [period for period in range(self._begun + 1, over) if period not in waiting]
        self.monitor.skip(len(lost))

    def _capture(self, seen: Observation, now: float) -> None:
        arrival = now if self._gift() else now + self.config.transport_s
        self._captured, self._release = now, now + self.config.period_s
        self._transit.append((arrival, replace(seen, stamp_s=now)))

    def _gift(self) -> bool:
        """Whether this is the first chunk, with which the machine is handed over."""
        return self._first and self.config.handover

    def _serve(self, now: float) -> None:
        """All that happens by now between pictures and the actuator."""
        self._think_until(now)
        while self._ready and self._ready[0].at_s <= now + EPS:
            ready = self._ready.popleft()
            if ready.play:
                self._offer(ready.chunk, now)

    def _think_until(self, now: float) -> None:
        """Begin whatever could begin by now, in the order in which it does."""
        while self._free_at <= now + EPS:
            while self._transit and self._transit[0][0] <= self._free_at + EPS:
                self._arrive(self._transit.popleft()[1])
            picture, self._held = self.slot.take(self._free_at), None
            lost = self.slot.drops.overwritten + self.slot.drops.too_old
            if not self._runs_free:  # else periods are counted
                self.monitor.skip(lost - self._lost)
            self._lost = lost
            if picture is not None:
                self._begin(picture, self._free_at)
            elif self._transit and self._transit[0][0] <= now + EPS:
                self._free_at = self._transit[0][0]
            else:
                return

    def _arrive(self, picture: Observation) -> None:
        """Into the slot, if its period has not been thought about meanwhile."""
        period = self._period_of(picture.stamp_s)
        if not self._runs_free or period > self._begun:
            self.slot.put(picture, picture.stamp_s)
            self._held = period

    def _begin(self, picture: Observation, start: float) -> None:
        if self._runs_free:
            period = self._period_of(picture.stamp_s)
            self.monitor.skip(period - self._begun - 1)
            self._begun = period
        thought = self.think(picture, start)
        seconds, actuation = thought.seconds, self.config.actuation_s
        if self._gift():
            seconds = actuation = 0.0
        if self._first:
            self._check_hold(thought.chunk)
        self._first = False
        self._free_at = start + seconds
        ready = Ready(thought.chunk, self._free_at + actuation, not thought.hand_over)
        self._ready.append(ready)
        if thought.hand_over:
            self.player.halt(self.clock.now())
        self.monitor.cycle(picture.stamp_s, start, self._free_at + actuation)

    def _check_hold(self, chunk: ActionChunk) -> None:
        """Refuse a hold rule of another machine, with which no chunk would ever be played."""
        rows = chunk.actions
        try:
            self.config.hold_rule().after(rows[0], rows[:0], 0, chunk.dt_s)
        except ShapeError as error:
            raise ConfigError(f"realtime: {error}") from error

    def _offer(self, chunk: ActionChunk, now: float) -> None:
        frozen = float("-inf")
        runs = self.player.running_prefix(now, 1) is not None
        if runs and self.config.mode == "realtime_chunking":
            frozen = chunk.stamp_s + self.config.prefix * chunk.dt_s
        offer = self.player.offer(chunk, now, not_before=frozen)
        if offer.taken:
            self._paths[chunk.stamp_s] = chunk.actions
        elif offer.late:
            self._too_late += 1
        else:
            self._refused += 1
            self._why = self._why or offer.refused

    def _move(self, now: float) -> Move:
        command, plan = self.player.action(now), self.player.plan(now)
        self.monitor.command(now, command.age_s, command.source == "hold")
        if plan is None:
            path, elapsed = None if command.action is None else command.action[None], 0.0
        else:
            # A plan is looked ahead on: while it is fresh, all of it, not what is played alone.
            own = self._paths.get(plan.stamp_s) if plan.source == "chunk" else None
            path, elapsed = plan.actions if own is None else own, plan.elapsed_s
            self._paths = {t: rows for t, rows in self._paths.items() if t >= plan.stamp_s}
        fresh, self._path = path is not self._path, path
        return Move(command.action, path, elapsed, fresh)


def _steps(name: str, seconds: float, body: Moving) -> int:
    """Seconds in steps of the world."""
    steps = seconds / body.step_s
    if abs(steps - round(steps)) > 1e-6 or round(steps) < 1:
        raise ConfigError(
            f"realtime: {name} is {seconds:g}, and this world moves in steps of {body.step_s:g} s"
            "; give a multiple of that."
        )
    return round(steps)
