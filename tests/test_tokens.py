"""Grids, layouts and views."""

from __future__ import annotations

import torch

from vla_prune.tokens import History, Rows, TokenLayout, TokenView, ViewGrid, grid_coordinates

LAYOUT = TokenLayout((ViewGrid("front", 2, 3), ViewGrid("wrist", 1, 2)))


def view(history: bool = True) -> TokenView:
    """One sample of all eight tokens; every field numbers its columns."""
    columns = torch.arange(8)[None]
    numbered = columns.float()
    return TokenView(
        tokens=numbered[..., None].expand(1, 8, 2),
        features=-numbered[..., None],
        index=columns,
        layout=LAYOUT,
        counts=(6, 2),
        attention={"last": Rows(numbered, 1.0, 2 * numbered)},
        history=History(numbered[:, None].expand(1, 3, 8), numbered[:, None] > 5)
        if history
        else None,
        tick=torch.zeros(1),
    )


def test_a_layout_counts_its_views():
    assert (LAYOUT.sizes, LAYOUT.total) == ((6, 2), 8)
    assert (TokenLayout(()).sizes, TokenLayout(()).total) == ((), 0)


def test_coordinates_are_raster_order_view_by_view():
    assert grid_coordinates(LAYOUT).tolist() == [
        [0, 0, 0],
        [0, 0, 1],
        [0, 0, 2],
        [0, 1, 0],
        [0, 1, 1],
        [0, 1, 2],
        [1, 0, 0],
        [1, 0, 1],
    ]


def test_columns_of_one_view_cut_every_field():
    part = view().columns(6, 8, 1)
    assert part.tokens[0, :, 0].tolist() == [6, 7]
    assert part.features[0, :, 0].tolist() == [-6, -7]
    assert part.index.tolist() == [[6, 7]]
    assert part.counts == (0, 2)
    rows = part.attention["last"]
    assert (rows.total.tolist(), rows.count, rows.expected.tolist()) == ([[6, 7]], 1.0, [[12, 14]])
    assert part.history.values.shape == (1, 3, 2)
    assert part.history.observed.all()
    assert part.layout is LAYOUT
    assert part.tick is not None


def test_columns_of_a_view_without_history():
    assert view(history=False).columns(0, 6, 0).history is None
