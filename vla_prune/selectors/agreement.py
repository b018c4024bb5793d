"""What the signals agree on stays; what they dispute is spread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vla_prune.ops import maxmin, rank_normalise
from vla_prune.tokens import TokenView


@dataclass(frozen=True)
class AgreementSelector:
    """Score where the signals agree, diversity where they do not.

    A token is *agreed* if every signal has it among its best ``k``, and *disputed* if some do.
    All agreed tokens stay; max-min diversity of projector features fills the rest from the
    disputed ones, far from what is kept. So full agreement is top-k, and none at all is
    VLA-Pruner's filter (arXiv 2511.16449, section 3.3), which may thin out agreed tokens too.

    The gate is PACT's idea (``yangmu-0/pact-vla-pruner``): measure how far the signals conflict
    and act on it. PACT answers a conflict, the Jensen-Shannon divergence of the two scores, with a
    larger budget; here the budget is given, and the conflict, ``k`` minus the agreed, goes to
    diversity. Counting by rank makes it blind to the scale of a signal, and a signal that says
    nothing (equal scores) disputes nothing.
    """

    signals: ClassVar[tuple[int, int]] = (1, 8)

    def select(self, scores: Tensor, view: TokenView, k: int) -> Tensor:
        """``[S, B, N]`` -> ``[B, k]`` ascending."""
        ranks = rank_normalise(scores)
        best = ranks >= ranks.topk(k, dim=-1).values[..., -1:]  # [S, B, N], ties included
        agreed = best.all(dim=0)
        disputed = (best & (ranks > 0.0)).any(dim=0)
        return maxmin(view.features, k, allowed=agreed | disputed, first=agreed)
