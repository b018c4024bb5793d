"""Uniform grid: the second floor, and the coverage order that other methods borrow."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vla_prune.tokens import TokenLayout, TokenView


@lru_cache(maxsize=64)
def coverage_order(rows: int, cols: int) -> tuple[int, ...]:
    """All cells of a grid, so ordered that each prefix covers the grid evenly.

    Farthest-point order over cell centres, from the cell nearest to the middle of the upper left
    quarter; ties go to the lower index.
    """
    r, c = np.divmod(np.arange(rows * cols), cols)
    points = np.stack([r + 0.5, c + 0.5], axis=1)
    start = int(np.argmin(((points - [rows / 4, cols / 4]) ** 2).sum(1)))
    order = [start]
    closest = ((points - points[start]) ** 2).sum(1)
    closest[start] = -1.0
    for _ in range(rows * cols - 1):
        pick = int(closest.argmax())
        order.append(pick)
        closest = np.minimum(closest, ((points - points[pick]) ** 2).sum(1))
        closest[pick] = -1.0
    return tuple(order)


def coverage_rank(layout: TokenLayout, index: Tensor) -> Tensor:
    """Place of each token in its view's :func:`coverage_order`: ``[B, N]`` -> ``[B, N]`` int64."""
    ranks = np.concatenate([np.argsort(coverage_order(v.rows, v.cols)) for v in layout.views])
    return torch.as_tensor(ranks, device=index.device)[index]


@dataclass(frozen=True)
class GridScorer:
    """Evenly spread tokens, the same at every call."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def score(self, view: TokenView) -> Tensor:
        """``[B, N]``: minus the place in the coverage order."""
        return -coverage_rank(view.layout, view.index).float()
