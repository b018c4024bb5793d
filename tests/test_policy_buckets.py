"""One policy at several budgets: what it remembers stays right when the budget changes."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from tests.test_policy import same_chunk, snapshot
from vla_prune.budgets import ConstantBudget
from vla_prune.errors import ConfigError, UnsupportedError
from vla_prune.policy import attach
from vla_prune.pruner import ACTION, ActionHistory, Cut, Pruner
from vla_prune.scorers import ActionHistoryScorer, SemanticScorer
from vla_prune.selectors import UnionMaxMinSelector
from vla_prune.types import PolicyState

from .adapters.hosts import Pi0Host

RATIOS = (1.0, 0.5, 0.25)


@cache
def _made() -> Pi0Host:
    return Pi0Host(("front", "wrist"))


@pytest.fixture
def host() -> Pi0Host:
    return _made()


def recipe(ratio: float, site: str = "decoder.3", window: int = 2, warmup: bool = False) -> Pruner:
    scorers = (SemanticScorer("prefill", debias=True), ActionHistoryScorer())
    cut = Cut(site, scorers, UnionMaxMinSelector(), ConstantBudget(ratio))
    return Pruner((cut,), ActionHistory(window=window, warmup=warmup), f"both at {ratio:g}")


def projector(ratio: float) -> Pruner:
    cut = Cut("projector", (ActionHistoryScorer(),), UnionMaxMinSelector(), ConstantBudget(ratio))
    return Pruner((cut,), ActionHistory(window=2), f"early at {ratio:g}")


@pytest.mark.parametrize("made", [recipe, projector])
def test_a_call_is_what_its_budget_alone_would_make_of_the_same_state(host, made):
    """Whatever budgets the calls before it had: the same actions, kept tokens and memory."""
    ladder, state = [made(ratio) for ratio in RATIOS], PolicyState()
    order, seen = (0, 2, 1, 1, 0, 2), []
    with attach(ladder, host.adapter) as policy:
        for bucket in order:
            before = copy.deepcopy(state)
            seen.append((before, policy.act_one(host.observations[0], state, bucket)))
            seen[-1] += (copy.deepcopy(state),)
    for bucket, (before, chunk, after) in zip(order, seen, strict=True):
        with attach(ladder[bucket], host.adapter) as alone:
            same_chunk(chunk, alone.act_one(host.observations[0], before))
        assert snapshot([before]) == snapshot([after])
    sizes = [len(next(iter(chunk.kept.values()))) for _, chunk, _ in seen]
    total = host.adapter.layout.total
    assert sizes == [round(total * RATIOS[bucket]) for bucket in order]
    assert state.tick == len(order)


def test_what_a_small_budget_did_not_see_is_unobserved_for_the_next_larger_one(host):
    state = PolicyState()
    with attach([projector(ratio) for ratio in RATIOS], host.adapter) as policy:
        for bucket in (2, 0):
            policy.act_one(host.observations[0], state, bucket)
    seen = [int(observed.sum()) for _, observed in state.history[ACTION]]
    assert seen == [host.adapter.layout.total // 4, host.adapter.layout.total]


def test_keeping_all_at_the_top_of_the_ladder_is_the_plain_model(host):
    inputs = vars(host.adapter.prepare(host.observations[:1]))
    state = PolicyState()
    with attach([recipe(ratio) for ratio in RATIOS], host.adapter) as policy:
        policy.act_one(host.observations[0], state, 2)
        chunk = policy.act_one(host.observations[0], state, 0)
    plain = host.model.sample_actions(**inputs, noise=host.adapter.noise([1]))
    assert np.array_equal(chunk.actions, plain[0].numpy())


def test_a_warm_up_is_dense_at_every_budget(host):
    state = PolicyState()
    with attach([recipe(ratio, warmup=True) for ratio in RATIOS], host.adapter) as policy:
        kept = [policy.act_one(host.observations[0], state, b).kept for b in (1, 2, 2)]
    assert [bool(k) for k in kept] == [False, False, True]


def test_one_pruner_is_bucket_zero(host):
    with attach(recipe(0.5), host.adapter) as policy:
        one = policy.act_one(host.observations[0], PolicyState())
        same_chunk(one, policy.act_one(host.observations[0], PolicyState(), 0))


def test_ladders_that_cannot_work_are_refused(host):
    with (
        pytest.raises(ConfigError, match=r"bucket 3 is not attached; choose 0 to 2\."),
        attach([recipe(ratio) for ratio in RATIOS], host.adapter) as policy,
    ):
        policy.act_one(host.observations[0], PolicyState(), 3)
    with (
        pytest.raises(ConfigError, match=r"remember different things.*1\.0 in place of dense"),
        attach([recipe(0.5), Pruner()], host.adapter),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="remember different things"),
        attach([recipe(0.5), recipe(0.25, window=3)], host.adapter),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="attach: no pruner is given"),
        attach([], host.adapter),
    ):
        pass
    far = replace(recipe(0.25), cuts=(replace(recipe(0.25).cuts[0], site="decoder.99"),))
    with (
        pytest.raises(UnsupportedError, match=r"no site 'decoder\.99'"),
        attach([recipe(0.5), far], host.adapter),
    ):
        pass
    with attach(recipe(0.5), host.adapter):  # nothing was left on the model
        pass
