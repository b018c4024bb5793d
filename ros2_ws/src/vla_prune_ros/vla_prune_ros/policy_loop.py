"""The policy node without ROS: messages in, fields of an ``ActionChunk`` out.

Also the pruner node's first half: what an observation is made of, and when there is none.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import RLock
from typing import Any, Protocol

from vla_prune.errors import ConfigError, VlaPruneError
from vla_prune.runtime.clock import Clock, ClockWatch
from vla_prune.runtime.deadline import DeadlineMonitor
from vla_prune.tune.pilot import Pilot
from vla_prune.types import ActionChunk, Observation, PolicyState
from vla_prune_ros.cameras import Cameras, Views
from vla_prune_ros.chunks import pack_chunk
from vla_prune_ros.contract import Contract, Source
from vla_prune_ros.pace import Pace
from vla_prune_ros.states import StateKeeper
from vla_prune_ros.status import Health
from vla_prune_ros.tokens import Grid, Origin


@dataclass(frozen=True)
class Sight:
    """An observation, and where it came from."""

    observation: Observation
    origin: Origin
    stamps_s: Mapping[str, float]


class Senses:
    """Gathers cameras, states and instruction; says when they make an observation.

    A jump of the clock, and a reset, begin a new episode: frames, states and whatever
    ``on_reset`` clears are forgotten. A new instruction does not: the policy clears its own
    history, and says so.

    Args:
        contract: the topic map.
        clock: of the node.
        health: of the node; told why there is nothing to act on.
        instruction: until a task comes.
        on_reset: called with every new episode.
    """

    def __init__(
        self,
        contract: Contract,
        clock: Clock,
        health: Health,
        instruction: str = "",
        on_reset: Callable[[], None] = lambda: None,
    ) -> None:
        self.contract, self.clock, self.health = contract, clock, health
        self.instruction = instruction or contract.instruction
        self.on_reset = on_reset
        self.cameras = Cameras(contract.cameras, contract.tolerance_s)
        health.drops = self.cameras.sync.drops
        self.states = StateKeeper(contract.states)
        self.watch = ClockWatch()
        self.lock = RLock()
        self.tick = 0
        self._used: deque[str] = deque(maxlen=100)  # episodes that are over for the command node
        self.reset()

    def put_image(self, camera: str, message: Any) -> bool:
        """A camera's message."""
        return self.cameras.put(camera, message, self.clock.now())

    def put_state(self, source: Source, message: Any) -> None:
        """A message of a state topic; one that cannot be read is refused and counted."""
        try:
            self.states.put(source, message, self.clock.now())
        except VlaPruneError as error:
            self.health.refuses(str(error))

    def put_task(self, text: str) -> None:
        """A new instruction."""
        self.instruction = text.strip()

    def reset(self, episode_id: str = "") -> str:
        """Begin a new episode; returns its id: the one asked for, made unique if it was used."""
        with self.lock:
            fresh = uuid.uuid4().hex[:12]
            if episode_id in self._used:
                episode_id = f"{episode_id}-{fresh}"
            self.health.episode_id = episode_id or fresh
            self._used.append(self.health.episode_id)
            self.tick = 0
            self.cameras.reset()
            self.states.reset()
            self.on_reset()
            return self.health.episode_id

    def jumped(self) -> bool:
        """Whether message time jumped since the last look; a new episode has then begun."""
        jump = self.watch.check(self.clock)
        if jump is None:
            return False
        self.reset()
        self.health.notes.append(str(jump))
        self.health.holds(str(jump))
        return True

    def look(self) -> Sight | None:
        """The newest observation, once; None with the reason in ``health``."""
        with self.lock:  # a reset comes before or after, not amid
            return self._look()

    def _look(self) -> Sight | None:
        now = self.clock.now()
        views = self._views(now)
        stale = self.states.stale(now)
        if stale:
            told = [
                f"{topic} {f'stale for {age:.2f} s' if abs(age) < 1e6 else 'has sent nothing yet'}"
                for topic, age in stale.items()
            ]
            self.health.holds("; ".join(told))
            return None
        if views is None:
            return None
        if not self.instruction:
            self.health.waits("no instruction yet; send one to the task topic.")
            return None
        observation = Observation(
            views.images, self.instruction, self.states.join(), views.stamp_s
        )
        origin = Origin(self.health.episode_id, self.tick, views.stamp_s)
        return Sight(observation, origin, views.stamps_s)

    def _views(self, now: float) -> Views | None:
        try:
            views = self.cameras.take(now)
        except VlaPruneError as error:
            self.health.refuses(str(error))
            self.health.holds(str(error))
            return None
        silent = self.cameras.silent(now) if views is None else ""
        if silent:
            self.health.holds(silent)
        return views


class BucketPolicy(Protocol):
    """What the loop asks of a policy; :class:`vla_prune.policy.VLAPolicy` is one."""

    def new_state(self) -> PolicyState:
        """A state that remembers nothing."""
        ...

    def act_one(
        self, observation: Observation, state: PolicyState, bucket: int = 0
    ) -> ActionChunk:
        """One chunk; the state is updated in place."""
        ...


@dataclass
class Buckets:
    """The budgets that a policy was attached with.

    Attributes:
        keep: keep ratios, one a bucket.
        asked: the keep ratio that was asked for.
        index: the bucket in force.
    """

    keep: Sequence[float]
    asked: float = 1.0
    index: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        """Choose the first one."""
        self.ask(self.asked)

    def ask(self, keep_ratio: float) -> float:
        """The largest bucket not above; what is in force is returned.

        Raises:
            ConfigError: no bucket is that small, or no ratio at all.
        """
        fitting = [k for k in self.keep if k <= keep_ratio * (1 + 1e-6)]
        if not 0 < keep_ratio <= 1 or not fitting:
            known = ", ".join(f"{k:g}" for k in self.keep)
            raise ConfigError(
                f"budget: keep_ratio {keep_ratio:g} has no bucket at or below it; the buckets are "
                f"{known}, and others need a new configure."
            )
        self.asked, self.index = keep_ratio, list(self.keep).index(max(fitting))
        return self.keep[self.index]


class PolicyLoop:
    """Acts on every observation that its rate allows.

    Args:
        senses: what it acts on; its ``on_reset`` becomes this loop's.
        policy: attached, with one bucket for each of ``buckets``.
        buckets: the budgets.
        grids: the policy's camera views, in order.
        max_rate_hz: calls per second at most.
        policy_name: for the messages.
        recipe_name: for the messages.
        pilot: picks the bucket of each call, among those not above the budget that was asked for;
            None runs at that budget.
    """

    def __init__(
        self,
        senses: Senses,
        policy: BucketPolicy,
        buckets: Buckets,
        grids: Sequence[Grid],
        max_rate_hz: float = 30.0,
        policy_name: str = "",
        recipe_name: str = "",
        pilot: Pilot | None = None,
    ) -> None:
        self.senses, self.policy, self.buckets, self.grids = senses, policy, buckets, grids
        self.pace = Pace(max_rate_hz)
        self.names = policy_name, recipe_name
        self.health, self.clock = senses.health, senses.clock
        self.health.tokens = sum(grid.size for grid in grids)
        self.health.keep_ratio = buckets.keep[buckets.index]
        self.state = policy.new_state()
        senses.on_reset = self._forget
        self.pilot = pilot
        self.set_deadline(0.0)

    def begin(self) -> None:
        """At every activation: what was seen and remembered before is of another episode."""
        self.senses.reset()

    def set_budget(self, keep_ratio: float) -> float:
        """From the next call on; returns what is in force. Raises as :meth:`Buckets.ask` does."""
        self.health.keep_ratio = self.buckets.ask(keep_ratio)
        return self.health.keep_ratio

    def set_deadline(self, seconds: float) -> None:
        """What a call may take from its picture on; 0 for what the controller's config says.

        Raises:
            ConfigError: there is no controller, or its fastest bucket takes longer.
        """
        if self.pilot is None:
            if seconds:
                raise ConfigError("deadline_ms: there is no controller to keep it; name one.")
            return
        self.pilot.set_period(seconds)
        self.health.deadline = DeadlineMonitor(self.pilot.controller.config.period_s)

    def turn(self) -> dict[str, Any] | None:
        """Act if there is something to act on: the fields of an ``ActionChunk``, or None.

        What the policy refuses (:class:`VlaPruneError`) is counted and named, the loop goes on;
        any other exception is a crash and the node's to handle.
        """
        if self.senses.jumped() or not self.pace.ready(self.clock.steady()):
            return None
        sight = self.senses.look()
        if sight is None:
            return None
        begun = self.clock.steady()
        self.pace.count(begun)
        state, late = self.state, self.clock.now() - sight.observation.stamp_s
        decision, bucket = None, self.buckets.index
        if self.pilot is not None:
            decision = self.pilot.choose(late)
            bucket = max(bucket, decision.rung)
        try:
            chunk = self.policy.act_one(sight.observation, state, bucket)
        except VlaPruneError as error:
            self.health.refuses(str(error))
            self.health.holds(str(error))
            return None
        if decision is not None:
            self._timed(bucket, chunk, begun, late)
        if decision is not None and decision.hand_over:
            # The policy goes on at the floor, so that an end of the load is seen.
            self.health.notes.extend(chunk.notes)
            self.health.holds(
                f"even the smallest budget, {decision.keep_ratio:g}, misses the deadline of "
                f"{1e3 * self.health.deadline.period_s:.0f} ms."
            )
            return None
        return self._told(sight, chunk)

    def _timed(self, bucket: int, chunk: ActionChunk, begun: float, late: float) -> None:
        """Tell the pilot and the status what a call took.

        Args:
            bucket: that it ran at.
            chunk: that it made.
            begun: steady time of its start, seconds.
            late: how old its picture was then, seconds.
        """
        ended, health = self.clock.steady(), self.health
        self.pilot.learn(bucket, ended - begun, chunk)
        health.slack_s = health.deadline.cycle(begun - late, begun, ended).slack_s
        health.keep_ratio, health.ladder_step = self.buckets.keep[bucket], bucket

    def _told(self, sight: Sight, chunk: ActionChunk) -> dict[str, Any] | None:
        health = self.health
        if sight.origin.episode_id != health.episode_id:
            health.refuses("a chunk of the episode before the reset was thrown away.")
            return None
        if not health.acts(chunk, self.clock):
            return None
        self.senses.tick += 1
        grids = [
            Grid(g.name, g.rows, g.cols, sight.stamps_s.get(g.name, chunk.stamp_s))
            for g in self.grids
        ]
        policy, recipe = self.names
        contract = self.senses.contract
        return pack_chunk(
            chunk,
            sight.origin,
            contract.names,
            grids,
            sight.observation.instruction,
            policy,
            recipe,
            contract.sinks[0].frame_id,
        )

    def _forget(self) -> None:
        self.state = self.policy.new_state()
