"""Best rank in any signal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vla_prune.ops import topk_indices
from vla_prune.selectors.ranks import best_rank
from vla_prune.tokens import TokenView


@dataclass(frozen=True)
class RankedMaxSelector:
    """The ``k`` highest of the maximum of rank-normalised scores: what any one signal wants.

    PACT (a fork of VLA-Pruner) replaces the union and its greedy filter by one top-k on the
    maximum of both normalised scores; ranks in place of sums leave the order alone when a signal
    is scaled. This is ``ranked_union`` without its own floor, for use with a cut's ``floors``.
    """

    signals: ClassVar[tuple[int, int]] = (1, 8)

    def select(self, scores: Tensor, view: TokenView, k: int) -> Tensor:
        """``[S, B, N]`` -> ``[B, k]`` ascending."""
        return topk_indices(best_rank(scores, view), k)
