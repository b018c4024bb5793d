"""A share of the budget by rank in any score, the rest far from it: importance, then diversity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vla_prune.errors import ConfigError
from vla_prune.ops import maxmin, rank_normalise
from vla_prune.tokens import TokenView


@dataclass(frozen=True)
class SeededMaxMinSelector:
    """Keep what any signal ranks highest, then add the tokens that differ most from what is kept.

    Ours. VLA-Pruner (arXiv 2511.16449, section 3.3) first takes the union of what its signals
    prefer and thins it out by max-min diversity, so a token that no signal prefers never returns.
    Here diversity looks at the whole view: what the signals overlook, or what entered the scene
    since, is kept if nothing like it is. Rank-normalised scores make signals comparable whatever
    their scale. Features are the projector's output.

    Attributes:
        share: of ``k`` that goes by score, in [0, 1]; at least one token.
    """

    share: float = 0.25
    signals: ClassVar[tuple[int, int]] = (1, 8)

    def __post_init__(self) -> None:
        """Refuse shares outside [0, 1]."""
        if not 0.0 <= self.share <= 1.0:
            raise ConfigError(f"seeded_maxmin: share {self.share} is not in [0, 1].")

    def select(self, scores: Tensor, view: TokenView, k: int) -> Tensor:
        """``[S, B, N]`` -> ``[B, k]`` ascending."""
        ranks = rank_normalise(scores)
        # A second, smaller term breaks ties towards tokens that several signals agree on.
        best = ranks.amax(dim=0) + 1e-3 * ranks.mean(dim=0)  # [B, N]
        seeds = best.topk(min(k, max(1, round(self.share * k))), dim=-1).indices
        return maxmin(view.features, k, seeds=seeds)
