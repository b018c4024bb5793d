"""The contract of a scorer: a pure function of what it may look at."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from vla_prune.tokens import TokenView


class Scorer(Protocol):
    """Importance per visual token. Settings on the object; no state, no I/O, no model names."""

    @property
    def needs(self) -> frozenset[str]:
        """What it reads beyond tokens, features and indices.

        ``history`` or ``attention:ROWS`` with rows ``last``, ``prompt``, ``prefill`` or
        ``action``, read one layer before the cut; ``attention:ROWS@LAYER`` is read at that layer.
        A site that cannot give it refuses when the recipe is attached.
        """
        ...

    def score(self, view: TokenView) -> Tensor:
        """``[B, N]`` float, higher = keep. Only the order matters to most selectors."""
        ...
