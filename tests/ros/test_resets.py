"""Nothing of one simulated episode lives on in the next: neither history, nor chunk, nor hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("rosbags")

from vla_prune_ros import wire
from vla_prune_ros.command_loop import CommandLoop
from vla_prune_ros.policy_loop import PolicyLoop
from vla_prune_ros.status import Health
from vla_prune_sim_bridge.bridge import Bridge, Shown
from vla_prune_sim_bridge.resets import AGAIN_S, Resets

from vla_prune.runtime.clock import ManualClock
from vla_prune.types import Observation

from .scene import CHUNK, IMAGE, START_S, chunk, contract, fused, joints

STEP_S = 0.05


class Yard:
    """A robot of two cameras and five joints; an episode takes six commands."""

    step_s, over = STEP_S, True

    def open(self, suite: str, task: int) -> Yard:
        return self

    def start(self, state: int, seed: int) -> Observation:
        self.over, self.moves, self.draw = False, [], np.random.default_rng(seed)
        return self.observe()

    def observe(self) -> Observation:
        images = {
            name: self.draw.integers(0, 256, (48, 48, 3), np.uint8) for name in ("image", "wrist")
        }
        return Observation(images, "pick up the bowl", np.full(5, 0.1, np.float32))

    def move(self, move) -> None:
        self.moves.append(move)
        self.over, self.outcome = len(self.moves) >= 6, {}

    def close(self) -> None:
        self.over = True


class Peer:
    """A node's reset, which may be absent or silent."""

    def __init__(self, name: str, reset: Callable[[], object] = lambda: None) -> None:
        self.name, self.reset = name, reset
        self.asked, self.present, self.silent, self.done = 0, True, False, False

    def there(self) -> bool:
        return self.present

    def ask(self) -> None:
        self.asked, self.done = self.asked + 1, not self.silent
        if self.done:
            self.reset()

    def answered(self) -> bool:
        return self.done


class Graph:
    """The bridge, a fused policy and a command node, as if on topics."""

    def __init__(self, loop: PolicyLoop, clock: ManualClock) -> None:
        self.loop, self.clock = loop, clock
        declared = {"limits": {}, "hold": {"name": "hold", "action": [0.0, 0.0]}}
        self.commander = CommandLoop(contract(**declared), clock, Health("command_node"))
        peers = [
            Peer("policy_node", loop.senses.reset),
            Peer("command_node", lambda: self.commander.reset(moved=True)),
        ]
        world = f"{__name__}:Yard"
        self.bridge = Bridge(world, {}, "yard", 0, start_s=START_S, peers=peers)
        self.peers = {peer.name: peer for peer in peers}

    def turn(self) -> Shown | None:
        """A step of the world, a call of the policy, a command."""
        shown = self.bridge.turn(self.clock.steady())
        if shown is not None:
            self.clock.advance(shown.time_s - self.clock.now())
            for camera, fields in shown.images.items():
                self.loop.senses.put_image(camera, wire.make(IMAGE, fields))
            source = self.loop.senses.contract.states[0]
            self.loop.senses.put_state(source, joints(shown.time_s))
        made = self.loop.turn()
        if made is not None:
            assert self.commander.put_chunk(wire.make(CHUNK, made)) == ""
        command = self.commander.tick()
        if command.action is not None:
            now = self.clock.now()
            stamp = now - command.age_s if command.source == "chunk" else now
            self.bridge.put_action(chunk(stamp, [command.action]))
        return shown

    def episode(self) -> None:
        """Turns until one is over."""
        while not self.turn().over:
            pass


@contextmanager
def graph() -> Iterator[Graph]:
    with fused(keep=(0.5,)) as (loop, _, clock):
        yield Graph(loop, clock)


def test_an_episode_begins_without_the_history_of_the_one_before() -> None:
    with graph() as on:
        on.episode()
        first = on.loop.health.episode_id
        assert on.loop.state.tick > 1
        assert on.loop.state.history
        assert not on.turn().over
        assert on.loop.health.episode_id != first
        assert (on.loop.state.tick, on.loop.senses.tick) == (1, 1)  # of the new one's first frame
        assert all(len(entries) == 1 for entries in on.loop.state.history.values())


def test_an_episode_begins_without_the_chunk_and_the_hold_of_the_one_before() -> None:
    with graph() as on:
        on.episode()
        old = on.loop.health.episode_id
        assert on.commander.tick().source == "chunk"
        on.bridge.turn(on.clock.steady())
        begun = on.commander.tick()
        np.testing.assert_array_equal(begun.action, [0.0, 0.0])
        assert on.commander.health.reason == "no chunk came yet."
        late = chunk(on.clock.now(), episode=old, tick=9)
        assert "which is over" in on.commander.put_chunk(late)


def test_the_next_episode_waits_for_whoever_has_not_forgotten() -> None:
    with graph() as on:
        on.episode()
        silent = on.peers["policy_node"]
        asked, silent.silent = silent.asked, True
        for _ in range(3):
            assert on.turn() is None
        assert on.bridge.waits_for == "policy_node"
        assert silent.asked == asked + 1
        silent.silent = False
        assert on.bridge.turn(on.clock.steady() + 2 * AGAIN_S) is not None
        assert silent.asked == asked + 2
        assert on.bridge.waits_for == ""


def test_a_node_that_is_not_there_or_dies_is_not_waited_for() -> None:
    pruner, policy, commander = (Peer(n) for n in ("pruner_node", "policy_node", "command_node"))
    pruner.present, policy.silent = False, True
    resets = Resets([pruner, policy, commander])
    assert resets.waits_for(0.0) == "policy_node"
    assert (pruner.asked, commander.asked) == (0, 0)  # the command node after who feeds it
    policy.present = False
    assert resets.waits_for(0.1) == ""
    assert commander.asked == 1


def test_an_activation_begins_an_episode_and_has_all_forget() -> None:
    with graph() as on:
        on.turn()
        asked = on.peers["policy_node"].asked
        on.turn()
        assert on.peers["policy_node"].asked == asked
        on.bridge.begin()
        on.turn()
        assert on.peers["policy_node"].asked == asked + 1
        assert on.bridge.episodes.moves == []


def test_without_a_next_episode_the_world_stays_as_it_ended() -> None:
    with graph() as on:
        on.bridge.again = False
        on.episode()
        asked = on.peers["policy_node"].asked
        assert on.turn() is None
        assert on.peers["policy_node"].asked == asked
