"""Max-min diversity without any score: DivPrune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vla_prune.ops import maxmin
from vla_prune.tokens import TokenView


@dataclass(frozen=True)
class MaxMinSelector:
    """Tokens that lie far apart by cosine distance of projector features (DivPrune, CVPR 2025)."""

    signals: ClassVar[tuple[int, int]] = (0, 0)

    def select(self, scores: Tensor, view: TokenView, k: int) -> Tensor:
        """``[0, B, N]`` -> ``[B, k]`` ascending."""
        return maxmin(view.features, k)
