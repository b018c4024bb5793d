"""The split form without ROS: the pruner's loop, and the policy's loop on visual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vla_prune.errors import VlaPruneError
from vla_prune.runtime.clock import Clock
from vla_prune.runtime.slot import NewestSlot
from vla_prune.types import PolicyState
from vla_prune_ros.chunks import pack_chunk
from vla_prune_ros.contract import Contract, Source
from vla_prune_ros.pace import Pace
from vla_prune_ros.policy_loop import Buckets, Senses
from vla_prune_ros.split import Side, act, remember, see
from vla_prune_ros.states import StateKeeper
from vla_prune_ros.status import Health
from vla_prune_ros.tokens import Grid, pack_scores, pack_tokens, unpack_scores, unpack_tokens


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
        self.state = PolicyState()
        senses.on_reset = self._forget

    def set_budget(self, keep_ratio: float) -> float:
        """From the next observation on; returns what is in force."""
        self.health.keep_ratio = self.buckets.ask(keep_ratio)
        return self.health.keep_ratio

    def put_scores(self, message: Any) -> str:
        """A ``TokenScores``; returns why it is refused, empty if it is remembered."""
        try:
            scores = unpack_scores(message, self.side.hashes)
        except VlaPruneError as error:
            self.health.refuses(str(error))
            return str(error)
        if scores.origin.episode_id != self.health.episode_id:
            reason = f"token scores: refused: of the episode {scores.origin.episode_id!r}."
            self.health.refuses(reason)
            return reason
        remember(self.side, scores, self.state)
        return ""

    def turn(self) -> dict[str, Any] | None:
        """The fields of a ``VisualTokens``, or None."""
        if self.senses.jumped() or not self.pace.ready(self.clock.steady()):
            return None
        sight = self.senses.look()
        if sight is None:
            return None
        self.pace.count(self.clock.steady())
        health = self.health
        try:
            tokens = see(
                self.side, sight.observation, sight.origin, self.state, self.buckets.index
            )
        except VlaPruneError as error:
            health.refuses(str(error))
            health.holds(str(error))
            return None
        self.senses.tick += 1
        health.kept = {"projector": len(tokens.index)}
        health.age_s = self.clock.now() - sight.origin.stamp_s
        health.rate.count(self.clock.steady())
        health.runs()
        return pack_tokens(tokens, self.side.hashes)

    def _forget(self) -> None:
        self.state = PolicyState()


class TokenPolicyLoop:
    """``VisualTokens`` in, ``ActionChunk`` and ``TokenScores`` out.

    The episode is the pruner's: tokens of a new one clear all that is remembered.

    Args:
        contract: the topic map; its cameras are the pruner's.
        clock: of the node.
        health: of the node.
        side: the policy's half.
        buckets: the budgets, one for each of the side's pruners.
        names: of policy and recipe, for the messages.
    """

    def __init__(
        self,
        contract: Contract,
        clock: Clock,
        health: Health,
        side: Side,
        buckets: Buckets,
        names: Sequence[str] = ("", ""),
    ) -> None:
        self.contract, self.clock, self.health = contract, clock, health
        self.side, self.buckets, self.names = side, buckets, tuple(names)
        self.states = StateKeeper(contract.states)
        self.slot = NewestSlot(min(s.max_age_s for s in contract.cameras))
        self.state = PolicyState()
        health.tokens = side.adapter.layout.total
        health.keep_ratio = buckets.keep[buckets.index]

    def set_budget(self, keep_ratio: float) -> float:
        """From the next call on; returns what is in force."""
        self.health.keep_ratio = self.buckets.ask(keep_ratio)
        return self.health.keep_ratio

    def put_tokens(self, message: Any) -> str:
        """A ``VisualTokens``; returns why it is refused, empty if it waits to be acted on."""
        try:
            tokens = unpack_tokens(message, self.side.hashes)
        except VlaPruneError as error:
            self.health.refuses(str(error))
            self.health.holds(str(error))
            return str(error)
        if tokens.origin.episode_id != self.health.episode_id:
            self.reset(tokens.origin.episode_id)
        self.slot.put(tokens, tokens.origin.stamp_s)
        return ""

    def put_state(self, source: Source, message: Any) -> None:
        """A message of a state topic."""
        try:
            self.states.put(source, message, self.clock.now())
        except VlaPruneError as error:
            self.health.refuses(str(error))

    def reset(self, episode_id: str = "") -> str:
        """Forget everything; returns the episode that begins."""
        self.slot.reset()
        self.state = PolicyState()
        self.health.episode_id = episode_id
        return episode_id

    def turn(self) -> tuple[dict[str, Any], dict[str, Any] | None] | None:
        """The fields of an ``ActionChunk`` and of a ``TokenScores`` (if any); or None."""
        now, health = self.clock.now(), self.health
        tokens = self.slot.take(now)
        if tokens is None:
            return None
        stale = self.states.stale(now)
        if stale:
            health.holds("; ".join(f"{topic} is stale" for topic in stale))
            return None
        try:
            chunk, scores = act(
                self.side, tokens, self.states.join(), self.state, self.buckets.index
            )
        except VlaPruneError as error:
            health.refuses(str(error))
            health.holds(str(error))
            return None
        health.kept = {site: len(index) for site, index in chunk.kept.items()}
        health.age_s = self.clock.now() - chunk.stamp_s
        health.notes.extend(chunk.notes)
        health.rate.count(self.clock.steady())
        health.runs()
        grids: tuple[Grid, ...] = tokens.grids
        told = pack_chunk(
            chunk,
            tokens.origin,
            self.contract.names,
            grids,
            tokens.instruction,
            *self.names,
            self.contract.sinks[0].frame_id,
        )
        return told, None if scores is None else pack_scores(scores, self.side.hashes)
