"""The command node without ROS: chunks in, one limited command per tick out, or the hold."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from threading import RLock
from typing import Any

import numpy as np

from vla_prune.errors import VlaPruneError
from vla_prune.runtime.chunks import ChunkPlayer
from vla_prune.runtime.clock import Clock, ClockWatch
from vla_prune.runtime.deadline import DeadlineMonitor
from vla_prune_ros.chunks import unpack_chunk
from vla_prune_ros.commands import PLANS, command_fields
from vla_prune_ros.contract import Contract
from vla_prune_ros.states import pick
from vla_prune_ros.status import HOLDING, Health

FUTURE_S = 0.1  # a stamp further ahead means that the clocks disagree


@dataclass(frozen=True)
class Tick:
    """What one tick sends.

    Attributes:
        action: ``[A]``, limited; None if nothing can be commanded yet.
        source: ``chunk`` or ``hold``.
        age_s: of the oldest image behind it; infinite if there is none.
        messages: topic -> fields of its message.
        limited: whether a limit changed it.
    """

    action: np.ndarray | None
    source: str
    age_s: float
    messages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    limited: bool = False


class CommandLoop:
    """Plays chunks.

    Args:
        contract: limits, hold and sinks.
        clock: of the node.
        health: of the node.
        execute: rows of a chunk played at most.
        join: how a new chunk takes over.
        align: what row 0 belongs to.
        max_action_age_s: older actions are replaced by the hold; None takes the contract's.
        deadline_s: a tick has to end within it; None for one period.
        heartbeat_timeout_s: without a status of the policy for so long: hold.
    """

    def __init__(
        self,
        contract: Contract,
        clock: Clock,
        health: Health,
        execute: int = 8,
        join: str = "replace",
        align: str = "observation",
        max_action_age_s: float | None = None,
        deadline_s: float | None = None,
        heartbeat_timeout_s: float = 1.0,
    ) -> None:
        self.contract, self.clock, self.health = contract, clock, health
        self.period_s = 1.0 / contract.rate_hz
        age = max_action_age_s or contract.max_action_age_s
        self.player = ChunkPlayer(execute, contract.hold, join, align, max_age_s=age)
        self.limits, self.heartbeat_timeout_s = contract.limits, heartbeat_timeout_s
        health.deadline = DeadlineMonitor(deadline_s or self.period_s)
        self.watch = ClockWatch()
        self.lock = RLock()
        self._chunk_dt_s = self.period_s
        self._episode, self._over = "", deque(maxlen=100)
        self._sent: tuple[np.ndarray, float] | None = None
        # What the first command may differ from by one period's rate, where that can be measured.
        self.measured = contract.measured if contract.limits.rate is not None else None
        self._stands: tuple[np.ndarray, float] | None = None  # [A], and when it came
        self._life: float | None = None  # steady time of the policy's last sign of life
        self._fault = ""  # why the machine was told to hold

    def put_chunk(self, message: Any) -> str:
        """An ``ActionChunk``; returns why it is refused, empty if it is played."""
        with self.lock:
            refused = self._chunk(message)
            if refused:
                self.health.refuses(refused)
            return refused

    def put_status(self, message: Any) -> None:
        """The policy's ``PruneStatus``: its sign of life, and what it says of a fault."""
        with self.lock:
            self._life = self.clock.steady()
            if message.state == HOLDING:
                self._halt(f"{message.node}: {message.reason}")

    def put_state(self, message: Any) -> None:
        """Where the machine stands, from the topic ``measured``."""
        with self.lock:
            names = [f"position.{name}" for name in self.contract.names]
            try:
                stands = pick(message, names, self.measured.topic)
            except VlaPruneError as error:
                self.health.refuses(str(error))
            else:
                self._stands = (stands, self.clock.steady())

    def begin(self) -> None:
        """As new: nothing is sent before a chunk, for the machine may have been moved."""
        with self.lock:
            self.player.reset()
            self.watch = ClockWatch(rate=self.watch.rate)
            self._episode, self._fault = "", ""
            self._sent = self._life = self._stands = None

    def reset(self, moved: bool = False) -> None:
        """Forget chunk and order; the machine holds until the next chunk.

        Args:
            moved: it was put elsewhere meanwhile, as by a simulator, so that there is nothing to
                go on from: neither a hold nor a command that the next may differ little from.
        """
        with self.lock:
            if self._episode:
                self._over.append(self._episode)
            self._episode = ""
            if moved:
                self.begin()
            else:
                self._halt("a reset was asked for.")

    def halt(self, reason: str) -> None:
        """Hold until the next chunk; the episode goes on."""
        with self.lock:
            self._halt(reason)

    def set_limit_scale(self, scale: float) -> None:
        """Allow this share of the contract's rates."""
        rate = self.contract.limits.rate
        if rate is not None:
            self.limits = replace(self.contract.limits, rate=[scale * r for r in rate])

    def tick(self, release_s: float | None = None) -> Tick:
        """One command.

        Args:
            release_s: steady time at which the tick was due; None for now.
        """
        with self.lock:
            start = self.clock.steady()
            jump = self.watch.check(self.clock)
            now = self.clock.now()
            if jump is not None:
                self._fault = str(jump)
                self.player.restart(now)
                self.health.notes.append(str(jump))
            if self._life is not None and start - self._life > self.heartbeat_timeout_s:
                silent = start - self._life
                self._halt(f"no sign of life of the policy for {silent:.2f} s.")
            made = self._command(now, start)
            monitor = self.health.deadline
            cycle = monitor.cycle(
                start if release_s is None else release_s, start, self.clock.steady()
            )
            self.health.slack_s = cycle.slack_s
            if made.action is not None:
                monitor.command(start, made.age_s, made.source == "hold")
                self.health.rate.count(start)
            return made

    def _chunk(self, message: Any) -> str:
        now = self.clock.now()
        if message.episode_id in self._over:
            return (
                f"action chunk: refused: it belongs to the episode {message.episode_id!r}, which "
                "is over."
            )
        try:
            chunk = unpack_chunk(message, self.contract.names)
        except VlaPruneError as error:
            self._halt(str(error))
            return str(error)
        if chunk.stamp_s > now + FUTURE_S:
            return (
                f"action chunk: refused: its image is {chunk.stamp_s - now:.2f} s ahead of "
                "this clock; synchronise the clocks (chrony or PTP)."
            )
        if message.episode_id != self._episode:
            if self._episode:
                self._over.append(self._episode)
            self._episode = self.health.episode_id = message.episode_id
            self.player.restart(now)
        offer = self.player.offer(chunk, now)
        if offer.taken:
            self._fault, self._chunk_dt_s = "", chunk.dt_s
        elif not np.isfinite(chunk.actions).all():
            self._halt(offer.refused)
        return offer.refused

    def _command(self, now: float, steady: float) -> Tick:
        if self._unplaced(steady):
            return self._wait_for_place()
        command = self.player.action(now)
        action, source, age = command.action, command.source, command.age_s
        limited = None
        if action is not None:
            previous, dt_s = self._before(steady)
            limited = self.limits.limit(action, previous, dt_s)
            if limited.action is None:
                self.health.refuses(limited.refused)
                self._fault = limited.refused
                self.player.halt(now, refused=True)
                action, source = self.player.action(now).action, "hold"
                if action is not None:
                    limited = self.limits.limit(action, previous, dt_s)
        self._tell(source, age)
        if limited is None or limited.action is None:
            return Tick(None, "hold", age)
        self._sent = (limited.action, steady)
        self.player.sent(limited.action)
        stamp = now if source == "hold" or not np.isfinite(age) else now - age
        rows = limited.action[None]
        plan, once, messages = self._plan(rows, now), (rows, self.period_s, stamp), {}
        for sink in self.contract.sinks:
            sent, dt_s, at = plan if sink.type in PLANS else once
            messages[sink.topic] = command_fields(
                sink.type, sent, sink.names, dt_s, at, sink.frame_id
            )
        return Tick(limited.action, source, age, messages, bool(limited.changed.any()))

    def _wait_for_place(self) -> Tick:
        """Nothing is played, so that no hold goes to a row that was never sent."""
        self._tell("hold", float("inf"))
        if self._episode and not self._fault:
            topic = self.measured.topic
            self.health.waits(f"nothing is sent before {topic!r} says where the machine stands.")
        return Tick(None, "hold", float("inf"))

    def _unplaced(self, steady: float) -> bool:
        """Whether a first command is due and it can, but is not known where the machine stands."""
        if self._sent is not None or self.measured is None:
            return False
        return self._stands is None or steady - self._stands[1] > self.measured.max_age_s

    def _before(self, steady: float) -> tuple[np.ndarray | None, float]:
        """What the next command follows on, ``[A]`` or None, and the time that the rate has.

        A receiver takes one period to get there, however late the tick is.
        """
        if self._sent is not None:
            return self._sent[0], min(steady - self._sent[1], self.period_s)
        return None if self._stands is None else self._stands[0], self.period_s

    def _plan(self, rows: np.ndarray, now: float) -> tuple[np.ndarray, float, float]:
        """All rows of a plan from its row 0 on, the hold rule's behind them; dt; stamp.

        Places are in the vehicle's frame at that stamp: a reader moves them on by its odometry.
        """
        plan = self.player.plan(now)
        if plan is None:
            return rows, self._chunk_dt_s, now
        low, high = self.limits.low, self.limits.high
        actions = np.clip(plan.actions, low, high) if low or high else plan.actions
        return actions, plan.dt_s, now - plan.elapsed_s

    def _tell(self, source: str, age_s: float) -> None:
        health = self.health
        health.age_s = age_s
        if source == "chunk":
            health.runs()
        elif self._fault:
            health.holds(self._fault)
        elif not self._episode:
            health.waits("no chunk came yet.")
        else:
            health.holds(f"the newest image behind a chunk is {age_s:.2f} s old.")

    def _halt(self, reason: str) -> None:
        """Hold where the last action that was sent has left the machine."""
        self._fault = reason
        self.player.halt(self.clock.now())
