"""Top-k of one score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vla_prune.ops import topk_indices
from vla_prune.tokens import TokenView


@dataclass(frozen=True)
class TopKSelector:
    """The ``k`` highest scores."""

    signals: ClassVar[tuple[int, int]] = (1, 1)

    def select(self, scores: Tensor, view: TokenView, k: int) -> Tensor:
        """``[1, B, N]`` -> ``[B, k]`` ascending."""
        return topk_indices(scores[0], k)
