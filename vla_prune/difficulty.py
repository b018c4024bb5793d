"""How sure a recipe's scores are: numbers for a controller that spends less on easy scenes.

Both measures are ours; the papers budget by a fixed share.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

from vla_prune.ops import rank_normalise


def signals(scores: Tensor) -> dict[str, Tensor]:
    """Entropy of the first signal, and disagreement of the first two where there are two.

    Args:
        scores: ``[S, B, N]``, higher is more important.

    Returns:
        Name -> ``[B]``; the names of `vla_prune.tune.controller.SIGNALS`.
    """
    found = {"entropy": entropy(scores[0])} if len(scores) else {}
    if len(scores) > 1:
        found["disagreement"] = disagreement(scores[0], scores[1])
    return found


def entropy(scores: Tensor) -> Tensor:
    """Of scores taken as shares: ``[B, N]`` -> ``[B]`` from 0 (one token has all) to 1 (even).

    Scores below zero count as zero; where nothing is left, nothing stands out: 1.
    """
    shares = scores.clamp_min(0.0)
    total = shares.sum(dim=-1, keepdim=True)
    even = torch.full_like(shares, 1.0 / shares.shape[-1])
    shares = torch.where(total > 0, shares / total.clamp_min(1e-30), even)
    return torch.special.entr(shares).sum(dim=-1) / max(log(shares.shape[-1]), 1e-30)


def disagreement(first: Tensor, second: Tensor) -> Tensor:
    """Of two rankings, twice ``[B, N]`` -> ``[B]``: 0 if they are the same, 1 if opposite.

    ``(1 - r) / 2`` with the correlation ``r`` of the ranks; 0.5 where one of them ranks nobody.
    """
    a, b = (rank_normalise(scores) for scores in (first, second))
    a, b = a - a.mean(dim=-1, keepdim=True), b - b.mean(dim=-1, keepdim=True)
    size = a.norm(dim=-1) * b.norm(dim=-1)
    return 0.5 - 0.5 * (a * b).sum(dim=-1) / size.clamp_min(1e-12)
