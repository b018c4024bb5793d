"""What single selectors promise beyond the contract matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vla_prune.errors import ConfigError
from vla_prune.ops import maxmin
from vla_prune.selectors import (
    AgreementSelector,
    MaxMinSelector,
    RankedMaxSelector,
    RankedSumSelector,
    RankedUnionSelector,
    SeededMaxMinSelector,
    TopKSelector,
    UnionMaxMinSelector,
)
from vla_prune.tokens import TokenLayout, TokenView, ViewGrid

ROWS, COLS = 6, 6
N = ROWS * COLS
LAYOUT = TokenLayout((ViewGrid("front", ROWS, COLS),))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def view(features: Tensor | None = None) -> TokenView:
    features = draw(2, N, 5, seed=9) - 0.5 if features is None else features
    index = torch.arange(N).expand(2, -1)
    return TokenView(features, features, index, LAYOUT, (N,))


def kept(columns: Tensor) -> list[set[int]]:
    return [set(row.tolist()) for row in columns]


@pytest.mark.parametrize("k", [1, 9, N - 1])
def test_topk_keeps_the_k_best(k: int):
    scores = draw(1, 2, N)
    columns = TopKSelector().select(scores, view(), k)
    lost = torch.ones(2, N, dtype=torch.bool).scatter(1, columns, False)
    worst = scores[0].gather(1, columns).min(dim=1).values
    assert (worst > scores[0].masked_fill(~lost, -1.0).max(dim=1).values).all()


def test_maxmin_reads_features_alone():
    columns = MaxMinSelector().select(torch.zeros(0, 2, N), view(), 9)
    assert torch.equal(columns, maxmin(view().features, 9))


@pytest.mark.parametrize("selector", [TopKSelector(), MaxMinSelector(), UnionMaxMinSelector()])
def test_the_set_moves_with_the_tokens(selector):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(5))
    scores = draw(selector.signals[1] and 1, 2, N)
    straight = selector.select(scores, view(), 8)
    moved = selector.select(scores[..., order], view(view().features[:, order]), 8)
    assert kept(order[moved]) == kept(straight)


DIVERSE = [MaxMinSelector(), UnionMaxMinSelector(), SeededMaxMinSelector(), AgreementSelector()]
RANKED = [
    UnionMaxMinSelector(),
    RankedUnionSelector(),
    SeededMaxMinSelector(),
    RankedMaxSelector(),
    RankedSumSelector(),
    RankedSumSelector([1.0, 3.0]),
    AgreementSelector(),
]


@pytest.mark.parametrize("selector", DIVERSE)
@pytest.mark.parametrize("features", [torch.ones(2, N, 5), torch.zeros(2, N, 5)])
def test_identical_features_do_not_loop(selector, features):
    scores = draw(min(selector.signals[1], 2), 2, N)
    columns = selector.select(scores, view(features), 8)
    assert columns.shape == (2, 8)
    assert (columns.diff(dim=1) > 0).all()


@pytest.mark.parametrize("features", [None, torch.ones(2, N, 5)], ids=["random", "identical"])
@pytest.mark.parametrize("k", [1, 8, 20, N - 1])
def test_union_keeps_nothing_from_outside_the_union(k: int, features):
    scores = draw(2, 2, N)
    columns = UnionMaxMinSelector().select(scores, view(features), k)
    for row in range(2):
        best = [set(scores[s, row].topk(k).indices.tolist()) for s in range(2)]
        assert kept(columns)[row] <= best[0] | best[1]


def test_union_of_signals_that_agree_is_their_topk():
    scores = draw(1, 2, N)
    columns = UnionMaxMinSelector().select(scores.expand(2, -1, -1), view(), 8)
    assert torch.equal(columns, TopKSelector().select(scores, view(), 8))


@pytest.mark.parametrize("selector", RANKED)
@pytest.mark.parametrize("signal", [0, 1])
@pytest.mark.parametrize("factor", [1e-4, 3.0, 1e4])
def test_scaling_one_signal_changes_nothing(selector, signal: int, factor: float):
    scores = draw(2, 2, N)
    scaled = scores.clone()
    scaled[signal] *= factor
    assert torch.equal(selector.select(scaled, view(), 8), selector.select(scores, view(), 8))


def test_ranked_union_holds_the_best_of_every_signal():
    scores = draw(2, 2, N)
    columns = RankedUnionSelector(coverage=0.0).select(scores, view(), 8)
    for row in range(2):
        for signal in range(2):
            assert set(scores[signal, row].topk(3).indices.tolist()) <= kept(columns)[row]


@pytest.mark.parametrize(
    "selector",
    [
        RankedUnionSelector(0.0),
        RankedUnionSelector(0.25),
        RankedMaxSelector(),
        RankedSumSelector(),
        AgreementSelector(),
    ],
)
def test_a_signal_that_says_nothing_changes_nothing(selector):
    """Ranks of equal scores must not follow the raster."""
    scores = draw(1, 2, N)
    silent = torch.cat([scores, torch.full((1, 2, N), 0.7)])
    alone = selector.select(scores, view(), 8)
    assert torch.equal(selector.select(silent, view(), 8), alone)
    assert torch.equal(selector.select(silent.flip(0), view(), 8), alone)


def test_equal_evidence_is_equal_whatever_the_place():
    """One token stands out among equals, wherever it is."""
    for place in (0, N - 1):
        scores = torch.zeros(1, 2, N)
        scores[..., place] = 1.0
        columns = RankedUnionSelector(coverage=0.0).select(scores, view(), 1)
        assert columns.tolist() == [[place], [place]]


@pytest.mark.parametrize("k", [4, 8, 16])
def test_ranked_union_watches_the_rest_of_the_view(k: int):
    """All scores point at one corner; the coverage floor still reaches every quarter."""
    scores = torch.linspace(1.0, 0.0, N).expand(1, 2, N)
    columns = RankedUnionSelector(coverage=1.0).select(scores, view(), k)[0]
    quarters = {(c // COLS * 2 // ROWS, c % COLS * 2 // COLS) for c in columns.tolist()}
    assert len(quarters) == 4
    half = RankedUnionSelector(coverage=0.5).select(scores, view(), k)[0].tolist()
    assert set(range(k // 2)) <= set(half)
    assert max(half) >= N // 2


@pytest.mark.parametrize("coverage", [-0.1, 1.1])
def test_coverage_is_a_share(coverage: float):
    with pytest.raises(ConfigError, match=r"coverage -?\d\.1 is not in \[0, 1\]"):
        RankedUnionSelector(coverage)


@pytest.mark.parametrize("k", [1, 4, 8])
def test_seeded_maxmin_holds_the_best_of_every_signal(k: int):
    scores = draw(2, 2, N)
    columns = SeededMaxMinSelector(share=0.5).select(scores, view(), k)
    for row in range(2):
        assert kept(columns)[row] & {int(scores[s, row].argmax()) for s in range(2)}
        for signal in range(2):
            assert set(scores[signal, row].topk(k // 4).indices.tolist()) <= kept(columns)[row]


def test_seeded_maxmin_with_all_of_the_budget_goes_by_score_alone():
    scores = draw(1, 2, N)
    columns = SeededMaxMinSelector(share=1.0).select(scores, view(), 8)
    assert torch.equal(columns, TopKSelector().select(scores, view(), 8))


def test_seeded_maxmin_finds_what_no_signal_prefers():
    """One token is unlike all others and has the lowest score."""
    features = torch.ones(2, N, 5) + 0.01 * draw(2, N, 5)
    features[:, 7] = torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0])
    scores = torch.linspace(1.0, 0.5, N).expand(1, 2, N).clone()
    scores[..., 7] = 0.0
    columns = SeededMaxMinSelector().select(scores, view(features), 4)
    assert all(7 in row for row in kept(columns))
    assert all(0 in row for row in kept(columns))


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_the_seeds_are_a_share(share: float):
    with pytest.raises(ConfigError, match=r"share -?\d\.1 is not in \[0, 1\]"):
        SeededMaxMinSelector(share)


# --- maximum, sum, agreement -------------------------------------------------------------------


@pytest.mark.parametrize("selector", [RankedMaxSelector(), RankedSumSelector()])
def test_without_evidence_the_choice_is_spread_over_the_view(selector):
    """An empty history is no reason to keep the raster's first."""
    columns = selector.select(torch.zeros(2, 1, N), view(), 4)[0]
    assert len({(c // COLS * 2 // ROWS, c % COLS * 2 // COLS) for c in columns.tolist()}) == 4


def test_the_maximum_keeps_what_any_signal_wants_the_sum_what_all_want():
    """Token 3 is first for one signal and last for the other; token 4 is second for both."""
    ranks = torch.arange(N).float().roll(5)
    scores = torch.stack([ranks, ranks])[:, None].clone()  # all in the same order
    scores[0, 0, 3], scores[1, 0, 3] = 99.0, -99.0
    scores[:, 0, 4] = 50.0
    # For the maximum 3 is first, for the sum it is mediocre.
    assert 3 in kept(RankedMaxSelector().select(scores, view(), 2))[0]
    assert 3 not in kept(RankedSumSelector().select(scores, view(), 2))[0]
    assert 4 in kept(RankedSumSelector().select(scores, view(), 2))[0]


def test_weights_choose_who_decides():
    scores = draw(2, 2, N)
    for weights, decides in (([1.0, 0.0], 0), ([0.0, 2.0], 1)):
        columns = RankedSumSelector(weights).select(scores, view(), 8)
        alone = TopKSelector().select(scores[decides : decides + 1], view(), 8)
        assert torch.equal(columns, alone)
    assert RankedSumSelector([1.0, 2.0, 1.0]).signals == (3, 3)


@pytest.mark.parametrize("weights", [[-1.0, 2.0], [0.0, 0.0]])
def test_weights_that_decide_nothing(weights):
    with pytest.raises(ConfigError, match="must not be negative, and not all 0"):
        RankedSumSelector(weights)


@pytest.mark.parametrize("k", [1, 8, N - 1])
def test_full_agreement_is_topk(k: int):
    scores = draw(1, 2, N)
    columns = AgreementSelector().select(scores.expand(3, -1, -1), view(), k)
    assert torch.equal(columns, TopKSelector().select(scores, view(), k))


def test_no_agreement_is_the_union_thinned_out():
    """The signals' best eight are other tokens: VLA-Pruner's filter."""
    order = torch.arange(N).float().expand(2, N)
    scores = torch.stack([order, -order])
    columns = AgreementSelector().select(scores, view(), 8)
    assert torch.equal(columns, UnionMaxMinSelector().select(scores, view(), 8))


@pytest.mark.parametrize("k", [6, 12, 20])
def test_agreed_tokens_stay_and_the_rest_is_as_far_from_them_as_the_disputed_can_be(k: int):
    scores, seen = draw(2, 2, N, seed=4), view()
    columns = AgreementSelector().select(scores, seen, k)
    for row in range(2):
        best = [set(scores[s, row].topk(k).indices.tolist()) for s in range(2)]
        agreed, disputed = best[0] & best[1], best[0] ^ best[1]
        assert 0 < len(agreed) < k
        assert agreed <= kept(columns)[row] <= agreed | disputed
        unit = torch.nn.functional.normalize(seen.features[row], dim=-1)
        picked = sorted(agreed)
        while len(picked) < k:  # the literal rule
            left = sorted(disputed - set(picked))
            gaps = (1 - unit[left] @ unit[picked].T).amin(dim=1)
            picked.append(left[int(gaps.argmax())])
        assert kept(columns)[row] == set(picked)


def test_the_union_alone_may_lose_what_all_signals_want():
    """Why the gate is there: twins of the best token fall to diversity, agreed upon or not."""
    features = torch.eye(N)[None].repeat(2, 1, 1)
    features[:, :4] = features[:, :1]  # four alike, and all signals want them most
    scores = torch.arange(N, 0, -1).float().expand(2, 2, N).clone()
    scores[1, :, 4:] = scores[1, :, 4:].flip(-1)
    gated = AgreementSelector().select(scores, view(features), 6)
    union = UnionMaxMinSelector().select(scores, view(features), 6)
    assert [len(row & {0, 1, 2, 3}) for row in kept(gated)] == [4, 4]
    assert [len(row & {0, 1, 2, 3}) for row in kept(union)] == [2, 2]


def test_first_comes_first_however_many_there_are():
    first = torch.zeros(2, N, dtype=torch.bool)
    first[0, [5, 9]] = True
    first[1, :20] = True
    picks = kept(maxmin(view().features, 8, first=first))
    assert {5, 9} <= picks[0]
    assert picks[1] <= set(range(20))
    assert torch.equal(maxmin(view().features, 8, first=first & False), maxmin(view().features, 8))
