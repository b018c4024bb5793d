"""Random scores: the floor that every method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vla_prune.tokens import TokenView


@dataclass(frozen=True)
class RandomScorer:
    """A fresh draw at every policy call, the same for the same seed, call and grid place.

    The draw is a hash of (seed, call number, grid index), so that a batch gives what singles give
    and nothing has to be remembered.

    Attributes:
        seed: which sequence of draws.
    """

    seed: int = 0
    needs: ClassVar[frozenset[str]] = frozenset()

    def score(self, view: TokenView) -> Tensor:
        """``[B, N]`` uniform in [0, 1)."""
        tick = view.tick if view.tick is not None else torch.zeros_like(view.index[:, 0])
        x = (
            (view.index + 1) * 0x9E3779B1
            + (tick[:, None] + 1) * 0x85EBCA6B
            + self.seed * 0xC2B2AE35
        )
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
            x = x & 0xFFFFFFFF
            x = (x ^ (x >> shift)) * factor
        return (x & 0xFFFFFF).float() / float(1 << 24)
