"""Which lanes a logged drive followed, and the route they make.

Map matching as a shortest path over the log, after Newson and Krumm, 2009 ("Hidden Markov map
matching through noise and sparseness"), on poses instead of bare positions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from vla_prune_sim.drive.geometry import Polyline, wrap
from vla_prune_sim.drive.scene import Lane

BEHIND_M, BEYOND_M = 30.0, 80.0
NEAR_M, TURNED_RAD = 4.0, np.pi / 3  # farther from its middle, or turned more, is not on the lane
EVERY_M = 1.0  # between the matched poses
ON_LANES = 0.8  # share of them that must be on lanes
HOPS, HOP_COST, CHANGE_COST = 3, 0.2, 30.0
CHANGE_M = 10.0  # before and after a change of lane
SPACING_M = 0.5  # between the route's points


def find_route(lanes: Mapping[str, Lane], ego: np.ndarray) -> tuple[np.ndarray, bool]:
    """The route of a log.

    It begins 30 m behind the start and goes 80 m beyond the end, straight on where lanes fork, or
    as far as the lanes go.

    Args:
        lanes: of the map around.
        ego: ``[T, 3]`` rear axle.

    Returns:
        Points ``[R, 2]`` half a metre apart, and whether they follow lanes. Where the log leaves
        the lanes they are the log's own path, extended straight.
    """
    poses = _sparse(ego)
    tokens, picks = _match(lanes, poses)
    if tokens is None:
        return _resample(_own_path(poses)), False
    runs = _runs(lanes, tokens, picks)
    pieces = []
    for k, (chain, first, last) in enumerate(runs):
        begin = Polyline(lanes[chain[0]].centre).project(poses[first, :2])[0]
        end = Polyline(lanes[chain[-1]].centre).project(poses[last, :2])[0]
        end += _length(lanes, chain) - Polyline(lanes[chain[-1]].centre).length
        low, high = begin + CHANGE_M, end - CHANGE_M
        if k == 0:
            whole = _before(lanes, chain)
            ahead = _length(lanes, whole) - _length(lanes, chain)
            chain, low, end, high = whole, begin + ahead - BEHIND_M, end + ahead, high + ahead
        if k == len(runs) - 1:
            chain, high = _after(lanes, chain), end + BEYOND_M
        path = Polyline(_middle(lanes, chain))
        # Straight on behind the first lane, but not beyond the last one.
        high = min(high, path.length)
        pieces.append(_cut(path, low, high))
    return _resample(np.concatenate(pieces)), True


def _sparse(ego: np.ndarray) -> np.ndarray:
    """Poses a metre apart; the last one is the log's."""
    kept = [0]
    for i in range(1, len(ego)):
        if np.hypot(*(ego[i, :2] - ego[kept[-1], :2])) >= EVERY_M:
            kept.append(i)
    return ego[kept if kept[-1] == len(ego) - 1 else [*kept, len(ego) - 1]]


def _own_path(poses: np.ndarray) -> np.ndarray:
    way = np.stack([np.cos(poses[:, 2]), np.sin(poses[:, 2])], -1)
    behind, beyond = poses[0, :2] - BEHIND_M * way[0], poses[-1, :2] + BEYOND_M * way[-1]
    return np.concatenate([behind[None], poses[:, :2], beyond[None]])


def _match(lanes: Mapping[str, Lane], poses: np.ndarray) -> tuple[list[str] | None, np.ndarray]:
    """Token of the lane at each matched pose, and the indices of these; None where off lanes."""
    names = sorted(lanes)
    if not names:
        return None, np.empty(0, int)
    cost = np.stack([_away(lanes[name].centre, poses) for name in names], 1)  # [S, L]
    picks = np.flatnonzero(np.isfinite(cost).any(1))
    if len(picks) < ON_LANES * len(poses):
        return None, picks
    used = np.flatnonzero(np.isfinite(cost).any(0))
    names, cost = [names[i] for i in used], cost[picks][:, used]
    move = np.array([_moves(lanes, name, names) for name in names])
    total, came = cost[0], []
    for row in cost[1:]:
        whole = total[:, None] + move
        came.append(whole.argmin(0))
        total = whole.min(0) + row
    best = [int(total.argmin())]
    for back in reversed(came):
        best.append(int(back[best[-1]]))
    return [names[i] for i in reversed(best)], picks


def _away(centre: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """``[S]`` how badly a lane suits each pose; infinite where it does not."""
    far = np.hypot(*(poses[:, None, :2] - centre[None, :, :2]).transpose(2, 0, 1))
    turned = np.abs(wrap(poses[:, None, 2] - centre[None, :, 2]))
    off = (far > NEAR_M) | (turned > TURNED_RAD)
    return np.where(off, np.inf, far**2 + (turned / 0.5) ** 2).min(1)


def _moves(lanes: Mapping[str, Lane], start: str, names: list[str]) -> list[float]:
    """Cost of coming from one lane to each other."""
    hops, edge = {start: 0}, [start]
    for hop in range(1, HOPS + 1):
        edge = [t for token in edge for t in lanes[token].after if t in lanes and t not in hops]
        hops.update(dict.fromkeys(edge, hop))
    return [HOP_COST * hops[name] if name in hops else CHANGE_COST for name in names]


def _runs(
    lanes: Mapping[str, Lane], tokens: list[str], picks: np.ndarray
) -> list[tuple[list[str], int, int]]:
    """Chains of lanes that follow each other, with the first and last pose on each."""
    runs = [([tokens[0]], picks[0], picks[0])]
    for token, pick in zip(tokens[1:], picks[1:], strict=True):
        chain, first, _ = runs[-1]
        between = _between(lanes, chain[-1], token)
        if between is None:
            runs.append(([token], pick, pick))
        else:
            runs[-1] = (chain + between, first, pick)
    return runs


def _between(lanes: Mapping[str, Lane], start: str, goal: str) -> list[str] | None:
    """Lanes from ``start``, left out, to ``goal``; None where it does not follow soon."""
    if start == goal:
        return []
    chains = [[start]]
    for _ in range(HOPS):
        chains = [[*c, t] for c in chains for t in lanes[c[-1]].after if t in lanes]
        for chain in chains:
            if chain[-1] == goal:
                return chain[1:]
    return None


def _before(lanes: Mapping[str, Lane], chain: list[str]) -> list[str]:
    """The chain with lanes in front of it, the straightest at each fork."""
    length, chain = 0.0, list(chain)
    while length < BEHIND_M:
        found = [lane for lane in lanes.values() if chain[0] in lane.after]
        found = [lane for lane in found if lane.token not in chain]
        if not found:
            break
        chain.insert(0, min(found, key=lambda lane: (_bend(lane), lane.token)).token)
        length += _length(lanes, chain[:1])
    return chain


def _after(lanes: Mapping[str, Lane], chain: list[str]) -> list[str]:
    """The chain with lanes behind it, the straightest at each fork."""
    length, chain = 0.0, list(chain)
    while length < BEYOND_M:
        found = [lanes[t] for t in lanes[chain[-1]].after if t in lanes and t not in chain]
        if not found:
            break
        chain.append(min(found, key=lambda lane: (_bend(lane), lane.token)).token)
        length += _length(lanes, chain[-1:])
    return chain


def _bend(lane: Lane) -> float:
    return round(abs(float(wrap(lane.centre[-1, 2] - lane.centre[0, 2]))), 3)


def _middle(lanes: Mapping[str, Lane], chain: list[str]) -> np.ndarray:
    return np.concatenate([lanes[token].centre[:, :2] for token in chain])


def _length(lanes: Mapping[str, Lane], chain: list[str]) -> float:
    return Polyline(_middle(lanes, chain)).length


def _cut(path: Polyline, low: float, high: float) -> np.ndarray:
    """Points from one arc length to another; one point where nothing lies between."""
    if high <= low:
        return path.pose((low + high) / 2)[None, :2]
    inside = path.points[(path.at > low) & (path.at < high)]
    return np.concatenate([path.pose(low)[None, :2], inside, path.pose(high)[None, :2]])


def _resample(points: np.ndarray) -> np.ndarray:
    path = Polyline(points)
    return path.pose(np.linspace(0.0, path.length, int(np.ceil(path.length / SPACING_M)) + 1))[
        :, :2
    ]
