"""One policy in two processes is the same policy, with fewer bytes between its halves."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags")

from vla_prune_ros import wire
from vla_prune_ros.policy_loop import Buckets, Senses
from vla_prune_ros.split import Side, check_split, hashes_of
from vla_prune_ros.status import Health
from vla_prune_ros.token_loop import PrunerLoop, TokenPolicyLoop

from vla_prune import config
from vla_prune.build import build_recipe
from vla_prune.errors import UnsupportedError
from vla_prune.policy import attach
from vla_prune.runtime.clock import ManualClock
from vla_prune.types import Observation

from .scene import CHUNK, START_S, Robot, contract, joints, tiny_adapter

RECIPE = """
name: two_cuts
cuts:
  - site: projector
    scorers: [{name: action_history, form: observed}]
    selector: {name: seeded_maxmin, share: 0.25}
    budget: {name: constant, keep_ratio: %s}
  - site: decoder.1
    scorers: [{name: semantic, rows: prompt}, {name: action_history, form: observed}]
    selector: {name: seeded_maxmin, share: 0.25}
    budget: {name: constant, keep_ratio: 0.125}
history: {window: 3}
"""
TOKENS, SCORES = "vla_prune_msgs/msg/VisualTokens", "vla_prune_msgs/msg/TokenScores"


def wired(kind: str, fields: dict) -> tuple[object, int]:
    data = wire.encode(wire.make(kind, fields), kind)
    return wire.decode(data, kind), len(data)


class Pair:
    """Pruner and policy, each with a model of its own."""

    def __init__(self, stack: ExitStack, folder: Path, keep: float = 0.25) -> None:
        path = folder / f"two_cuts_{keep}.yaml"
        path.write_text(RECIPE % keep)
        recipe = config.load(path)
        self.clock = ManualClock(START_S)
        sides = []
        for _ in range(2):
            adapter = tiny_adapter()
            policy = stack.enter_context(attach([build_recipe(str(path))], adapter))
            sides.append(Side(adapter, policy.pruners, hashes_of(adapter, recipe)))
        senses = Senses(contract(), self.clock, Health("pruner_node"), "pick up the bowl")
        senses.states.sources = ()
        self.robot = Robot(senses, self.clock)
        self.pruner = PrunerLoop(senses, sides[0], Buckets((keep,), keep), 1000.0)
        self.policy = TokenPolicyLoop(
            contract(), self.clock, Health("policy_node"), sides[1], Buckets((keep,), keep)
        )
        self.path = path

    def turn(self) -> tuple[object, int]:
        """One observation through both halves: the chunk message, and the bytes between them."""
        self.clock.advance(1 / 30)
        self.robot.sense(skip=("joint_states",))
        self.policy.put_state(self.policy.contract.states[0], joints(self.clock.now()))
        message, size = wired(TOKENS, self.pruner.turn())
        assert self.policy.put_tokens(message) == ""
        chunk, scores = self.policy.turn()
        assert self.pruner.put_scores(wired(SCORES, scores)[0]) == ""
        return wired(CHUNK, chunk)[0], size


def test_the_split_form_gives_what_the_fused_form_gives(tmp_path: Path) -> None:
    with ExitStack() as stack:
        pair = Pair(stack, tmp_path)
        fused = stack.enter_context(attach(build_recipe(str(pair.path)), tiny_adapter()))
        state = fused.new_state()
        for _ in range(5):
            message, _ = pair.turn()
            from .scene import image

            frame = np.asarray(image(0.0, pair.robot.frames).data).reshape(48, 48, 3)
            seen = Observation(
                {"image": frame, "wrist": frame},
                "pick up the bowl",
                np.full(5, 0.1, np.float32),
            )
            expected = fused.act_one(seen, state)
            np.testing.assert_array_equal(message.values.reshape(3, 2), expected.actions)
            assert message.sites == list(expected.kept)
            np.testing.assert_array_equal(message.kept_index, expected.kept["decoder.1"])
            assert [g.kept for g in message.cameras] == [2, 2]


def test_a_quarter_of_the_tokens_takes_a_third_of_the_bytes_at_most(tmp_path: Path) -> None:
    with ExitStack() as stack:
        dense, pruned = (Pair(stack, tmp_path, keep).turn()[1] for keep in (1.0, 0.25))
        assert dense >= 3 * pruned


def test_another_recipe_is_refused_and_named(tmp_path: Path) -> None:
    with ExitStack() as stack:
        pair = Pair(stack, tmp_path)
        pair.clock.advance(1 / 30)
        pair.robot.sense(skip=("joint_states",))
        fields = pair.pruner.turn() | {"recipe_hash": "another"}
        refused = pair.policy.put_tokens(wired(TOKENS, fields)[0])
        assert "made with recipe another" in refused
        assert pair.policy.turn() is None
        assert pair.policy.health.state == "holding"


def test_a_new_episode_of_the_pruner_clears_the_policys_history(tmp_path: Path) -> None:
    with ExitStack() as stack:
        pair = Pair(stack, tmp_path)
        for _ in range(2):
            pair.turn()
        assert pair.policy.state.tick == 2
        pair.pruner.senses.reset("second")
        assert pair.pruner.state.history == {}
        message, _ = pair.turn()
        assert (message.episode_id, message.tick) == ("second", 0)
        assert pair.policy.state.tick == 1


def test_stale_tokens_are_not_acted_on(tmp_path: Path) -> None:
    with ExitStack() as stack:
        pair = Pair(stack, tmp_path)
        pair.clock.advance(1 / 30)
        pair.robot.sense(skip=("joint_states",))
        message, _ = wired(TOKENS, pair.pruner.turn())
        pair.clock.advance(0.2)  # on the way
        pair.policy.put_state(pair.policy.contract.states[0], joints(pair.clock.now()))
        pair.policy.put_tokens(message)
        assert pair.policy.turn() is None


def test_scores_of_another_episode_are_refused(tmp_path: Path) -> None:
    with ExitStack() as stack:
        pair = Pair(stack, tmp_path)
        pair.clock.advance(1 / 30)
        pair.robot.sense(skip=("joint_states",))
        pair.policy.put_state(pair.policy.contract.states[0], joints(pair.clock.now()))
        pair.policy.put_tokens(wired(TOKENS, pair.pruner.turn())[0])
        _, scores = pair.policy.turn()
        pair.pruner.senses.reset()
        assert "of the episode" in pair.pruner.put_scores(wired(SCORES, scores)[0])
        assert pair.pruner.state.history == {}


def test_a_family_that_cannot_be_split_is_named() -> None:
    class Whole:
        name = "Qwen"

    with pytest.raises(UnsupportedError, match="Qwen cannot be split over two nodes yet"):
        check_split(Whole())
