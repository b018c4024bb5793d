"""Plays episodes of a table in real time: the same results as `play.Player`, and their timing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from vla_prune_sim.play import Player, pruner_of
from vla_prune_sim.realtime.config import RealtimeConfig
from vla_prune_sim.realtime.latency import (
    Latency,
    LiveLatency,
    NoLatency,
    ProfileLatency,
    device_factor,
)
from vla_prune_sim.realtime.loop import EPS, RealtimeLoop, Thought
from vla_prune_sim.realtime.pilot import make_pilot
from vla_prune_sim.realtime.profiles import Rounds, checked
from vla_prune_sim.seats import BROKEN

from vla_prune.errors import ActionError
from vla_prune.policy import VLAPolicy, attach
from vla_prune.pruner import Pruner
from vla_prune.tune.pilot import Pilot
from vla_prune.types import Observation

if TYPE_CHECKING:
    from vla_prune_sim.rollout import Episode, Row, RunConfig


class RealtimePlayer(Player):
    """What one worker holds. One seat: thinking belongs to one machine.

    Args:
        config: the table, with its section ``realtime``.
        world: ``module:Class`` of the simulator.
    """

    def __init__(self, config: RunConfig, world: str) -> None:
        super().__init__(config, world, keep_frames=False)
        self.realtime: RealtimeConfig = config.realtime
        self._profiles: dict[str, Rounds] = {}

    def play(self, episodes: Sequence[Episode]) -> Iterator[dict[str, Any]]:
        """Results as they come, row after row."""
        for (suite, row, _), group in groupby(episodes, lambda e: (e.suite, e.row, e.setting)):
            if row.driver:
                yield from map(self._in_time, super().play(list(group)))
                continue
            adapter = self._adapter(suite)
            pruners = self._pruners(row)
            if self.realtime.latency == "profile" and suite not in self._profiles:
                # Before a recipe is attached, which puts its own name on the attention kernel.
                self._profiles[suite] = checked(self.config, suite, adapter)
            live = self.realtime.latency == "live"
            played = list(group)
            read = row.controller and self._pilot(played[0]).reads_signals
            with attach(pruners, adapter, live, signals=read) as policy:
                for episode in played:
                    yield self._played(episode, policy)

    def _in_time(self, result: dict[str, Any]) -> dict[str, Any]:
        """A reference driver's result: what took longer than a policy may take counts nothing."""
        limit = self.realtime.limit(result["suite"], result["task"])
        if limit is None or result["steps"] * self.seats[0].env.step_s <= limit + EPS:
            return result
        return {**result, "outcome": dict.fromkeys(result["outcome"], 0.0)}

    def _pruners(self, row: Row) -> list[Pruner]:
        """One, or one for each step of the controller's ladder."""
        cut = self.config.cut_layer
        if row.controller:
            ladder = self.realtime.for_row(row).ladder
            return [pruner_of(row, cut, keep) for keep in ladder]
        return [pruner_of(row, cut)]

    def _played(self, episode: Episode, policy: VLAPolicy) -> dict[str, Any]:
        run = self._begin(self.seats[0], episode)
        seat, realtime = run.seat, self.realtime.for_row(episode.row)
        limit = realtime.limit(episode.suite, episode.task)
        latency = self._latency(episode)
        pilot = self._pilot(episode) if episode.row.controller else None
        buckets: Counter[int] = Counter()

        def think(picture: Observation, now: float) -> Thought:
            decision = pilot.choose(now - picture.stamp_s) if pilot else None
            bucket = decision.rung if decision else 0
            begun = time.perf_counter()
            chunk = policy.act_one(picture, run.state, bucket)
            taken = time.perf_counter() - begun
            tokens = min([policy.adapter.layout.total, *map(len, chunk.kept.values())])
            seconds = latency.seconds(tokens, now, taken)
            if pilot:
                pilot.learn(bucket, seconds, chunk)
            buckets[bucket] += 1
            run.note(chunk)
            over = decision is not None and decision.hand_over
            return Thought(chunk, seconds, over and realtime.hand_over)

        told: dict[str, Any] = {"setting": episode.setting}
        told |= {name: True for name in ("controller", "tuned") if getattr(episode.row, name)}
        first = seat.look()
        if first.error:
            run.glimpse = first
            return self._result(run) | told
        loop = RealtimeLoop(realtime, seat.env, think, limit)
        try:
            loop.run(first.observation)
        except (ActionError, *BROKEN) as error:
            seat.fail(str(error))
        run.glimpse = seat.look()
        told["realtime"] = loop.figures()
        if pilot:
            ladder = realtime.ladder
            told["buckets"] = {f"{ladder[b]:g}": n for b, n in sorted(buckets.items())}
            told["handed_over"] = pilot.handed_over
        made = self._result(run) | told
        if realtime.latency != "live":
            made.pop("llm_ms", None)  # nothing was measured
        return made

    def _latency(self, episode: Episode) -> Latency:
        realtime = self.realtime
        setting = realtime.setting(episode.setting)
        if realtime.latency == "none":
            return NoLatency()
        if realtime.latency == "live":
            return LiveLatency(setting)
        rounds = self._profiles[episode.suite]
        factor = device_factor(rounds.dense, setting, realtime.period_s)
        seed = [realtime.seed, episode.task, episode.state]
        times = rounds.of(episode.row.recipe, realtime.charged_as)
        return ProfileLatency(times, factor, setting.load, seed)

    def _pilot(self, episode: Episode) -> Pilot:
        realtime = self.realtime.for_row(episode.row)
        setting = realtime.setting(episode.setting)
        return make_pilot(realtime, self._profiles[episode.suite], setting)
