"""Where visual tokens are, and what a scorer may look at.

Knows no model: an adapter fills these in. One grid index per visual token, counted over all views
in raster order, is the currency that survives every cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class ViewGrid:
    """The patch grid of one camera view."""

    name: str
    rows: int
    cols: int

    @property
    def size(self) -> int:
        """Visual tokens of this view."""
        return self.rows * self.cols


@dataclass(frozen=True)
class TokenLayout:
    """The views of a policy, in the order in which their tokens enter the language model."""

    views: tuple[ViewGrid, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Tokens of each view before any cut."""
        return tuple(view.size for view in self.views)

    @property
    def total(self) -> int:
        """Tokens of all views before any cut."""
        return sum(self.sizes)

    def view_of(self, index: Tensor) -> Tensor:
        """Number of the view in which each grid index lies: int64 of the same shape."""
        edges = torch.tensor(self.sizes, device=index.device).cumsum(0)
        return torch.bucketize(index.contiguous(), edges, right=True)


@dataclass(frozen=True)
class Rows:
    """The attention that one kind of query row paid to the visual tokens.

    Attributes:
        total: ``[B, N]`` probability received, summed over the rows, mean over heads.
        count: rows that were summed, a number or ``[B, 1]``.
        expected: ``[B or 1, N]`` what ``total`` would be if every row looked alike at all that it
            can see. Under a causal mask early tokens are seen by more rows, and by rows that have
            fewer others to look at.
    """

    total: Tensor
    count: Tensor | float
    expected: Tensor

    def take(self, columns: Tensor) -> Rows:
        """What the tokens at ``columns`` ``[B, K]`` alone received."""
        expected = self.expected.expand_as(self.total).gather(1, columns)
        return Rows(self.total.gather(1, columns), self.count, expected)


@dataclass(frozen=True)
class History:
    """What earlier control steps' actions looked at, newest last, gathered at the present tokens.

    Attributes:
        values: ``[B, W, N]`` attention of the action rows; zero where unobserved.
        observed: ``[B, W, N]`` bool; False where the token had been cut, or no such step exists
            yet.
    """

    values: Tensor
    observed: Tensor


@dataclass(frozen=True)
class TokenView:
    """What a scorer or selector may look at, at one site.

    Attributes:
        tokens: ``[B, N, D]`` hidden states of the visual tokens that are present at the site.
        features: ``[B, N, D]`` the same tokens as they left the projector.
        index: ``[B, N]`` their grid indices, ascending.
        layout: the grids that ``index`` counts over.
        counts: present tokens of each view; columns are ordered by view. None where rows differ.
        attention: row kind, with ``@LAYER`` where that was asked -> :class:`Rows`; only what was
            asked for.
        history: action attention of earlier steps, if the recipe keeps any.
        tick: ``[B]`` policy calls made before this one with each state, on from where its sequence
            of random draws begins.
        encoded: ``[B, N, E]`` the same tokens as they left the vision encoder, before any
            projector; only at the site ``projector``, of models that pass them on.
    """

    tokens: Tensor
    features: Tensor
    index: Tensor
    layout: TokenLayout
    counts: tuple[int, ...] | None
    attention: Mapping[str, Rows] = field(default_factory=dict)
    history: History | None = None
    tick: Tensor | None = None
    encoded: Tensor | None = None

    def columns(self, start: int, stop: int, view: int) -> TokenView:
        """The tokens of one camera view alone: columns ``start`` to ``stop``."""
        cut = slice(start, stop)
        return replace(
            self,
            tokens=self.tokens[:, cut],
            features=self.features[:, cut],
            index=self.index[:, cut],
            counts=tuple(stop - start if v == view else 0 for v in range(len(self.counts))),
            attention={
                kind: Rows(rows.total[:, cut], rows.count, rows.expected[:, cut])
                for kind, rows in self.attention.items()
            },
            history=self.history
            and History(self.history.values[..., cut], self.history.observed[..., cut]),
            encoded=None if self.encoded is None else self.encoded[:, cut],
        )

    def take(self, columns: Tensor) -> TokenView:
        """The tokens at ``columns`` ``[B, K]`` alone."""
        pick = lambda x: x.gather(1, columns[..., None].expand(-1, -1, x.shape[2]))  # noqa: E731
        attention = {kind: rows.take(columns) for kind, rows in self.attention.items()}
        history = self.history
        if history is not None:
            past = columns[:, None].expand(-1, history.values.shape[1], -1)
            history = History(history.values.gather(2, past), history.observed.gather(2, past))
        return replace(
            self,
            tokens=pick(self.tokens),
            features=pick(self.features),
            index=self.index.gather(1, columns),
            counts=None,
            attention=attention,
            history=history,
            encoded=None if self.encoded is None else pick(self.encoded),
        )


def grid_coordinates(layout: TokenLayout, device: torch.device | None = None) -> Tensor:
    """View, row and column of every grid index: ``[M, 3]`` int64."""
    parts = []
    for number, view in enumerate(layout.views):
        rows = torch.arange(view.rows, device=device).repeat_interleave(view.cols)
        cols = torch.arange(view.cols, device=device).repeat(view.rows)
        parts.append(torch.stack([torch.full_like(rows, number), rows, cols], dim=1))
    return torch.cat(parts)
