"""Which budgets meet a deadline by the latency model, and what would help where none does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vla_prune.tune.latency import LatencyModel
from vla_prune.tune.profile import Profile

FUSED = ("sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
WORTH = 0.2  # share of a call from which a stage is worth a word


@dataclass(frozen=True)
class Forecast:
    """One candidate before it is played.

    Attributes:
        keep_ratio: fraction kept.
        tokens: visual tokens behind the last cut.
        views: camera view -> tokens.
        predicted_ms: of a call at the percentile, transport and actuation included.
        meets: whether that is within the deadline.
    """

    keep_ratio: float
    tokens: int
    views: Mapping[str, int]
    predicted_ms: float
    meets: bool

    def row(self) -> dict[str, Any]:
        """For a table."""
        return {
            "keep_ratio": self.keep_ratio,
            "tokens": self.tokens,
            "predicted_ms": self.predicted_ms,
            "meets": self.meets,
        }


def what_would(
    profile: Profile,
    model: LatencyModel,
    fastest: Forecast,
    deadline_ms: float,
    percentile: int,
    dt_ms: float,
    others: Sequence[float] = (),
) -> str:
    """A sentence for a deadline that no candidate meets; ``others`` are budgets that would."""
    stages = {name: model.stage(name, fastest.tokens) for name in profile.stages}
    total = sum(stages.values())
    helps = []
    if others:
        helps.append(f"keep ratio {', '.join(f'{keep:g}' for keep in others)}, not asked for")
    denoise = stages.get("denoise", 0.0)
    way = fastest.predicted_ms - model.predict(fastest.tokens, percentile)
    fits = [
        share
        for share in range(99, 0, -1)
        if denoise
        and way + model.predict(fastest.tokens, percentile, {"denoise": share / 100})
        <= deadline_ms
    ]
    if fits:
        helps.append(f"at most {fits[0]}% of the denoising steps")
    elif denoise > WORTH * total:
        helps.append("fewer denoising steps, though they alone are not enough")
    if profile.subject.attention not in FUSED and stages.get("prefill", 0.0) > WORTH * total:
        helps.append(f"another attention kernel than {profile.subject.attention}")
    rows = math.ceil(fastest.predicted_ms / dt_ms)
    rate = f"a smaller chunk rate: a period of {fastest.predicted_ms:.0f} ms"
    if not 0 < profile.chunk_rows < rows:
        rate += f", or {rows} actions of {dt_ms:g} ms played before the next chunk"
    else:
        rate += f", in which a chunk of {profile.chunk_rows} actions of {dt_ms:g} ms runs out"
    helps.append(rate)
    largest = max(stages, key=stages.__getitem__)
    return (
        f"tune: no budget meets {deadline_ms:g} ms at the {percentile}th percentile: the fastest, "
        f"keep ratio {fastest.keep_ratio:g}, takes {fastest.predicted_ms:.1f} ms, of which "
        f"{largest} takes {100 * stages[largest] / total:.0f}%; what would: {'; '.join(helps)}."
    )
