"""The same keep ratio for every view."""

from __future__ import annotations

from dataclasses import dataclass

from vla_prune.errors import ConfigError
from vla_prune.tokens import TokenLayout


def check_keep_ratio(where: str, keep_ratio: float) -> None:
    """Raise unless the ratio lies in (0, 1]."""
    if not 0.0 < keep_ratio <= 1.0:
        raise ConfigError(
            f"{where}: keep_ratio {keep_ratio} is not in (0, 1]; it is the fraction kept, "
            "and keeping nothing is the recipe 'blind'."
        )


def tokens_kept(size: int, keep_ratio: float) -> int:
    """``round(size * keep_ratio)``, at least one of a view that has tokens."""
    return max(round(size * keep_ratio), min(size, 1))


@dataclass(frozen=True)
class ConstantBudget:
    """Keep ``round(n * keep_ratio)`` tokens of every view.

    Attributes:
        keep_ratio: fraction kept, in (0, 1].
    """

    keep_ratio: float = 1.0

    def __post_init__(self) -> None:
        """Refuse ratios outside (0, 1]."""
        check_keep_ratio("constant", self.keep_ratio)

    def keep(self, layout: TokenLayout) -> tuple[int, ...]:
        """Tokens kept of each view."""
        return tuple(tokens_kept(size, self.keep_ratio) for size in layout.sizes)

    def least(self, layout: TokenLayout) -> tuple[int, ...]:
        """The same: the split is fixed."""
        return self.keep(layout)
