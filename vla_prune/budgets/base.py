"""The contract of a budget: counts that are known before the forward pass."""

from __future__ import annotations

from typing import Protocol

from vla_prune.tokens import TokenLayout


class Budget(Protocol):
    """How many tokens stay: one total per site, and how much of it each camera view is sure of."""

    def keep(self, layout: TokenLayout) -> tuple[int, ...]:
        """Tokens kept of each view's *original* grid; a later cut keeps at most what is left.

        Their sum is the site's total, the same for every row of a batch.
        """
        ...

    def least(self, layout: TokenLayout) -> tuple[int, ...]:
        """What no view falls below. Where that is less than ``keep``, scores split the rest."""
        ...
