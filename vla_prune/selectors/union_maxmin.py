"""Top-k of each score, their union, max-min diversity down to k: VLA-Pruner's filter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vla_prune.ops import gather_tokens, maxmin, topk_indices, topk_mask
from vla_prune.tokens import TokenView


@dataclass(frozen=True)
class UnionMaxMinSelector:
    """VLA-Pruner's combination-then-filter (arXiv 2511.16449, section 3.3).

    Features are the projector's output, as in the official code. The union is a mask over at most
    ``S * k`` candidates, so shapes are static; we work in float32 where the release casts to
    bfloat16, which makes ties rarer.
    """

    signals: ClassVar[tuple[int, int]] = (1, 8)

    def select(self, scores: Tensor, view: TokenView, k: int) -> Tensor:
        """``[S, B, N]`` -> ``[B, k]`` ascending."""
        union = topk_mask(scores, k).any(dim=0)  # [B, N]
        room = min(scores.shape[0] * k, scores.shape[2])
        candidates = topk_indices(
            union.float(), room
        )  # [B, room], the union and some that are barred
        picks = maxmin(gather_tokens(view.features, candidates), k, union.gather(1, candidates))
        return candidates.gather(1, picks)
