"""Signals made comparable: rank-normalised scores, joined to one number per token."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from vla_prune.ops import rank_normalise
from vla_prune.scorers.grid import coverage_order
from vla_prune.tokens import TokenLayout, TokenView


def best_rank(scores: Tensor, view: TokenView) -> Tensor:
    """The best rank that any signal gives: ``[S, B, N]`` -> ``[B, N]``.

    Ties go to the token that the other signals rank higher, then to the even spread. Without
    signals the even spread is all there is.
    """
    if scores.shape[0] == 0:
        return even_spread(view)
    ranks = rank_normalise(scores)
    return ranks.amax(dim=0) + 1e-3 * ranks.mean(dim=0) + 1e-6 * even_spread(view)


def even_spread(view: TokenView) -> Tensor:
    """``[B, N]`` in (0, 1], highest first: each prefix covers every view evenly, by its size.

    Signals that say nothing, such as an empty history, would otherwise keep the raster's first.
    """
    places = torch.as_tensor(_spread_places(view.layout), device=view.index.device)
    return 1.0 - places[view.index].float() / len(places)


@lru_cache(maxsize=64)
def _spread_places(layout: TokenLayout) -> np.ndarray:
    """Place of every grid index in one coverage order over all views: ``[M]`` int64."""
    shares = [
        (np.argsort(coverage_order(v.rows, v.cols)) + 0.5) / v.size for v in layout.views if v.size
    ]
    return np.argsort(np.argsort(np.concatenate(shares), kind="stable"))
