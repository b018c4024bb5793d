"""Semantic attention: what the current prefill looks at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from vla_prune.errors import ConfigError
from vla_prune.tokens import TokenView

POLICY = "policy"
ROWS = ("last", "prompt", "prefill", "action")


@dataclass(frozen=True)
class SemanticScorer:
    """Attention that the current frame's rows pay to each visual token, at one layer before a cut.

    ``rows="last"`` is FastV (arXiv 2403.06764): the last prompt token. ``rows="prefill"`` is
    VLA-Pruner (arXiv 2511.16449, section 3.2): every row before the action slots.
    ``rows="prompt"`` reads the text rows alone. ``rows="action"`` reads the action slots, which
    only policies with parallel decoding have.

    Averaging all rows of a causal map favours early raster tokens about 41:1, because more rows
    can see them, and those in front have less else to look at. Dividing by the rows that can see a
    token leaves 5:1; ``debias`` divides by what the token would receive if every row looked alike
    at all that it can see, which leaves nothing. It changes no order on bidirectional hosts.

    Both papers read the layer right before the cut. Which layer's prompt rows look at what the
    prompt names differs between policies, and the others may look everywhere else; a policy's
    config can say which it is (``prompt_layer``, found by `vla_prune_sim.train.look`).

    Attributes:
        rows: which query rows.
        debias: in units of an even look instead of the mean over all rows.
        layer: decoder layer that is read, counted from 0; ``policy`` for the one that the policy's
            config names; None, also where it names none, for the one before the cut.
    """

    rows: str = "last"
    debias: bool = False
    layer: int | Literal["policy"] | None = None

    def __post_init__(self) -> None:
        """Refuse unknown row kinds and layers that no decoder has."""
        if self.rows not in ROWS:
            raise ConfigError(
                f"semantic: rows {self.rows!r} is unknown; known: {', '.join(ROWS)}."
            )
        if self.layer not in (None, POLICY) and not (
            isinstance(self.layer, int) and self.layer >= 0
        ):
            raise ConfigError(
                f"semantic: layer {self.layer!r} is none; give a number from 0 on, {POLICY!r}, or "
                "nothing for the one before the cut."
            )

    @property
    def kind(self) -> str:
        """Its rows, and the layer where it is not the one before the cut."""
        return self.rows if self.layer is None else f"{self.rows}@{self.layer}"

    @property
    def needs(self) -> frozenset[str]:
        """The attention of its rows."""
        return frozenset({f"attention:{self.kind}"})

    def of_policy(self, layer: int | None) -> SemanticScorer:
        """The same, with ``policy`` replaced by the layer that a policy's config names."""
        return replace(self, layer=layer) if self.layer == POLICY else self

    def score(self, view: TokenView) -> Tensor:
        """``[B, N]`` mean probability; with ``debias`` its ratio to an even look."""
        rows = view.attention[self.kind]
        return rows.total / (rows.expected.clamp_min(1e-12) if self.debias else rows.count)
