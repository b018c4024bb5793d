"""What a policy remembers, for whom, and what happens when a call goes wrong. On a tiny pi0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_prune.budgets import ConstantBudget
from vla_prune.build import build_adapter
from vla_prune.errors import ConfigError, ShapeError
from vla_prune.policy import VLAPolicy, attach
from vla_prune.pruner import ACTION, ActionHistory, Cut, Pruner
from vla_prune.scorers import ActionHistoryScorer, NormScorer, RandomScorer, SemanticScorer
from vla_prune.selectors import RankedUnionSelector, TopKSelector, UnionMaxMinSelector
from vla_prune.tokens import TokenView
from vla_prune.types import ActionChunk, PolicyState

from .adapters.hosts import Broken, Pi0Host, Raising

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@cache
def _made() -> Pi0Host:
    return Pi0Host(("front", "wrist"))


@pytest.fixture
def host() -> Pi0Host:
    return _made()


def both_signals(warmup: bool = False, last: object = None) -> Pruner:
    """Semantic and action attention, the latter remembered over two calls."""
    cut = Cut(
        "decoder.3",
        (SemanticScorer("prefill", debias=True), last or ActionHistoryScorer()),
        UnionMaxMinSelector(),
        ConstantBudget(0.4),
    )
    return Pruner((cut,), ActionHistory(window=2, warmup=warmup), "both_signals")


def one_cut(scorer: object, site: str = "decoder.2") -> Pruner:
    return Pruner((Cut(site, (scorer,), TopKSelector(), ConstantBudget(0.4)),), ActionHistory())


def same_chunk(one: ActionChunk, two: ActionChunk) -> None:
    assert np.array_equal(one.actions, two.actions)
    assert one.kept.keys() == two.kept.keys()
    assert all(np.array_equal(one.kept[site], two.kept[site]) for site in one.kept)
    assert (one.stamp_s, one.dt_s, one.notes) == (two.stamp_s, two.dt_s, two.notes)


def snapshot(states: Sequence[PolicyState]) -> list:
    """Everything in the states, by value."""
    return [
        (s.tick, s.instruction, [(v.tolist(), o.tolist()) for v, o in s.history.get(ACTION, [])])
        for s in states
    ]


def episode(policy: VLAPolicy, host: Pi0Host, number: int, calls: int = 3) -> list[ActionChunk]:
    """Calls of one environment with a state of its own."""
    state = policy.new_state()
    return [policy.act_one(host.observations[number], state) for _ in range(calls)]


# --- the chunk ---------------------------------------------------------------------------------


def test_a_chunk_tells_what_was_kept_and_when_it_was_seen(host):
    with attach(both_signals(), host.adapter) as policy:
        chunks = policy.act(host.observations[:2], [policy.new_state(), policy.new_state()])
    for number, chunk in enumerate(chunks):
        assert chunk.actions.shape == (4, 7)
        assert chunk.actions.dtype == np.float32
        assert chunk.actions.flags.c_contiguous
        assert (chunk.stamp_s, chunk.dt_s) == (float(number), 0.02)
        assert chunk.kept["decoder.3"].shape == (12,)
        assert (chunk.stage_ms, chunk.notes) == ({}, ())


def test_dense_chunks_are_the_plain_model_with_the_noise_of_their_tick(host):
    state = PolicyState()
    inputs = vars(host.adapter.prepare(host.observations[:1]))
    with attach(Pruner(), host.adapter) as policy:
        for tick in range(2):
            chunk = policy.act_one(host.observations[0], state)
            plain = host.model.sample_actions(**inputs, noise=host.adapter.noise([tick]))
            assert np.array_equal(chunk.actions, plain[0].numpy())
    assert state.tick == 2


def test_stage_times_only_when_asked_for(host):
    with attach(both_signals(), host.adapter, time_stages=True) as policy:
        chunk = policy.act_one(host.observations[0], policy.new_state())
    assert {"vision", "prefill", "selection", "denoise"} <= chunk.stage_ms.keys()
    assert all(ms >= 0.0 for ms in chunk.stage_ms.values())


def test_no_observations_no_chunks(host):
    with attach(both_signals(), host.adapter) as policy:
        assert policy.act([], []) == []


# --- states ------------------------------------------------------------------------------------


def test_a_new_state_forgets_everything(host):
    with attach(both_signals(), host.adapter) as policy:
        first = episode(policy, host, 0)
        episode(policy, host, 1)
        again = episode(policy, host, 0)
    for one, two in zip(first, again, strict=True):
        same_chunk(one, two)


def test_history_changes_what_is_kept(host):
    with attach(one_cut(ActionHistoryScorer()), host.adapter) as policy:
        first, second, _ = episode(policy, host, 0)
    assert not np.array_equal(first.kept["decoder.2"], second.kept["decoder.2"])


def test_environments_never_mix(host):
    with attach(both_signals(), host.adapter) as policy:
        alone = [episode(policy, host, 0), episode(policy, host, 1)]
        states = [policy.new_state(), policy.new_state()]
        for step in range(3):
            for number in (0, 1):
                chunk = policy.act_one(host.observations[number], states[number])
                same_chunk(chunk, alone[number][step])


def test_a_batch_of_environments_equals_each_alone(host, close):
    with attach(both_signals(), host.adapter) as policy:
        alone = [episode(policy, host, 0), episode(policy, host, 1)]
        states = [policy.new_state(), policy.new_state()]
        for step in range(3):
            order = [1, 0] if step == 1 else [0, 1]  # nothing hangs on a place in the batch
            given = [host.observations[n] for n in order]
            chunks = policy.act(given, [states[n] for n in order])
            for n, chunk in zip(order, chunks, strict=True):
                close(chunk.actions, alone[n][step].actions)
                assert np.array_equal(chunk.kept["decoder.3"], alone[n][step].kept["decoder.3"])


def test_only_the_window_is_remembered(host):
    with attach(both_signals(), host.adapter) as policy:
        state, seen = policy.new_state(), []
        for _ in range(4):
            policy.act_one(host.observations[0], state)
            seen.append(state.history[ACTION][-1][0])
    assert len(state.history[ACTION]) == 2
    assert all(
        torch.equal(v, w) for (v, _), w in zip(state.history[ACTION], seen[2:], strict=True)
    )


def test_what_a_projector_cut_removed_is_unobserved(host):
    state = PolicyState()
    with attach(one_cut(NormScorer(), "projector"), host.adapter) as policy:
        kept = policy.act_one(host.observations[0], state).kept["projector"]
    values, observed = state.history[ACTION][0]
    assert observed.nonzero()[:, 0].tolist() == kept.tolist()
    assert values[~observed].eq(0).all()
    assert values[observed].gt(0).all()


def test_ticks_move_random_draws_on(host):
    with attach(one_cut(RandomScorer()), host.adapter) as policy:
        first, second, _ = episode(policy, host, 0)
        again, _, _ = episode(policy, host, 1)
    assert not np.array_equal(first.kept["decoder.2"], second.kept["decoder.2"])
    assert np.array_equal(first.kept["decoder.2"], again.kept["decoder.2"])


def test_a_new_instruction_clears_the_history_and_says_so(host):
    told = replace(host.observations[0], instruction="go home")
    state = PolicyState()
    with attach(both_signals(), host.adapter) as policy:
        for _ in range(2):
            assert policy.act_one(host.observations[0], state).notes == ()
        chunk = policy.act_one(told, state)
        fresh = PolicyState(tick=2)
        same_chunk(replace(chunk, notes=()), policy.act_one(told, fresh))
        assert policy.act_one(told, state).notes == ()
    assert chunk.notes == (
        "the instruction changed from 'pick up the bowl' to 'go home'; the action history was "
        "cleared.",
    )
    assert (state.tick, len(state.history[ACTION])) == (4, 2)


# --- dense warm-up -----------------------------------------------------------------------------


def test_warm_up_runs_dense_until_the_window_is_full(host):
    inputs = vars(host.adapter.prepare(host.observations[:1]))
    with attach(both_signals(warmup=True), host.adapter) as policy:
        chunks = episode(policy, host, 0, calls=4)
    for tick, chunk in enumerate(chunks):
        plain = host.model.sample_actions(**inputs, noise=host.adapter.noise([tick]))[0].numpy()
        assert np.array_equal(chunk.actions, plain) == (tick < 2)
        assert list(chunk.kept) == ([] if tick < 2 else ["decoder.3"])


def test_a_new_instruction_warms_up_again(host):
    state = PolicyState()
    with attach(both_signals(warmup=True), host.adapter) as policy:
        for _ in range(3):
            chunk = policy.act_one(host.observations[0], state)
        assert chunk.kept
        assert not policy.act_one(replace(host.observations[0], instruction="go"), state).kept


def test_warm_and_cold_states_share_a_call(host, close):
    with attach(both_signals(warmup=True), host.adapter) as policy:
        alone = [episode(policy, host, number, 4) for number in range(3)]
        states = [policy.new_state() for _ in range(3)]
        for _ in range(2):
            policy.act_one(host.observations[1], states[1])
        chunks = policy.act(host.observations, states)
    for number, tick in enumerate((0, 2, 0)):
        close(chunks[number].actions, alone[number][tick].actions)
        assert list(chunks[number].kept) == list(alone[number][tick].kept)
        assert chunks[number].stamp_s == float(number)
    assert [state.tick for state in states] == [1, 3, 1]


# --- calls that go wrong -----------------------------------------------------------------------


@dataclass(frozen=True)
class Constant:
    """The same score for every token."""

    value: float
    needs: frozenset[str] = frozenset()

    def score(self, view: TokenView):
        return torch.full(view.index.shape, self.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers(host, value):
    state = PolicyState()
    with attach(one_cut(Constant(value)), host.adapter) as policy:
        with pytest.raises(ShapeError, match=r"site 'decoder\.2': a scorer gave NaN or infinite"):
            policy.act_one(host.observations[0], state)
        assert snapshot([state]) == snapshot([PolicyState()])


def test_images_that_are_no_numbers_are_found_too(host):
    """NaN weights make NaN scores of any scorer."""
    broken = Pi0Host()
    with torch.no_grad():
        broken.model.model.vlm.multi_modal_projector.linear.bias.fill_(float("nan"))
    with (
        attach(one_cut(NormScorer(), "projector"), broken.adapter) as policy,
        pytest.raises(ShapeError, match="NaN"),
    ):
        policy.act_one(host.observations[0], policy.new_state())


@pytest.mark.parametrize("scorer", [Raising(), Constant(float("nan"))], ids=["raises", "nan"])
def test_an_exception_leaves_all_states_as_they_were(host, scorer):
    """Also those of the dense group, which had run when the pruned group failed."""
    states = [PolicyState(), PolicyState()]
    with attach(both_signals(warmup=True), host.adapter) as policy:
        for _ in range(2):
            policy.act_one(host.observations[1], states[1])
    before, held = snapshot(states), [state.history.get(ACTION) for state in states]
    told = [replace(o, instruction="pick up the bowl") for o in host.observations[:1]]
    with (
        attach(both_signals(warmup=True, last=scorer), host.adapter) as policy,
        pytest.raises((Broken, ShapeError)),
    ):
        policy.act([*told, host.observations[1]], states)
    assert snapshot(states) == before
    assert all(s.history.get(ACTION) is h for s, h in zip(states, held, strict=True))


def test_lists_of_different_length(host):
    with (
        attach(Pruner(), host.adapter) as policy,
        pytest.raises(ShapeError, match="act: 2 observations but 1 states; give one state each"),
    ):
        policy.act(host.observations[:2], [PolicyState()])


def test_one_state_for_two_robots(host):
    state = PolicyState()
    with (
        attach(Pruner(), host.adapter) as policy,
        pytest.raises(ShapeError, match="act: one state is given twice"),
    ):
        policy.act(host.observations[:2], [state, state])


def test_warm_and_cold_states_in_one_pruner_call(host):
    warm = PolicyState(history={ACTION: [(torch.zeros(32), torch.ones(32).bool())] * 2})
    with pytest.raises(ShapeError, match="states that warm up and states that do not"):
        both_signals(warmup=True).begin([warm, PolicyState()], host.adapter.layout)


def test_the_first_call_has_no_history_to_mislead_it(host):
    """An empty history is no evidence: it must not push tokens in by their place."""
    budget, semantic = ConstantBudget(0.4), SemanticScorer("prefill", debias=True)
    recipes = [
        Pruner((Cut("decoder.3", scorers, RankedUnionSelector(0.0), budget),), ActionHistory())
        for scorers in ((semantic,), (semantic, ActionHistoryScorer()))
    ]
    kept = []
    for pruner in recipes:
        with attach(pruner, host.adapter) as policy:
            chunk = policy.act_one(host.observations[0], policy.new_state())
            kept.append(chunk.kept["decoder.3"])
    assert np.array_equal(*kept)


@pytest.mark.parametrize(("named", "cut", "read"), [(0, 2, 0), (None, 2, 1), (2, 2, 1), (3, 2, 1)])
def test_the_policy_names_the_layer_that_a_recipe_leaves_to_it(host, named, cut, read):
    """Where it names none, or one that runs behind the cut, the layer before the cut is read."""

    def kept(layer: int | str | None) -> np.ndarray:
        pruner = one_cut(SemanticScorer("prompt", layer=layer), f"decoder.{cut}")
        with attach(pruner, host.adapter) as policy:
            return policy.act_one(host.observations[0], policy.new_state()).kept[f"decoder.{cut}"]

    host.adapter.prompt_layer = named
    try:
        asked = kept("policy")
    finally:
        host.adapter.prompt_layer = None
    assert np.array_equal(asked, kept(read))
    assert not np.array_equal(kept(0), kept(1))


def test_a_policy_config_names_its_prompt_layer(tmp_path):
    text = f"extends: {CONFIGS / 'policy' / 'decoder12.yaml'}\nprompt_layer: {{}}\n"
    path = tmp_path / "policy.yaml"
    path.write_text(text.format(1))
    assert build_adapter(str(path)).prompt_layer == 1
    for wrong in (-1, "first"):
        path.write_text(text.format(wrong))
        with pytest.raises(ConfigError, match=f"prompt_layer {wrong!r} is no decoder layer"):
            build_adapter(str(path))
