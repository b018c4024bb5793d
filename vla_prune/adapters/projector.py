"""The cut before the decoder's layer 0, the same for every family."""

from __future__ import annotations

import torch
from torch import Tensor

from vla_prune.ops import gather_tokens
from vla_prune.pruner import PruneCall, Site
from vla_prune.tokens import TokenView

PROJECTOR = Site("projector", frozenset({"history"}))
ENCODED = Site("projector", PROJECTOR.offers | {"encoded"})  # of models that pass them on


def cut_at_projector(
    visual: Tensor, call: PruneCall, encoded: Tensor | None = None
) -> tuple[Tensor, Tensor, tuple[int, ...] | None]:
    """Visual tokens as they enter the decoder.

    Args:
        visual: ``[B, M, D]`` all tokens as they left the projector.
        call: the running policy call.
        encoded: ``[B, M, E]`` the same tokens as they left the vision encoder.

    Returns:
        The tokens that stay ``[B, K, D]``, their grid indices ``[B, K]``, and how many per view
        (None where rows differ).
    """
    batch, total = visual.shape[:2]
    index = torch.arange(total, device=visual.device).expand(batch, total)
    counts = call.layout.sizes
    if "projector" not in call.cuts:
        return visual, index, counts
    history = call.history_at(index)
    view = TokenView(
        visual,
        visual,
        index,
        call.layout,
        counts,
        history=history,
        tick=call.tick,
        encoded=encoded,
    )
    columns, counts = call.cut("projector", view)
    if columns is None:
        return visual, index, counts
    with call.clock.stage("selection"):
        return gather_tokens(visual, columns), index.gather(1, columns), counts
