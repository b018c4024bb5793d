"""LIBERO while the policy thinks."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest
from vla_prune_sim.libero.world import LiberoWorld
from vla_prune_sim.realtime.config import RealtimeConfig
from vla_prune_sim.realtime.loop import RealtimeLoop, Thought
from vla_prune_sim.realtime.move import Move

from vla_prune.errors import ConfigError
from vla_prune.types import ActionChunk, Observation

pytestmark = pytest.mark.libero

STAND = {"name": "hold", "action": [0, 0, 0, 0, 0, 0, -1], "keep": [6]}


def chunk(number: int, seen: Observation) -> ActionChunk:
    """The same eight rows for the same call; a little of what is seen in them."""
    rows = np.random.default_rng(number).uniform(-0.3, 0.3, (8, 7)).astype(np.float32)
    rows[:, 0] += np.float32(seen.images["wrist"].mean() / 2560)
    return ActionChunk(rows, 0.05, seen.stamp_s)


@pytest.mark.parametrize("mode", ["synchronous", "overlap", "asynchronous", "realtime_chunking"])
def test_without_latency_it_is_the_frozen_rollout_bit_for_bit(mode: str) -> None:
    episodes = LiberoWorld(image_size=32, look="fast").open("libero_object", 0)
    try:
        episodes.env.max_steps = 14
        scene, calls = episodes.env.scene(), count()

        def state() -> np.ndarray:
            return np.concatenate([scene.data.qpos, scene.data.qvel])

        seen = episodes.start(30, seed=1)
        while not episodes.over:
            seen = episodes.advance(chunk(next(calls), seen).actions[:2])
        frozen = state(), episodes.outcome, episodes.steps

        again = count()
        config = RealtimeConfig(0.1, 2, STAND, mode=mode, lead=2 * (mode == "overlap"))
        loop = RealtimeLoop(
            config, episodes, lambda seen, now: Thought(chunk(next(again), seen), 0.0)
        )
        loop.run(episodes.start(30, seed=1))
        assert np.array_equal(state(), frozen[0])
        assert (episodes.outcome, episodes.steps) == frozen[1:]
        assert loop.figures()["misses"] == 0
    finally:
        episodes.close()


def test_the_arm_stands_while_it_waits_and_needs_to_be_told_how() -> None:
    episodes = LiberoWorld(image_size=16, look="fast").open("libero_object", 0)
    try:
        start = episodes.start(30, seed=1)
        config = RealtimeConfig(0.1, 2, STAND)
        loop = RealtimeLoop(
            config, episodes, lambda seen, now: Thought(chunk(0, seen), 99.0), limit_s=0.5
        )
        loop.run(start)
        assert episodes.steps == 10
        assert loop.figures()["stale_ratio"] == 1.0
        moved = np.abs(episodes.observe().state[:3] - start.state[:3]).max()
        assert moved < 0.01
        with pytest.raises(ConfigError, match="the hold rule commands nothing before the first"):
            episodes.move(Move(None, None, 0.0, True))
    finally:
        episodes.close()
