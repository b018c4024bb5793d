"""Semantic attention: what the current prefill looks at."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vla_prune.errors import ConfigError
from vla_prune.tokens import TokenView

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

    Both papers read the layer right before the cut. Once the rows have found what they look for,
    they need not look there again: in pocket-libero_object the prompt's rows keep 8 of
    10 of the named thing's tokens at layer 0 and 1 of 10 at layer 1 (README, Measured).

    Attributes:
        rows: which query rows.
        layer: decoder layer that is read, counted from 0; None for the one before the cut.
        debias: in units of an even look instead of the mean over all rows.
    """

    rows: str = "last"
    debias: bool = False
    layer: int | None = None

    def __post_init__(self) -> None:
        """Refuse unknown row kinds and layers that no decoder has."""
        if self.rows not in ROWS:
            raise ConfigError(
                f"semantic: rows {self.rows!r} is unknown; known: {', '.join(ROWS)}."
            )
        if self.layer is not None and self.layer < 0:
            raise ConfigError(
                f"semantic: layer {self.layer} is none; layers count from 0, and leaving it out "
                "reads the one before the cut."
            )

    @property
    def kind(self) -> str:
        """Its rows, and the layer where it is not the one before the cut."""
        return self.rows if self.layer is None else f"{self.rows}@{self.layer}"

    @property
    def needs(self) -> frozenset[str]:
        """The attention of its rows."""
        return frozenset({f"attention:{self.kind}"})

    def score(self, view: TokenView) -> Tensor:
        """``[B, N]`` mean probability; with ``debias`` its ratio to an even look."""
        rows = view.attention[self.kind]
        return rows.total / (rows.expected.clamp_min(1e-12) if self.debias else rows.count)
