"""One total for all views; where the score is decides how it splits."""

from __future__ import annotations

from dataclasses import dataclass

from vla_prune.budgets.constant import check_keep_ratio, tokens_kept
from vla_prune.errors import ConfigError
from vla_prune.tokens import TokenLayout


@dataclass(frozen=True)
class SharedBudget:
    """As many tokens as ``constant`` keeps, but views compete for them, row by row of a batch.

    One selection over all views, so a view without anything that matters gives its part away.
    HoloV splits its budget over image crops by their mean score in the same spirit; VLA-ADP (arXiv
    2509.22093) and Prune2Drive (arXiv 2508.13305) give views fixed ratios of their own.

    Attributes:
        keep_ratio: fraction kept, in (0, 1].
        floor: share of its even part that every view keeps whatever the scores say, in [0, 1]. 1
            is the fixed split of ``constant``.
    """

    keep_ratio: float = 1.0
    floor: float = 0.5

    def __post_init__(self) -> None:
        """Refuse shares outside of their range."""
        check_keep_ratio("shared", self.keep_ratio)
        if not 0.0 <= self.floor <= 1.0:
            raise ConfigError(f"shared: floor {self.floor} is not in [0, 1].")

    def keep(self, layout: TokenLayout) -> tuple[int, ...]:
        """Each view's even part; their sum is the total."""
        return tuple(tokens_kept(size, self.keep_ratio) for size in layout.sizes)

    def least(self, layout: TokenLayout) -> tuple[int, ...]:
        """The floors, rounded down."""
        return tuple(int(self.floor * part) for part in self.keep(layout))
