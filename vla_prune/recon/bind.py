"""Puts the network into the ``foreground`` scorers of recipes when they meet a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from vla_prune.pruner import Pruner
from vla_prune.scorers.foreground import ForegroundScorer
from vla_prune.tokens import TokenLayout

RANDOM = "random"


def bind(pruners: Sequence[Pruner], adapter: Any) -> tuple[Pruner, ...]:
    """The same recipes, ready to score this model's tokens.

    Recipes without such a scorer come back as they are, and nothing is loaded. Weights are read
    once, however many recipes name them.

    Args:
        pruners: that :meth:`Pruner.check` has accepted.
        adapter: of the model; its site ``projector`` offers ``encoded``, so it has ``encoder()``.
            One that scores by other means has ``reconstructor(weights)`` and is asked for it.

    Raises:
        CheckpointError: the weights are for another encoder.
        MissingError: there are none.
    """
    loaded: dict[str | None, ForegroundScorer] = {}
    own = getattr(adapter, "reconstructor", None)
    load = own or (lambda weights: load_network(weights, adapter))

    def bound(scorer: Any) -> Any:
        if not isinstance(scorer, ForegroundScorer) or scorer.network is not None:
            return scorer
        if scorer.weights not in loaded:
            loaded[scorer.weights] = replace(scorer, network=load(scorer.weights))
        return loaded[scorer.weights]

    made = []
    for pruner in pruners:
        cuts = tuple(replace(c, scorers=tuple(map(bound, c.scorers))) for c in pruner.cuts)
        made.append(replace(pruner, cuts=cuts) if loaded else pruner)
    return tuple(made)


def scoring_macs(pruner: Pruner, layout: TokenLayout, kept: Mapping[str, int]) -> float:
    """Multiply-accumulates that a call's foreground networks take beside the language model.

    Args:
        pruner: that :func:`bind` made ready; a network that came with the tokens costs nothing.
        layout: of the model.
        kept: site -> visual tokens that stay. A cut that keeps all asks no scorer.
    """
    from vla_prune.recon.model import ReconPruner, recon_macs

    networks = [
        scorer.network
        for cut in pruner.cuts
        if kept.get(cut.site, layout.total) < layout.total
        for scorer in cut.scorers
        if isinstance(scorer, ForegroundScorer) and isinstance(scorer.network, ReconPruner)
    ]
    return sum(recon_macs(n.config, layout.total, len(layout.views)) for n in networks)


def load_network(
    weights: str | None,
    adapter: Any,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> torch.nn.Module:
    """The network that a recipe's ``weights`` mean for this model, on its device or another.

    As exact as the model unless a dtype is given: bfloat16 behind one in half precision, which
    has rounded the tokens already, else float32.
    """
    from vla_prune.recon.checkpoint import find_reconstructor, load_reconstructor
    from vla_prune.recon.model import ReconConfig, ReconPruner

    encoder, device = adapter.encoder(), device or adapter.device
    exact = next(adapter.model.parameters()).dtype == torch.float32
    dtype = dtype or (torch.float32 if exact else torch.bfloat16)
    if weights == RANDOM:
        heads = max(1, encoder.dim // 128)
        ffn = round(encoder.dim * 11008 / 2048)
        kv_heads = 2 if heads % 2 == 0 else 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pruner = ReconPruner(ReconConfig(encoder.dim, ffn, heads, kv_heads))
        return pruner.to(device, dtype).eval().requires_grad_(False)
    folder = find_reconstructor(weights, encoder)
    return load_reconstructor(folder, encoder, dtype, device)
