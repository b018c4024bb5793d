"""Tensor routines behind the methods: gathering, ranking, diversity, rows of attention.

No model, no state, and no branch on tensor values, so that everything here compiles and exports.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Rows of ``x`` at ``index``: ``[B, N, ...]``, ``[B, K]`` -> ``[B, K, ...]``."""
    shape = index.shape + x.shape[2:]
    return x.gather(1, index.reshape(index.shape + (1,) * (x.dim() - 2)).expand(shape))


def topk_indices(scores: Tensor, k: int) -> Tensor:
    """Indices of the ``k`` highest scores in ascending order: ``[B, N]`` -> ``[B, k]``.

    Of equal scores the lower index stays, as in ONNX; torch's own top-k promises nothing.
    """
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :k].sort(dim=-1).values


def topk_mask(scores: Tensor, k: int) -> Tensor:
    """True at the ``k`` highest scores: ``[..., N]`` -> ``[..., N]`` bool."""
    index = scores.topk(k, dim=-1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, index, True)


def rank_normalise(scores: Tensor) -> Tensor:
    """Replace scores by the share of others they beat: ``[..., N]`` -> ``[..., N]`` in [0, 1].

    Equal scores get equal ranks, so a signal that says nothing ranks nobody first.
    """
    scores = scores.contiguous()
    ranks = torch.searchsorted(scores.sort(dim=-1).values, scores)
    return ranks.float() / max(scores.shape[-1] - 1, 1)


def cosine_distances(features: Tensor) -> Tensor:
    """``1 - cosine`` of every pair: ``[B, N, D]`` -> ``[B, N, N]`` float32."""
    x = features.float()
    x = x / x.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return 1.0 - x @ x.transpose(1, 2)


def maxmin(
    features: Tensor,
    k: int,
    allowed: Tensor | None = None,
    seeds: Tensor | None = None,
    first: Tensor | None = None,
) -> Tensor:
    """Greedy max-min diversity: indices of ``k`` tokens that lie far apart, ascending.

    The first pick is the candidate whose nearest other candidate is farthest; every further pick
    is the candidate farthest from all picks so far. DivPrune (CVPR 2025) and the filter of
    VLA-Pruner (arXiv 2511.16449, section 3) use this rule; here a running minimum replaces their
    reduction over all picks, which gives the same set in O(k N) after the Gram matrix.

    Args:
        features: ``[B, N, D]``.
        k: how many, at most the number of allowed tokens.
        allowed: ``[B, N]`` bool, the candidates; all when None. Disallowed tokens fill up only
            when fewer than ``k`` are allowed.
        seeds: ``[B, m]`` int64, picks that stand beforehand, all different and ``0 < m <= k``; the
            others are chosen far from them.
        first: ``[B, N]`` bool, allowed tokens that are picked before all others, as many as there
            are. Unlike ``seeds`` their number may differ between rows.

    Returns:
        ``[B, k]`` int64.
    """
    batch, n, _ = features.shape
    if k == 0:
        return torch.zeros(batch, 0, dtype=torch.long, device=features.device)
    distance = cosine_distances(features)  # [B, N, N]
    diagonal = torch.eye(n, dtype=torch.bool, device=features.device)
    if allowed is not None:
        distance = distance.masked_fill(~allowed[:, None, :], 4.0)
    nearest = distance.masked_fill(diagonal, 4.0).amin(dim=-1)  # [B, N]
    # Below every distance lie the disallowed (-4), below those the picked (-8): a row's own place
    # is -8 from the start, so that the running minimum alone keeps a pick from coming again.
    if allowed is not None:
        nearest = nearest.masked_fill(~allowed, -4.0)
        distance = distance.masked_fill(~allowed[:, None, :], -4.0)
    if first is not None:  # above every distance
        nearest = nearest + 8.0 * first
        distance = distance + 3.0 * first[:, None, :]
    rows = distance.masked_fill(diagonal, -8.0).view(batch * n, n)
    base = torch.arange(batch, device=features.device) * n
    if seeds is None:
        seeds = nearest.argmax(dim=-1, keepdim=True)
    picks = [pick + base for pick in seeds.unbind(dim=1)]  # rows of all samples counted through
    taken = rows.index_select(0, torch.cat(picks)).view(-1, batch, n)
    closest = taken.amin(dim=0)  # [B, N]
    for _ in range(k - len(picks)):
        pick = closest.argmax(dim=-1)
        pick = pick + base if batch > 1 else pick
        picks.append(pick)
        closest = torch.minimum(closest, rows.index_select(0, pick))
    return (torch.stack(picks, dim=1) - base[:, None]).sort(dim=-1).values


def received_attention(
    query: Tensor,
    key: Tensor,
    scale: float,
    row_position: Tensor,
    causal: bool,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    chunk: int = 128,
) -> Tensor:
    """Attention that each key received from chosen query rows: summed, mean over heads.

    Rows go through in chunks that stay in cache, so that all rows of a prefill can be read without
    ever holding the whole map.

    Args:
        query: ``[B, H, R, d]`` the chosen rows, rotated as the model rotates them.
        key: ``[B, Hk, S, d]``, ``H`` a multiple of ``Hk``.
        scale: what the logits are multiplied by.
        row_position: ``[B or 1, R]`` place of every row among the keys.
        causal: rows see only keys at their own place or before; ignored where ``mask`` is given.
        mask: ``[B or 1, 1, R, S]`` bool, True where a row may look, or additive float.
        weight: ``[B, R]``, 0 for rows that do not count, such as padding.
        chunk: rows at a time.

    Returns:
        ``[B, S]`` float32.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
    query, keys = query * scale, key.transpose(2, 3)
    masked = mask is not None or causal
    # Under a causal mask the rows of a chunk see nothing behind its last row: narrower products.
    ordered = causal and mask is None and row_position.shape[0] == 1
    total = torch.zeros(query.shape[0], key.shape[2], device=key.device)
    for start in range(0, query.shape[2], chunk):
        rows = slice(start, min(start + chunk, query.shape[2]))
        stop = key.shape[2] - (query.shape[2] - rows.stop) if ordered else key.shape[2]
        logits = (query[:, :, rows] @ keys[..., :stop]).float()  # [B, H, r, stop]
        if masked:
            blocked = _blocked(row_position[:, rows], mask, rows, stop)
            logits.masked_fill_(
                blocked, float("-inf")
            ) if blocked.dtype == torch.bool else logits.add_(blocked)
        probability = logits.softmax(dim=-1)
        if weight is not None:
            probability = probability.nan_to_num(0.0) * weight[:, None, rows, None]
        total[:, :stop] += probability.sum(dim=(1, 2))
    return total / query.shape[1]


def _blocked(row_position: Tensor, mask: Tensor | None, rows: slice, stop: int) -> Tensor:
    """What a chunk of rows may not see: ``[B or 1, 1, r, stop]`` bool, or additive float."""
    if mask is not None:
        part = mask[:, :, rows, :stop]
        return ~part if part.dtype == torch.bool else part
    column = torch.arange(stop, device=row_position.device)
    return (column > row_position[..., None])[:, None]
