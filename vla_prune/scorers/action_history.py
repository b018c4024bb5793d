"""Action history: what the last control steps' actions looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vla_prune.errors import ConfigError
from vla_prune.tokens import TokenView


@dataclass(frozen=True)
class ActionHistoryScorer:
    """Temporally smoothed action-decode attention (VLA-Pruner, arXiv 2511.16449, section 3.2).

    ``form="paper"``: ``sum_i decay^i * S[t - i]``, newest heaviest, tokens that were cut count as
    zero (the fixed official release; its first release had the weights reversed). A token once
    dropped can then never gain evidence again.

    ``form="observed"`` (ours): the decayed mean over the steps that did observe the token. A token
    seen by none gets ``floor`` times the mean of the others: unknown, not worthless. Its evidence
    also fades towards that floor while it stays unobserved, so that old glances do not hold a
    place for ever.

    Attributes:
        decay: weight ratio of one step to the next newer one.
        form: ``paper`` or ``observed``.
        floor: value of an unobserved token in units of the mean over tokens; ``observed`` only.
    """

    decay: float = 0.8
    form: str = "observed"
    floor: float = 0.5
    needs: ClassVar[frozenset[str]] = frozenset({"history"})

    def __post_init__(self) -> None:
        """Refuse unknown forms."""
        if self.form not in ("paper", "observed"):
            raise ConfigError(
                f"action_history: form {self.form!r} is unknown; known: observed, paper."
            )

    def score(self, view: TokenView) -> Tensor:
        """``[B, N]``; all equal as long as there is no history."""
        values, observed = view.history.values, view.history.observed  # [B, W, N]
        window = values.shape[1]
        age = torch.arange(window - 1, -1, -1, device=values.device, dtype=values.dtype)
        weight = (self.decay**age)[None, :, None]
        total = (weight * values * observed).sum(dim=1)
        if self.form == "paper":
            return total
        seen = (weight * observed).sum(dim=1)  # [B, N]
        mean_seen = total.sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp_min(1e-12)
        # Evidence counts by its share of the full window's weight; the rest is the floor.
        full = (weight * observed.any(-1, keepdim=True)).sum(dim=1).clamp_min(1e-12)  # [B, 1]
        trust = seen / full
        estimate = total / seen.clamp_min(1e-12)
        return trust * estimate + (1.0 - trust) * self.floor * mean_seen
