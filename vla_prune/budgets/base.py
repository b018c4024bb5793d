"""The contract of a budget: counts that are known before the forward pass."""

from __future__ import annotations

from typing import Protocol

from vla_prune.tokens import TokenLayout


class Budget(Protocol):
    """How many tokens stay in each camera view."""

    def keep(self, layout: TokenLayout) -> tuple[int, ...]:
        """Tokens kept of each view's *original* grid; a later cut keeps at most what is left."""
        ...
