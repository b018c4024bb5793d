"""The split form without ROS: the pruner's loop, and the policy's loop on visual tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from vla_prune.errors import VlaPruneError
from vla_prune.runtime.clock import Clock, ClockWatch
from vla_prune.runtime.slot import NewestSlot
from vla_prune.types import ActionChunk, PolicyState
from vla_prune_ros.chunks import pack_chunk
from vla_prune_ros.contract import Contract, Source
from vla_prune_ros.pace import Pace
from vla_prune_ros.policy_loop import Buckets, Senses
from vla_prune_ros.split import Side, act, remember, see
from vla_prune_ros.states import StateKeeper
from vla_prune_ros.status import HOLDING, Health
from vla_prune_ros.tokens import (
    Scores,
    Tokens,
    pack_scores,
    pack_tokens,
    unpack_scores,
    unpack_tokens,
)

WAITING = 16  # scores that wait for the next call at most


class PrunerLoop:
    """Observations in, ``VisualTokens`` out; ``TokenScores`` in, for the action history.

    Args:
        senses: what it looks at; its ``on_reset`` becomes this loop's.
        side: the pruner's half.
        buckets: the budgets, one for each of the side's pruners.
        max_rate_hz: observations per second at most.
    """

    def __init__(
        self, senses: Senses, side: Side, buckets: Buckets, max_rate_hz: float = 30.0
    ) -> None:
        self.senses, self.side, self.buckets = senses, side, buckets
        self.pace = Pace(max_rate_hz)
        self.health, self.clock = senses.health, senses.clock
        self.health.tokens = side.adapter.layout.total
        self.health.keep_ratio = buckets.keep[buckets.index]
        senses.on_reset = self._forget
        self._forget()

    def begin(self) -> None:
        """At every activation: what was seen and remembered before is of another episode."""
        self.senses.reset()

    def set_budget(self, keep_ratio: float) -> float:
        """From the next observation on; returns what is in force."""
        self.health.keep_ratio = self.buckets.ask(keep_ratio)
        return self.health.keep_ratio

    def put_scores(self, message: Any) -> str:
        """A ``TokenScores``; returns why it is refused, empty if the next call remembers it."""
        try:
            scores = unpack_scores(message, self.side.hashes, self.side.adapter.layout.total)
        except VlaPruneError as error:
            self.health.refuses(str(error))
            return str(error)
        reason = self._foreign(scores)
        if not reason:
            self._came.append(scores)
        return reason

    def turn(self) -> dict[str, Any] | None:
        """The fields of a ``VisualTokens``, or None."""
        if self.senses.jumped() or not self.pace.ready(self.clock.steady()):
            return None
        health, state = self.health, self.state  # before the look: a reset from here on is seen
        sight = self.senses.look()
        if sight is None:
            return None
        self.pace.count(self.clock.steady())
        if sight.observation.instruction != state.instruction:
            self._since_tick = sight.origin.tick
        self._remember(state)
        try:
            tokens = see(self.side, sight.observation, sight.origin, state, self.buckets.index)
        except VlaPruneError as error:
            health.refuses(str(error))
            health.holds(str(error))
            return None
        if state is not self.state:
            health.refuses("visual tokens from before the reset were thrown away.")
            return None
        self.senses.tick += 1
        health.kept = {"projector": len(tokens.index)}
        health.age_s = self.clock.now() - sight.origin.stamp_s
        health.rate.count(self.clock.steady())
        health.runs()
        return pack_tokens(tokens, self.side.hashes)

    def _remember(self, state: PolicyState) -> None:
        """What came since the last call: the history changes between calls, never within one."""
        while self._came:
            scores = self._came.popleft()
            if not self._foreign(scores):
                remember(self.side, scores, state)

    def _foreign(self, scores: Scores) -> str:
        """Why scores are not of this history; empty, and counted as refused, if they are."""
        reason = ""
        if scores.origin.episode_id != self.health.episode_id:
            reason = f"token scores: refused: of the episode {scores.origin.episode_id!r}."
        elif scores.origin.tick < self._since_tick:
            reason = (
                f"token scores: refused: of tick {scores.origin.tick}, and the instruction "
                f"changed at tick {self._since_tick}."
            )
        if reason:
            self.health.refuses(reason)
        return reason

    def _forget(self) -> None:
        self.state = PolicyState()
        self._came: deque[Scores] = deque(maxlen=WAITING)
        self._since_tick = 0  # scores of earlier ticks are of another instruction


class TokenPolicyLoop:
    """``VisualTokens`` in, ``ActionChunk`` and ``TokenScores`` out.

    The episode is the pruner's: tokens of a new one clear all that is remembered. So does a jump
    of the clock. Without tokens it holds, and says whether they are late, ahead or missing.

    Args:
        contract: the topic map; its cameras are the pruner's.
        clock: of the node.
        health: of the node.
        side: the policy's half.
        buckets: the budgets, one for each of the side's pruners.
        names: of policy and recipe, for the messages.
        max_rate_hz: calls per second at most.
    """

    def __init__(
        self,
        contract: Contract,
        clock: Clock,
        health: Health,
        side: Side,
        buckets: Buckets,
        names: Sequence[str] = ("", ""),
        max_rate_hz: float = 30.0,
    ) -> None:
        self.pace = Pace(max_rate_hz)
        self.contract, self.clock, self.health = contract, clock, health
        self.side, self.buckets, self.names = side, buckets, tuple(names)
        self.states = StateKeeper(contract.states)
        self.slot = NewestSlot(min(s.max_age_s for s in contract.cameras))
        self.watch = ClockWatch()
        self.state = PolicyState()
        self._heard_s: float | None = None  # when tokens of an acceptable age came, message time
        self._age_s = 0.0  # of the last tokens on arrival
        self._pruner = ""  # what the pruner says of a fault
        health.drops = {"visual tokens": self.slot.drops}
        health.tokens = side.adapter.layout.total
        health.keep_ratio = buckets.keep[buckets.index]

    def begin(self) -> None:
        """At every activation: what came and was remembered before is forgotten."""
        self.reset()

    def set_budget(self, keep_ratio: float) -> float:
        """From the next call on; returns what is in force."""
        self.health.keep_ratio = self.buckets.ask(keep_ratio)
        return self.health.keep_ratio

    def put_tokens(self, message: Any) -> str:
        """A ``VisualTokens``; returns why it is refused, empty if it waits to be acted on."""
        try:
            adapter = self.side.adapter
            views, dim = adapter.layout.views, adapter.shape.hidden
            tokens = unpack_tokens(message, self.side.hashes, views, dim)
        except VlaPruneError as error:
            self.health.refuses(str(error))
            self.health.holds(str(error))
            return str(error)
        if tokens.origin.episode_id != self.health.episode_id:
            self.reset(tokens.origin.episode_id)
        now = self.clock.now()
        self._age_s = now - tokens.origin.stamp_s
        if abs(self._age_s) <= self.slot.max_age_s:
            self._heard_s, self._pruner = now, ""
        self.slot.put(tokens, tokens.origin.stamp_s)
        return ""

    def put_status(self, message: Any) -> None:
        """The pruner's ``PruneStatus``: its fault is told on, with its reason."""
        holds = message.state == HOLDING
        self._pruner = f"{message.node}: {message.reason}" if holds else ""

    def put_state(self, source: Source, message: Any) -> None:
        """A message of a state topic."""
        try:
            self.states.put(source, message, self.clock.now())
        except VlaPruneError as error:
            self.health.refuses(str(error))

    def reset(self, episode_id: str = "") -> str:
        """Forget everything; returns the episode in force: by default the pruner's goes on."""
        self.slot.reset()
        if not episode_id:  # else the new episode's states may have come before its tokens
            self.states.reset()
        self._heard_s = None
        self.state = PolicyState()
        self.health.episode_id = episode_id or self.health.episode_id
        return self.health.episode_id

    def turn(self) -> tuple[dict[str, Any], dict[str, Any] | None] | None:
        """The fields of an ``ActionChunk`` and of a ``TokenScores`` (if any); or None."""
        now, health = self.clock.now(), self.health
        jump = self.watch.check(self.clock)
        if jump is not None:
            self.reset()
            health.notes.append(str(jump))
            health.holds(str(jump))
            return None
        state = self.state  # before the tokens: a reset from here on is seen
        due = self.pace.ready(self.clock.steady())
        tokens = self.slot.take(now) if due else None
        if tokens is None:
            missing = self._missing(now)
            if missing:
                health.holds(missing)
            return None
        stale = self.states.stale(now)
        if stale:
            health.holds("; ".join(f"{topic} is stale" for topic in stale))
            return None
        self.pace.count(self.clock.steady())
        try:
            chunk, scores = act(self.side, tokens, self.states.join(), state, self.buckets.index)
        except VlaPruneError as error:
            health.refuses(str(error))
            health.holds(str(error))
            return None
        if state is not self.state:
            health.refuses("a chunk from before the reset was thrown away.")
            return None
        if not health.acts(chunk, self.clock):
            return None
        return self._told(tokens, chunk, scores)

    def _told(
        self, tokens: Tokens, chunk: ActionChunk, scores: Scores | None
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        told = pack_chunk(
            chunk,
            tokens.origin,
            self.contract.names,
            tokens.grids,
            tokens.instruction,
            *self.names,
            self.contract.sinks[0].frame_id,
        )
        return told, None if scores is None else pack_scores(scores, self.side.hashes)

    def _missing(self, now: float) -> str:
        """Why there are no tokens to act on; empty while there may soon be some."""
        limit = self.slot.max_age_s
        if self._pruner:
            return self._pruner
        if self._heard_s is not None and now - self._heard_s <= limit:
            return ""
        if self._age_s > limit:
            return (
                f"visual tokens are too old for use: {self._age_s:.2f} s on arrival, the limit is "
                f"{limit:g} s; the way is too slow, or the clocks differ."
            )
        if self._age_s < -limit:
            return (
                f"visual tokens are ahead of this clock by {-self._age_s:.2f} s; synchronise the "
                "clocks."
            )
        return (
            "" if self._heard_s is None else f"no visual tokens for {now - self._heard_s:.2f} s."
        )
