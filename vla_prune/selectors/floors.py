"""Places that are not given by score, and how any selector fills the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vla_prune.errors import ConfigError
from vla_prune.ops import topk_indices, topk_mask
from vla_prune.scorers.random import RandomScorer
from vla_prune.selectors.base import Selector
from vla_prune.selectors.ranks import best_rank, even_spread
from vla_prune.tokens import TokenView


@dataclass(frozen=True)
class Floors:
    """Shares of a cut's budget that go by place and by doubt, whatever the scores say.

    *Coverage*: evenly spread tokens of every view, always the same, so that what enters the scene
    can be seen. FEATHER (arXiv 2412.13180) keeps a stride-3 grid beside its scores.

    *Exploration*: tokens whose last look of the actions lies furthest back, drawn at random among
    equals, so that a history cannot only confirm what it kept. The draw is a hash of seed, call
    number and place: the same for the same state. Without a history all are equal.

    Attributes:
        coverage: share of the budget, in [0, 1].
        exploration: likewise; both together at most 1.
        seed: of the draws.
    """

    coverage: float = 0.0
    exploration: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse shares that do not fit into a budget."""
        shares = (self.coverage, self.exploration)
        if min(shares) < 0.0 or sum(shares) > 1.0:
            raise ConfigError(
                f"floors: coverage {self.coverage} and exploration {self.exploration} must not be "
                "negative, and together at most 1."
            )

    def take(self, view: TokenView, k: int) -> Tensor:
        """``[B, r]`` columns that are kept for a budget of ``k``, all different."""
        spread, explored = round(self.coverage * k), round(self.exploration * k)
        explored = min(explored, k - spread)
        if spread == explored == 0:
            return view.index[:, :0]
        covered = topk_indices(even_spread(view), spread)
        doubt = _unseen(view) + RandomScorer(self.seed).score(view)
        doubt = doubt.scatter(1, covered, -1.0)
        return torch.cat([covered, topk_indices(doubt, explored)], dim=1)


def _unseen(view: TokenView) -> Tensor:
    """``[B, N]`` calls since the actions last looked at a token; the whole window if never."""
    if view.history is None:
        return torch.zeros_like(view.index, dtype=torch.float32)
    observed = view.history.observed.flip(1).long()  # [B, W, N], newest first
    return (observed.cumsum(dim=1) == 0).sum(dim=1).float()


def fill(selector: Selector, taken: Tensor, scores: Tensor, view: TokenView, k: int) -> Tensor:
    """What a selector adds to tokens that are kept anyway.

    It sees the others alone, so none of its choices is wasted on what is kept already.

    Args:
        selector: any.
        taken: ``[B, r]`` columns, all different, ``r <= k``.
        scores: ``[S, B, N]``.
        view: what the scores are of.
        k: how many stay, less than ``N``.

    Returns:
        ``[B, k]`` columns, ascending.
    """
    count = taken.shape[1]
    if count == 0:
        return selector.select(scores, view, k)
    if count == k:
        return taken.sort(dim=1).values
    free = torch.ones_like(view.index).scatter(1, taken, 0)
    others = free.argsort(dim=1, descending=True, stable=True)[:, : free.shape[1] - count]
    left = scores.gather(2, others.expand(scores.shape[0], -1, -1))
    picks = selector.select(left, view.take(others), k - count)
    return torch.cat([taken, others.gather(1, picks)], dim=1).sort(dim=1).values


def lift(
    columns: Tensor, taken: Tensor, scores: Tensor, view: TokenView, least: Sequence[int]
) -> Tensor:
    """The same choice, if it holds enough of every camera view; else the nearest one that does.

    A view that falls short gets its best-ranked tokens. They push out the worst-ranked of the
    views that can spare some, what ``taken`` names last. A view that has fewer tokens than its
    least keeps all.

    Args:
        columns: ``[B, k]`` the choice.
        taken: ``[B, r]`` those of them that are kept whatever their score.
        scores: ``[S, B, N]``.
        view: what the scores are of.
        least: tokens that each view must keep; at most ``k`` together.

    Returns:
        ``[B, k]`` columns, ascending.
    """
    order = best_rank(scores, view)  # below 2
    order = order.scatter_add(1, columns, torch.full_like(order, 2.0))
    order = order.scatter_add(1, taken, torch.full_like(order, 2.0))
    number = view.layout.view_of(view.index)
    for each, count in enumerate(least):
        inside = number == each
        sure = topk_mask(order.masked_fill(~inside, -1.0), min(count, order.shape[1])) & inside
        order = order + 8.0 * sure
    return topk_indices(order, columns.shape[1])
