"""An exact number of tokens per view."""

from __future__ import annotations

from dataclasses import dataclass

from vla_prune.errors import ConfigError
from vla_prune.tokens import TokenLayout


@dataclass(frozen=True)
class TokensBudget:
    """Keep exactly ``tokens`` of every view; 0 makes the blind control.

    Attributes:
        tokens: how many stay of each view.
    """

    tokens: int = 0

    def __post_init__(self) -> None:
        """Refuse negative numbers."""
        if self.tokens < 0:
            raise ConfigError(f"tokens: {self.tokens} tokens cannot be kept; give 0 or more.")

    def keep(self, layout: TokenLayout) -> tuple[int, ...]:
        """Tokens kept of each view."""
        for view in layout.views:
            if self.tokens > view.size:
                raise ConfigError(
                    f"budget tokens: {self.tokens} tokens are asked of view {view.name!r}, "
                    f"which has {view.size}; give {view.size} or fewer."
                )
        return tuple(self.tokens for _ in layout.views)

    def least(self, layout: TokenLayout) -> tuple[int, ...]:
        """The same: the split is fixed."""
        return self.keep(layout)
