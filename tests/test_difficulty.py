"""How sure scores are: numbers worked out by hand, and what a policy tells."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.recon.conftest import tiny_adapter
from vla_prune.build import build_recipe
from vla_prune.difficulty import disagreement, entropy, signals
from vla_prune.policy import attach
from vla_prune.pruner import Pruner


def test_entropy_is_none_at_one_token_and_full_where_nothing_stands_out() -> None:
    scores = torch.tensor([[0, 0, 5.0, 0], [2, 2, 2, 2], [0, 0, 0, 0], [1, 1, 0, -3]])
    assert entropy(scores).tolist() == pytest.approx([0.0, 1.0, 1.0, 0.5])


def test_rankings_disagree_by_their_order_alone() -> None:
    first = torch.tensor([[1.0, 2, 3, 4]]).expand(4, 4)
    second = torch.tensor([[1.0, 20, 30, 400], [4, 3, 2, 1], [7, 7, 7, 7], [2, 1, 4, 3]])
    assert disagreement(first, second).tolist() == pytest.approx([0.0, 1.0, 0.5, 0.2])


def test_what_there_is_to_tell_depends_on_the_signals() -> None:
    scores = torch.rand(2, 3, 8)
    assert {name: value.shape for name, value in signals(scores).items()} == {
        "entropy": (3,),
        "disagreement": (3,),
    }
    assert set(signals(scores[:1])) == {"entropy"}
    assert signals(scores[:0]) == {}


@pytest.mark.parametrize("keep", [1.0, 0.25])
def test_a_policy_tells_them_when_asked_and_acts_the_same(keep: float) -> None:
    adapter = tiny_adapter()
    chunks = {}
    for asked in (False, True):
        with attach(build_recipe("dual_level", keep, cut_layer=1), adapter, signals=asked) as p:
            state = p.new_state()
            chunks[asked] = [p.act_one(adapter.example_observation(i), state) for i in range(2)]
    for plain, told in zip(chunks[False], chunks[True], strict=True):
        assert np.array_equal(plain.actions, told.actions)
        assert plain.signals == {}
        assert set(told.signals) == {"entropy", "disagreement"}
        assert all(0.0 <= value <= 1.0 for value in told.signals.values())
    first, second = chunks[True]
    assert first.signals["disagreement"] == 0.5  # no action was seen yet
    assert second.signals["disagreement"] != 0.5


def test_where_no_token_is_left_there_is_nothing_to_tell() -> None:
    adapter = tiny_adapter()
    (early,) = build_recipe("blind").cuts
    with attach(
        Pruner((early, replace(early, site="decoder.1"))), adapter, signals=True
    ) as policy:
        chunk = policy.act_one(adapter.example_observation(0), policy.new_state())
    assert {site: len(kept) for site, kept in chunk.kept.items()} == {
        "projector": 0,
        "decoder.1": 0,
    }
    assert chunk.signals == {}
