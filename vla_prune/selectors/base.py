"""The contract of a selector: stacked scores and a count become ascending indices."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from vla_prune.tokens import TokenView


class Selector(Protocol):
    """Which set of ``k`` tokens the scores make.

    Attributes:
        signals: least and greatest number of scorers that it can work with.
    """

    signals: tuple[int, int]

    def select(self, scores: Tensor, view: TokenView, k: int) -> Tensor:
        """``[S, B, N]`` scores -> ``[B, k]`` columns of the view, ascending, no repeats."""
        ...
