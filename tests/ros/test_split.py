"""One policy in two processes is the same policy, with fewer bytes between its halves."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags")

from vla_prune_ros import token_loop, wire
from vla_prune_ros.policy_loop import Buckets, Senses
from vla_prune_ros.split import Side, act, check_split, hashes_of, see
from vla_prune_ros.stamps import header_fields
from vla_prune_ros.status import Health
from vla_prune_ros.token_loop import PrunerLoop, TokenPolicyLoop

from vla_prune import config
from vla_prune.build import build_recipe
from vla_prune.errors import UnsupportedError
from vla_prune.policy import attach
from vla_prune.pruner import ACTION
from vla_prune.runtime.clock import ManualClock
from vla_prune.types import Observation

from .scene import CHUNK, START_S, STATUS, Robot, contract, joints, tiny_adapter

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
        self.policy.pace.rate_hz = 1000.0
        self.path = path

    def tokens(self) -> dict:
        """The pruner's half of a new observation: fields of the tokens, not sent yet."""
        self.clock.advance(1 / 30)
        self.robot.sense(skip=("joint_states",))
        return self.pruner.turn()

    def policy_turn(self) -> tuple[dict, dict]:
        """One observation through both halves: fields of the chunk, and of scores not sent yet."""
        fields = self.tokens()
        self.policy.put_state(self.policy.contract.states[0], joints(self.clock.now()))
        assert self.policy.put_tokens(wired(TOKENS, fields)[0]) == ""
        return self.policy.turn()

    def turn(self) -> tuple[object, int]:
        """One observation through both halves: the chunk message, and the bytes between them."""
        message, size = wired(TOKENS, self.tokens())
        self.policy.put_state(self.policy.contract.states[0], joints(self.clock.now()))
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
        fields = pair.tokens() | {"recipe_hash": "another"}
        refused = pair.policy.put_tokens(wired(TOKENS, fields)[0])
        assert "made with recipe another" in refused
        assert pair.policy.turn() is None
        assert pair.policy.health.state == "holding"


def test_tokens_for_a_decoder_of_another_width_hold_and_the_next_ones_run(tmp_path: Path) -> None:
    with ExitStack() as stack:
        pair = Pair(stack, tmp_path)
        pair.turn()
        fields = pair.tokens()
        wide = {"dim": 2 * fields["dim"], "features": fields["features"] * 2}
        refused = pair.policy.put_tokens(wired(TOKENS, fields | wide)[0])
        assert (
            f"has {2 * fields['dim']} numbers, the decoder here takes {fields['dim']}" in refused
        )
        assert pair.policy.turn() is None
        assert (pair.policy.health.state, pair.policy.health.reason) == ("holding", refused)
        assert pair.policy.health.refused == 1
        pair.turn()
        assert pair.policy.health.state == "running"


def test_actions_that_are_not_finite_are_never_sent(tmp_path: Path) -> None:
    with ExitStack() as stack:
        pair = Pair(stack, tmp_path)
        model = pair.policy.side.adapter.model
        head = [p for n, p in model.named_parameters() if "head" in n][-1]
        whole = head.data.clone()
        head.data.fill_(float("nan"))
        assert pair.policy_turn() is None
        assert pair.policy.health.state == "holding"
        assert "not finite" in pair.policy.health.reason
        head.data.copy_(whole)
        assert pair.policy_turn() is not None


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


def test_an_activation_of_either_half_begins_without_a_history(tmp_path: Path) -> None:
    with ExitStack() as stack:
        pair = Pair(stack, tmp_path)
        first, _ = pair.turn()
        pair.policy.begin()
        assert pair.policy.state.tick == 0
        second, _ = pair.turn()
        assert second.episode_id == first.episode_id, "the episode is the pruner's"
        pair.pruner.begin()
        third, _ = pair.turn()
        assert third.episode_id != first.episode_id
        assert (third.tick, pair.policy.state.tick) == (0, 1)


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


def late_tokens(pair: Pair, late_s: float) -> object:
    """A tokens message whose stamp is ``late_s`` ago when it comes."""
    pair.clock.advance(1 / 30)
    pair.robot.sense(skip=("joint_states",))
    fields = pair.pruner.turn()
    pair.policy.put_state(pair.policy.contract.states[0], joints(pair.clock.now()))
    return wired(TOKENS, fields | {"header": header_fields(pair.clock.now() - late_s)})[0]


@pytest.mark.parametrize(
    ("late_s", "reason"),
    [(0.4, "too old for use: 0.40 s on arrival"), (-0.4, "ahead of this clock by 0.40 s")],
)
def test_tokens_of_a_clock_that_differs_are_named(
    late_s: float, reason: str, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        pair = Pair(stack, tmp_path)
        for _ in range(8):
            assert pair.policy.put_tokens(late_tokens(pair, late_s)) == ""
            assert pair.policy.turn() is None
            assert pair.policy.health.state == "holding"
            assert reason in pair.policy.health.reason
        assert pair.policy.put_tokens(late_tokens(pair, 0.0)) == ""
        assert pair.policy.turn() is not None
        assert pair.policy.health.state == "running"


def test_a_policy_without_tokens_holds_and_says_so(tmp_path: Path) -> None:
    with ExitStack() as stack:
        pair = Pair(stack, tmp_path)
        pair.turn()
        for since, state in ((0.1, "running"), (0.2, "holding")):
            pair.clock.advance(0.1)
            assert pair.policy.turn() is None
            assert pair.policy.health.state == state, since
        assert pair.policy.health.reason == "no visual tokens for 0.20 s."
        pair.turn()
        assert pair.policy.health.state == "running"


def test_the_policy_tells_the_pruners_fault_at_once(tmp_path: Path) -> None:
    with ExitStack() as stack:
        pair = Pair(stack, tmp_path)
        pair.turn()
        said = {"node": "pruner_node", "state": "holding", "reason": "camera image silent"}
        pair.policy.put_status(wire.make(STATUS, said))
        assert pair.policy.turn() is None
        assert pair.policy.health.reason == "pruner_node: camera image silent"
        pair.turn()
        assert pair.policy.turn() is None
        assert pair.policy.health.state == "running"


def test_a_jump_of_the_policys_clock_is_a_hold_without_history(tmp_path: Path) -> None:
    with ExitStack() as stack:
        pair = Pair(stack, tmp_path)
        pair.turn()
        pair.clock.jump(20.0)
        assert pair.policy.turn() is None
        assert "the clock jumped back" in pair.policy.health.reason
        assert pair.policy.state.history == {}


def test_scores_of_the_instruction_before_are_refused(tmp_path: Path) -> None:
    with ExitStack() as stack:
        pair = Pair(stack, tmp_path)
        pair.turn()
        _, old = pair.policy_turn()  # on their way while the instruction changes
        pair.pruner.senses.put_task("open the drawer")
        _, new = pair.policy_turn()
        assert pair.pruner.state.history == {}
        assert "the instruction changed at tick 2" in pair.pruner.put_scores(wired(SCORES, old)[0])
        assert pair.pruner.state.history == {}
        assert pair.pruner.put_scores(wired(SCORES, new)[0]) == ""
        assert pair.pruner.state.history == {}  # a call may be under way; the next one takes it
        pair.policy_turn()
        assert len(pair.pruner.state.history[ACTION]) == 1


def test_tokens_and_chunks_of_the_episode_before_a_reset_are_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        pair = Pair(stack, tmp_path)
        pair.clock.advance(1 / 30)
        pair.robot.sense(skip=("joint_states",))
        pair.policy.put_state(pair.policy.contract.states[0], joints(pair.clock.now()))
        pair.policy.put_tokens(wired(TOKENS, pair.pruner.turn())[0])
        monkeypatch.setattr(token_loop, "act", meanwhile(act, pair.policy.reset))
        assert pair.policy.turn() is None
        assert "from before the reset" in pair.policy.health.last_refused
        monkeypatch.setattr(token_loop, "see", meanwhile(see, pair.pruner.senses.reset))
        pair.clock.advance(1 / 30)
        pair.robot.sense(skip=("joint_states",))
        assert pair.pruner.turn() is None
        assert "before the reset" in pair.pruner.health.last_refused
        assert pair.pruner.senses.tick == 0


def test_a_reset_between_the_look_and_the_call_leaves_the_new_state_alone(tmp_path: Path) -> None:
    with ExitStack() as stack:
        pair = Pair(stack, tmp_path)
        pair.clock.advance(1 / 30)
        pair.robot.sense(skip=("joint_states",))
        senses = pair.pruner.senses
        senses.look = meanwhile(senses.look, senses.reset)
        assert pair.pruner.turn() is None
        assert (pair.pruner.state.instruction, pair.pruner.state.tick) == (None, 0)


def meanwhile(function, reset):
    """The function, and a reset that comes while it works."""

    def both(*given):
        made = function(*given)
        reset("second")
        return made

    return both


def test_a_reset_of_the_policys_half_keeps_the_pruners_episode(tmp_path: Path) -> None:
    with ExitStack() as stack:
        pair = Pair(stack, tmp_path)
        pair.turn()
        assert pair.policy.reset() == pair.pruner.health.episode_id
        assert pair.policy.state.history == {}
        assert pair.policy.states.stale(pair.clock.now()).keys() == {"joint_states"}


def test_the_policys_half_acts_no_more_often_than_it_may(tmp_path: Path) -> None:
    with ExitStack() as stack:
        pair = Pair(stack, tmp_path)
        pair.policy.pace.rate_hz = 10.0
        assert 9 <= sum(pair.policy_turn() is not None for _ in range(30)) <= 11


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
