"""Foreground: what a small trained network would keep to redraw people, roads and things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from vla_prune.errors import UnsupportedError
from vla_prune.tokens import TokenView, grid_coordinates


@dataclass(frozen=True)
class ForegroundScorer:
    """The scorer of FastDriveVLA's ReconPruner (arXiv 2507.23318, section 3).

    It reads the vision encoder's tokens before any projector and knows no words, so one network
    serves every policy that shares the encoder. This class is only the settings: the network is
    :class:`vla_prune.recon.model.ReconPruner`, put in by :func:`vla_prune.recon.bind.bind` when
    the recipe meets a model. Each camera view is scored as a picture of its own; the scores of all
    views are on one scale, so one global top-k over them is the paper's rule.

    Attributes:
        weights: a folder, the name of shipped weights, or ``random`` (for speed alone); None takes
            the shipped ones that were trained on the model's encoder.
        network: ``(tokens [B, N, E], places [B, N, 3], views) -> [B, N]``; left out in recipes.
    """

    weights: str | None = None
    network: Callable[[Tensor, Tensor, int], Tensor] | None = field(default=None, repr=False)
    needs: ClassVar[frozenset[str]] = frozenset({"encoded"})

    def score(self, view: TokenView) -> Tensor:
        """``[B, N]``: positive is foreground, as the sign threshold of its training has it."""
        if self.network is None:
            raise UnsupportedError(
                "foreground: the recipe is not attached to a model, so its network is not loaded; "
                "use vla_prune.policy.attach, or bind of vla_prune.recon."
            )
        places = grid_coordinates(view.layout, view.index.device)[view.index]  # [B, N, 3]
        return self.network(view.encoded, places, len(view.layout.views)).float()
