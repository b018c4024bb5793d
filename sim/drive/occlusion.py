"""In which order a painter draws upright convex things so that the near ones hide the far ones.

Two convex footprints that do not overlap have a line between them, and what stands on the
viewer's side of it cannot be hidden by the other; so each pair has a right order, unlike with an
order by distance, which is wrong for long boxes. Where the orders of several go in a circle, one
of them is cut in two (Newell, Newell and Sancha 1972, for polygons; here for footprints).
"""

from __future__ import annotations

import numpy as np
from vla_prune_sim.drive.geometry import wrap

TOUCH_M = 1e-6
CUTS = 24  # of one picture; then the farther centre goes first


def paint_order(
    footprint: np.ndarray, bottom: np.ndarray, top: np.ndarray, viewer: np.ndarray
) -> list[tuple[int, list[np.ndarray]]]:
    """From back to front: the thing's index, and the half-planes it is cut to, mostly none.

    Things that stand in one another are ordered by the line that they overlap least across.

    Args:
        footprint: ``[N, 4, 2]`` convex corners, counter-clockwise, metres.
        bottom: ``[N]`` height of the underside, metres.
        top: ``[N]`` height of the upper side, metres.
        viewer: ``[3]`` metres.

    Returns:
        Pairs of an index and planes ``[3]`` (a, b, c): what has a x + b y + c >= 0 is drawn.
    """
    index = np.arange(len(footprint))
    planes: list[list[np.ndarray]] = [[] for _ in index]
    painted: list[tuple[int, list[np.ndarray]]] = []
    for cuts in range(CUTS + 1):
        done, stuck = _sort(footprint, bottom[index], top[index], viewer)
        painted += [(int(index[i]), planes[i]) for i in done]
        if not stuck:
            return painted
        if cuts == CUTS:
            break
        ring = _ring(stuck)
        size = np.ptp(footprint[ring], axis=1)
        longest = ring[int(np.hypot(size[:, 0], size[:, 1]).argmax())]
        halves, sides = _halve(footprint[longest])
        rest = [i for i in stuck if i != longest]
        footprint = np.concatenate([footprint[rest], halves])
        planes = [planes[i] for i in rest] + [[*planes[longest], side] for side in sides]
        index = np.concatenate([index[rest], [index[longest]] * 2])
    rest = sorted(stuck)
    away = np.hypot(*(footprint[rest].mean(1) - viewer[:2]).T)
    return painted + [(int(index[rest[i]]), planes[rest[i]]) for i in np.argsort(-away)]


def _sort(
    footprint: np.ndarray, bottom: np.ndarray, top: np.ndarray, viewer: np.ndarray
) -> tuple[list[int], dict[int, list[int]]]:
    """Back to front as far as it goes, and who of the others waits for whom."""
    first, second = _in_line(footprint, viewer)
    hides = _hides(
        footprint,
        bottom,
        top,
        viewer,
        np.concatenate([first, second]),
        np.concatenate([second, first]),
    )
    hides, back = hides[: len(first)], hides[len(first) :]
    waits: list[int] = [0] * len(footprint)  # how many must be painted before
    fronts: list[list[int]] = [[] for _ in waits]
    for a, b, a_hides, b_hides in zip(
        first.tolist(), second.tolist(), hides.tolist(), back.tolist(), strict=True
    ):
        if a_hides:
            waits[a] += 1
            fronts[b].append(a)
        if b_hides:
            waits[b] += 1
            fronts[a].append(b)
    ready = [i for i, n in enumerate(waits) if not n]
    for i in ready:
        for front in fronts[i]:
            waits[front] -= 1
            if not waits[front]:
                ready.append(front)
    painted = set(ready)
    return ready, {
        i: [front for front in fronts[i] if front not in painted]
        for i in range(len(waits))
        if i not in painted
    }


def _in_line(footprint: np.ndarray, viewer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of things that share a direction from the viewer."""
    sight = footprint - viewer[:2]
    angle = np.arctan2(sight[..., 1], sight[..., 0])
    aside = wrap(angle - angle[:, :1])
    low, high = aside.min(1), aside.max(1)
    around = high - low > np.pi - 1e-9  # the viewer stands in it
    half = np.where(around, np.pi, (high - low) / 2 + 1e-9)
    mid = angle[:, 0] + (low + high) / 2
    shared = np.cos(mid[:, None] - mid) >= np.cos(np.minimum(half[:, None] + half, np.pi))
    return np.nonzero(np.triu(shared, 1))


def _hides(
    footprint: np.ndarray,
    bottom: np.ndarray,
    top: np.ndarray,
    viewer: np.ndarray,
    near: np.ndarray,
    far: np.ndarray,
) -> np.ndarray:
    """``[2 P]`` whether ``near`` may hide ``far``: no line or level between says it cannot.

    The second half of the pairs are those of the first the other way round.
    """
    edge = footprint[:, [1, 2, 3, 0]] - footprint
    normal = np.stack([edge[..., 1], -edge[..., 0]], -1) / np.hypot(edge[..., :1], edge[..., 1:])
    offset = (normal * footprint).sum(-1)
    sees = normal @ viewer[:2] - offset  # [N, 4] how far the viewer is beyond each edge
    n, other = normal[near][:, :, None], footprint[far][:, None]
    # [2 P, 4] how far all of the far one is beyond each edge of the near one; and the reverse.
    own = (n[..., 0] * other[..., 0] + n[..., 1] * other[..., 1]).min(-1) - offset[near]
    back = np.roll(own, len(own) // 2, axis=0)
    # Where the two stand in one another, the line of least overlap separates them.
    least = np.minimum(np.maximum(own.max(1), back.max(1)), -TOUCH_M)[:, None]
    line = ((own >= least) & (sees[near] >= 0)) | ((back >= least) & (sees[far] <= 0))
    above, under = bottom[near] >= top[far], top[near] <= bottom[far]
    level = (above & (viewer[2] <= bottom[near])) | (under & (viewer[2] >= top[near]))
    # One above the other: the level decides, as their lines are none.
    stacked = (above | under) & (least[:, 0] < -TOUCH_M)
    return ~np.where(stacked, level, line.any(1) | level)


def _ring(stuck: dict[int, list[int]]) -> list[int]:
    """Those that hide somebody else who is stuck: on a circle, or between two."""
    ring = set(stuck)
    while True:
        kept = {i for i in ring if any(front in ring for front in stuck[i])}
        if kept == ring:
            return sorted(ring)
        ring = kept


def _halve(quad: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Two quads ``[2, 4, 2]`` of a quad cut across its longer side, and the half-plane of each."""
    if np.linalg.norm(quad[1] - quad[0]) < np.linalg.norm(quad[2] - quad[1]):
        quad = np.roll(quad, -1, axis=0)
    a, b = (quad[0] + quad[1]) / 2, (quad[2] + quad[3]) / 2
    halves = np.stack([[quad[0], a, b, quad[3]], [a, quad[1], quad[2], b]])
    normal = np.array([b[1] - a[1], a[0] - b[0]])
    normal = normal if normal @ (quad[0] - a) > 0 else -normal
    plane = np.array([*normal, -normal @ a])
    return halves, [plane, -plane]
