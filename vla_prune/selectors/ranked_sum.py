"""Weighted sum of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vla_prune.errors import ConfigError
from vla_prune.ops import rank_normalise, topk_indices
from vla_prune.selectors.ranks import even_spread
from vla_prune.tokens import TokenView


@dataclass(frozen=True)
class RankedSumSelector:
    """The ``k`` highest of the weighted sum of rank-normalised scores: what all signals want.

    VLA-Pruner (arXiv 2511.16449) reports a plain sum of its two scores as an ablation; ranks keep
    the signal with the larger scale from deciding alone.

    Attributes:
        weights: one for each scorer of the cut, in their order; none for equal weights.
    """

    weights: Sequence[float] = ()

    def __post_init__(self) -> None:
        """Refuse weights that cannot be summed up to anything."""
        if self.weights and (min(self.weights) < 0.0 or sum(self.weights) <= 0.0):
            raise ConfigError(
                f"ranked_sum: weights {list(self.weights)} must not be negative, and not all 0."
            )

    @property
    def signals(self) -> tuple[int, int]:
        """As many as there are weights."""
        return (len(self.weights), len(self.weights)) if self.weights else (1, 8)

    def select(self, scores: Tensor, view: TokenView, k: int) -> Tensor:
        """``[S, B, N]`` -> ``[B, k]`` ascending."""
        weights = scores.new_tensor(self.weights or [1.0] * scores.shape[0])
        total = (rank_normalise(scores) * (weights / weights.sum())[:, None, None]).sum(dim=0)
        return topk_indices(total + 1e-6 * even_spread(view), k)
