"""Best rank in any score, above a floor of evenly spread tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vla_prune.errors import ConfigError
from vla_prune.ops import rank_normalise, topk_indices
from vla_prune.scorers.grid import coverage_rank
from vla_prune.tokens import TokenView


@dataclass(frozen=True)
class RankedUnionSelector:
    """Keep what any signal ranks highest, and let a few tokens watch the rest of the view.

    Ours. Rank-normalised scores make signals comparable whatever their scale; their maximum is a
    union that needs no loop. The coverage floor (FEATHER, arXiv 2412.13180, keeps a stride-3 grid)
    reserves a share of the budget for evenly spread tokens, so that what entered the scene
    unnoticed can be seen.

    Attributes:
        coverage: share of ``k`` reserved for the even spread, in [0, 1].
    """

    coverage: float = 0.125
    signals: ClassVar[tuple[int, int]] = (1, 8)

    def __post_init__(self) -> None:
        """Refuse shares outside [0, 1]."""
        if not 0.0 <= self.coverage <= 1.0:
            raise ConfigError(f"ranked_union: coverage {self.coverage} is not in [0, 1].")

    def select(self, scores: Tensor, view: TokenView, k: int) -> Tensor:
        """``[S, B, N]`` -> ``[B, k]`` ascending."""
        best = rank_normalise(scores).amax(dim=0)  # [B, N] in [0, 1]
        # A second, smaller term breaks ties towards tokens that several signals agree on.
        best = best + 1e-3 * rank_normalise(scores).mean(dim=0)
        spread = round(self.coverage * k)
        order = rank_normalise(-coverage_rank(view.layout, view.index).float())
        reserved = order > 1.0 - (spread - 0.5) / max(order.shape[-1] - 1, 1)
        return topk_indices(best + 2.0 * reserved, k)
