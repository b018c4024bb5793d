"""What single selectors promise beyond the contract matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vla_prune.errors import ConfigError
from vla_prune.ops import maxmin
from vla_prune.selectors import (
    MaxMinSelector,
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


@pytest.mark.parametrize(
    "selector", [MaxMinSelector(), UnionMaxMinSelector(), SeededMaxMinSelector()]
)
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


@pytest.mark.parametrize(
    "selector", [UnionMaxMinSelector(), RankedUnionSelector(), SeededMaxMinSelector()]
)
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


@pytest.mark.parametrize("coverage", [0.0, 0.25])
def test_a_signal_that_says_nothing_changes_nothing(coverage: float):
    """Ranks of equal scores must not follow the raster."""
    selector, scores = RankedUnionSelector(coverage), draw(1, 2, N)
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
