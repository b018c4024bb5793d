"""Tensor routines against their literal definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vla_prune.ops import (
    cosine_distances,
    gather_tokens,
    maxmin,
    rank_normalise,
    received_attention,
    topk_indices,
    topk_mask,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- gathering and ranking ---------------------------------------------------------------------


@pytest.mark.parametrize("tail", [(), (4,), (4, 2)])
def test_gather_tokens_takes_rows_of_each_sample(tail):
    x, index = draw(2, 5, *tail), torch.tensor([[0, 3], [4, 1]])
    expected = torch.stack([x[0, [0, 3]], x[1, [4, 1]]])
    assert torch.equal(gather_tokens(x, index), expected)


def test_gather_tokens_of_nothing():
    assert gather_tokens(draw(2, 5, 3), torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0, 3)


def test_topk_is_the_k_best_in_ascending_order():
    scores = torch.tensor([[0.1, 0.9, 0.3, 0.8], [4.0, 3.0, 2.0, 1.0]])
    assert topk_indices(scores, 2).tolist() == [[1, 3], [0, 1]]
    assert topk_mask(scores, 2).int().tolist() == [[0, 1, 0, 1], [1, 1, 0, 0]]
    assert topk_indices(scores, 0).shape == (2, 0)


@pytest.mark.parametrize("n", [6, 300, 3000])
def test_of_equal_scores_the_lower_index_stays(n: int):
    assert topk_indices(torch.zeros(2, n), 5).tolist() == [list(range(5))] * 2
    scores = torch.zeros(1, n)
    scores[0, -1] = 1.0
    assert topk_indices(scores, 3).tolist() == [[0, 1, n - 1]]


def test_ranks_run_from_zero_to_one():
    ranks = rank_normalise(torch.tensor([[3.0, -1.0, 7.0, 100.0, 5.0]]))
    assert ranks.tolist() == [[0.25, 0.0, 0.75, 1.0, 0.5]]


def test_equal_scores_have_equal_ranks(close):
    close(rank_normalise(torch.tensor([[0.0, 5.0, 0.0, 0.0]])), torch.tensor([[0.0, 1.0, 0, 0]]))
    assert rank_normalise(torch.zeros(2, 3, 6)).eq(0.0).all()


def test_ranks_of_a_slice_and_of_one_token():
    wide = draw(2, 3, 8)
    assert torch.equal(rank_normalise(wide[..., 2:5]), rank_normalise(wide[..., 2:5].clone()))
    assert rank_normalise(torch.ones(1, 1)).tolist() == [[0.0]]


def test_cosine_distances(close):
    x = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [0.0, 0.0]]])
    expected = torch.tensor([[[0.0, 1, 2, 1], [1, 0, 1, 1], [2, 1, 0, 1], [1, 1, 1, 1]]])
    close(cosine_distances(x), expected)


# --- max-min diversity -------------------------------------------------------------------------


def literal_maxmin(
    features: Tensor, k: int, allowed: list[int], seeds: tuple[int, ...] = ()
) -> list[int]:
    """O(k^2) by its definition, one sample ``[N, D]``: every step re-reduces over all picks."""
    x = features / features.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    distance = (1.0 - x @ x.T).tolist()

    def nearest(i: int, others: list[int]) -> float:
        return min((distance[i][j] for j in others if j != i), default=4.0)

    picks = list(seeds) or [max(allowed, key=lambda i: nearest(i, allowed))]
    while len(picks) < k:
        left = [i for i in allowed if i not in picks]
        picks.append(max(left, key=lambda i: nearest(i, picks)))
    return sorted(picks)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("k", [1, 2, 5, 11])
def test_maxmin_is_its_definition(seed, k):
    features = draw(3, 12, 6, seed=seed)
    expected = [literal_maxmin(sample, k, list(range(12))) for sample in features]
    assert maxmin(features, k).tolist() == expected


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("k", [1, 2, 4])
def test_maxmin_of_candidates_is_its_definition(seed, k):
    features = draw(3, 12, 6, seed=seed)
    allowed = draw(3, 12, seed=seed + 100).argsort() < 4 + seed  # as many in each sample
    expected = [
        literal_maxmin(sample, k, mask.nonzero()[:, 0].tolist())
        for sample, mask in zip(features, allowed, strict=True)
    ]
    assert maxmin(features, k, allowed).tolist() == expected


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("k", [3, 4, 8])
def test_maxmin_from_seeds_is_its_definition(seed, k):
    features, seeds = draw(3, 12, 6, seed=seed), draw(3, 12, seed=seed + 50).topk(3).indices
    every = list(range(12))
    expected = [
        literal_maxmin(sample, k, every, tuple(row))
        for sample, row in zip(features, seeds.tolist(), strict=True)
    ]
    assert maxmin(features, k, seeds=seeds).tolist() == expected


@pytest.mark.parametrize("k", [0, 1, 3, 6])
def test_maxmin_of_identical_features_ends_with_k(k):
    picks = maxmin(torch.ones(2, 6, 4), k)
    assert picks.shape == (2, k)
    assert (picks.diff(dim=1) > 0).all()


@pytest.mark.parametrize("features", [torch.ones(1, 6, 4), torch.zeros(1, 6, 4)])
def test_identical_candidates_come_before_what_is_barred(features):
    allowed = torch.tensor([[False, False, False, True, True, True]])
    assert maxmin(features, 3, allowed).tolist() == [[3, 4, 5]]
    assert maxmin(features, 2, allowed)[0].min() >= 3


def test_a_copy_of_a_pick_comes_before_what_is_barred():
    features = draw(1, 6, 4)
    features[0, 4] = features[0, 3]
    allowed = torch.tensor([[False, False, False, True, True, False]])
    assert maxmin(features, 2, allowed).tolist() == [[3, 4]]


def test_barred_tokens_fill_up_only_when_candidates_run_out():
    allowed = torch.tensor([[False, True, False, False, True]])
    picks = maxmin(draw(1, 5, 4), 3, allowed)[0].tolist()
    assert len(set(picks)) == 3
    assert {1, 4} < set(picks)
    assert maxmin(draw(1, 5, 4), 5, allowed).tolist() == [[0, 1, 2, 3, 4]]
    assert maxmin(draw(1, 5, 4), 2, torch.zeros(1, 5, dtype=torch.bool)).shape == (1, 2)


# --- attention of chosen rows ------------------------------------------------------------------


def literal_attention(query, key, scale, sees, weight=None):
    """``[B, S]`` by the textbook: all maps at once."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logits = torch.einsum("bhrd,bhsd->bhrs", query, key) * scale
    maps = logits.masked_fill(~sees, float("-inf")).softmax(-1).nan_to_num(0.0).mean(1)
    return (maps if weight is None else maps * weight[..., None]).sum(1)


@pytest.mark.parametrize("chunk", [1, 3, 128])
@pytest.mark.parametrize("heads", [1, 2, 4], ids=lambda n: f"{n} of 4 key heads")
def test_causal_rows(chunk, heads, close):
    query, key = draw(2, 4, 5, 8), draw(2, heads, 9, 8, seed=1)
    places = torch.arange(4, 9)[None]
    got = received_attention(query, key, 0.3, places, causal=True, chunk=chunk)
    close(got, literal_attention(query, key, 0.3, torch.arange(9) <= places[0][:, None]))


def test_causal_rows_that_do_not_end_the_sequence(close):
    query, key = draw(2, 2, 3, 8), draw(2, 2, 9, 8, seed=1)
    places = torch.tensor([[2, 3, 4]])
    got = received_attention(query, key, 1.0, places, causal=True, chunk=2)
    close(got, literal_attention(query, key, 1.0, torch.arange(9) <= places[0][:, None]))


def test_causal_rows_at_other_places_in_each_sample(close):
    query, key = draw(2, 2, 1, 8), draw(2, 2, 9, 8, seed=1)
    places = torch.tensor([[4], [7]])
    got = received_attention(query, key, 1.0, places, causal=True)
    sees = torch.arange(9) <= places[:, None, :, None]
    close(got, literal_attention(query, key, 1.0, sees))


@pytest.mark.parametrize("chunk", [2, 128])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks_win_over_causality(kind, chunk, close):
    query, key = draw(2, 2, 5, 8), draw(2, 2, 9, 8, seed=1)
    sees = draw(2, 1, 5, 9, seed=2) > -0.5
    additive = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
    mask = sees if kind == "bool" else additive
    places = torch.arange(5)[None]
    got = received_attention(query, key, 1.0, places, True, mask, chunk=chunk)
    close(got, literal_attention(query, key, 1.0, sees))


def test_rows_of_weight_zero_count_for_nothing(close):
    """Also where such a row sees nothing, and its softmax is no number."""
    query, key = draw(1, 2, 3, 8), draw(1, 2, 6, 8, seed=1)
    sees = torch.ones(1, 1, 3, 6, dtype=torch.bool)
    sees[:, :, 1] = False
    weight = torch.tensor([[1.0, 0.0, 1.0]])
    got = received_attention(query, key, 1.0, torch.arange(3)[None], False, sees, weight)
    close(got, literal_attention(query, key, 1.0, sees, weight))
    close(got.sum(), torch.tensor(2.0))


def test_without_causality_every_key_is_seen(close):
    query, key = draw(2, 2, 4, 8), draw(2, 2, 6, 8, seed=1)
    got = received_attention(query, key, 1.0, torch.arange(4)[None], causal=False)
    close(got, literal_attention(query, key, 1.0, torch.ones(4, 6, dtype=torch.bool)))
    close(got.sum(-1), torch.full((2,), 4.0))


def test_half_precision_is_summed_in_float32(close):
    query, key = draw(1, 2, 4, 8), draw(1, 2, 6, 8, seed=1)
    places = torch.arange(2, 6)[None]
    got = received_attention(query.bfloat16(), key.bfloat16(), 0.3, places, causal=True)
    assert got.dtype == torch.float32
    close(got, received_attention(query, key, 0.3, places, causal=True), "bf16")
