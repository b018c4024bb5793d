"""A keep ratio for each camera view by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vla_prune.budgets.constant import check_keep_ratio, tokens_kept
from vla_prune.errors import did_you_mean
from vla_prune.tokens import TokenLayout


@dataclass(frozen=True)
class PerViewBudget:
    """Views that matter more keep more.

    Attributes:
        keep_ratio: for the views that are not named.
        views: view name -> its own ratio.
    """

    keep_ratio: float = 1.0
    views: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse ratios outside (0, 1]."""
        for ratio in (self.keep_ratio, *self.views.values()):
            check_keep_ratio("per_view", ratio)

    def keep(self, layout: TokenLayout) -> tuple[int, ...]:
        """Tokens kept of each view."""
        names = [view.name for view in layout.views]
        for name in self.views:
            if name not in names:
                raise did_you_mean("budget per_view", "camera view", name, names)
        ratios = [self.views.get(name, self.keep_ratio) for name in names]
        return tuple(tokens_kept(n, r) for n, r in zip(layout.sizes, ratios, strict=True))

    def least(self, layout: TokenLayout) -> tuple[int, ...]:
        """The same: the split is fixed."""
        return self.keep(layout)
