"""Token norm: a control, not a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vla_prune.tokens import TokenView


@dataclass(frozen=True)
class NormScorer:
    """Keep the visual tokens with the largest norm."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def score(self, view: TokenView) -> Tensor:
        """``[B, N]`` Euclidean norm of the hidden state."""
        return view.tokens.float().norm(dim=-1)
