"""Where the streets of a synthetic town run: a shaken grid, bent and thinned out.

Where three or four streets meet is a junction; where two meet is a curve. Knows no lanes.

    >>> corners, streets, ends = plan_streets(np.random.default_rng(7))
    >>> len(streets) == len(ends)
    True
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from vla_prune_sim.drive.geometry import wrap

LANE_M, GUTTER_M = 3.5, 0.3
STEP_M = 0.5  # between poses along a line
RADII_M = (12.0, 60.0)
LATERAL_MPS2, SLOWING_MPS2 = 2.0, 1.5


class Path:
    """A line of poses by arc length, with a heading that turns smoothly.

    Args:
        poses: ``[P, 3]``, headings along the line.

    Attributes:
        poses: without repeated ones, headings unwrapped.
        at: ``[P]`` arc length of each, metres.
        length: of the whole.
    """

    def __init__(self, poses: np.ndarray) -> None:
        step = np.hypot(*np.diff(poses[:, :2], axis=0).T)
        keep = np.concatenate([[True], step > 1e-6])
        self.poses = poses[keep].copy()
        self.poses[:, 2] = np.unwrap(self.poses[:, 2])
        self.at = np.concatenate([[0.0], np.cumsum(step[keep[1:]])])
        self.length = float(self.at[-1])

    def pose(self, s: np.ndarray | float, left: np.ndarray | float = 0.0) -> np.ndarray:
        """Pose ``[..., 3]`` at arc length ``s``, ``left`` metres to the side; straight beyond."""
        s = np.asarray(s, float)
        x, y, heading = (np.interp(s, self.at, column) for column in self.poses.T)
        over = s - np.clip(s, 0.0, self.length)
        cos, sin = np.cos(heading), np.sin(heading)
        return np.stack([x + over * cos - left * sin, y + over * sin + left * cos, heading], -1)

    def even(self, start: float = 0.0, end: float | None = None) -> np.ndarray:
        """Poses ``[P, 3]`` at most ``STEP_M`` apart, both ends among them."""
        end = self.length if end is None else end
        return self.pose(np.linspace(start, end, max(int(np.ceil((end - start) / STEP_M)), 1) + 1))

    @cached_property
    def limit(self) -> np.ndarray:
        """``[P]`` highest speed, m/s: 2 m/s^2 sideways, slowing down for it by 1.5 m/s^2."""
        step = np.diff(self.at)
        bend = np.abs(np.diff(self.poses[:, 2])) / step
        fastest = np.minimum(np.sqrt(LATERAL_MPS2 / np.maximum(bend, 1e-4)), 40.0)
        speed = np.minimum(np.append(fastest, 40.0), np.append(40.0, fastest))
        for i in range(len(step) - 1, -1, -1):
            speed[i] = min(speed[i], np.sqrt(speed[i + 1] ** 2 + 2 * SLOWING_MPS2 * step[i]))
        return speed


@dataclass(frozen=True)
class Road:
    """A street between two junctions.

    Attributes:
        path: its middle, from mouth to mouth.
        lanes: in each direction.
        parking: whether cars may park on its left and right side, seen along the path.
    """

    path: Path
    lanes: int
    parking: tuple[bool, bool]

    @property
    def half(self) -> float:
        """From the middle to the kerb where nobody parks, metres."""
        return self.lanes * LANE_M + GUTTER_M


def plan_streets(
    rng: np.random.Generator,
) -> tuple[np.ndarray, list[Road], list[tuple[int, int]]]:
    """Middles ``[J, 2]`` of the junctions, the streets, and from which to which each one runs."""
    while True:
        nodes, edges = _grid(rng)
        chains = _chains(nodes, edges, rng)
        if chains is not None and (roads := _roads(chains, rng)) is not None:
            break
    ends = [(chain[0], chain[-1]) for chain, _ in chains]
    corners = sorted({end for pair in ends for end in pair})
    ends = [(corners.index(a), corners.index(b)) for a, b in ends]
    return nodes[corners], roads, ends


def _grid(rng: np.random.Generator) -> tuple[np.ndarray, set[tuple[int, int]]]:
    """Corners ``[N, 2]`` and the streets between them: each corner keeps two, all connect."""
    columns, rows = rng.integers(3, 5, size=2)
    spacing = [rng.uniform(*((82, 94) if n == 4 else (112, 134))) for n in (columns, rows)]
    nodes = np.array(
        [[x * spacing[0], y * spacing[1]] for y in range(rows) for x in range(columns)]
    )
    nodes = nodes + rng.uniform(-7, 7, nodes.shape) + 25.0
    edges = {(i, i + 1) for i in range(len(nodes)) if (i + 1) % columns}
    edges |= {(i, i + columns) for i in range(len(nodes) - columns)}
    for edge in rng.permutation(sorted(edges))[: rng.integers(1, 2 + len(nodes) // 3)].tolist():
        fewer = edges - {tuple(edge)}
        if all(sum(n in e for e in fewer) >= 2 for n in edge) and _connected(fewer):
            edges = fewer
    return nodes, edges


def _connected(edges: set[tuple[int, int]]) -> bool:
    reached, grown = set(), {next(iter(edges))[0]}
    while grown != reached:
        reached = grown
        grown = reached | {n for e in edges if reached & set(e) for n in e}
    return all(a in reached for a, _ in edges)


def _chains(
    nodes: np.ndarray, edges: set[tuple[int, int]], rng: np.random.Generator
) -> list[tuple[list[int], np.ndarray]] | None:
    """Streets from junction to junction: their corners and bends; None where one is a loop."""
    near = defaultdict(list)
    for a, b in sorted(edges):
        near[a].append(b)
        near[b].append(a)
    chains = []
    for start in sorted(n for n in near if len(near[n]) > 2):
        for step in near[start]:
            chain = [start, step]
            while len(near[chain[-1]]) == 2:
                chain.append(next(n for n in near[chain[-1]] if n != chain[-2]))
            if chain[0] == chain[-1]:
                return None
            if chain[0] < chain[-1] or (chain[0] == chain[-1] and chain[1] < chain[-2]):
                chains.append(chain)
    bent = []
    for chain in chains:
        points = [nodes[chain[0]]]
        for a, b in pairwise(chain):
            way = nodes[b] - nodes[a]
            if rng.random() < 0.5:
                aside = np.array([-way[1], way[0]]) / np.hypot(*way) * rng.uniform(4, 12)
                points.append((nodes[a] + nodes[b]) / 2 + aside * rng.choice([-1, 1]))
            points.append(nodes[b])
        bent.append((chain, np.array(points)))
    return bent if len(bent) >= 5 else None


def _roads(
    chains: list[tuple[list[int], np.ndarray]], rng: np.random.Generator
) -> list[Road] | None:
    """Streets with round bends, cut at their junctions; None where something does not fit."""
    counts = rng.choice([1, 2], len(chains), p=[0.6, 0.4])
    cut = defaultdict(float)
    arms = defaultdict(list)
    for (chain, points), lanes in zip(chains, counts, strict=True):
        for corner, way in (
            (chain[0], points[1] - points[0]),
            (chain[-1], points[-2] - points[-1]),
        ):
            cut[corner] = max(cut[corner], lanes * LANE_M + 7.5)
            arms[corner].append(np.arctan2(way[1], way[0]))
    for angles in arms.values():
        gaps = np.diff(np.sort(angles), append=np.min(angles) + 2 * np.pi)
        if gaps.min() < np.deg2rad(60):
            return None
    roads = []
    for (chain, points), lanes in zip(chains, counts, strict=True):
        start, end = cut[chain[0]], cut[chain[-1]]
        bend = _bends(points, start, end, rng)
        if bend is None:
            return None
        whole = Path(bend[0])
        path = Path(whole.even(start, whole.length - end))
        room = bend[1] > 28 and path.length > 45
        parking = tuple(bool(room and p < 0.55) for p in rng.random(2))
        roads.append(Road(path, int(lanes), parking))
    return roads


def _bends(
    points: np.ndarray, start: float, end: float, rng: np.random.Generator
) -> tuple[np.ndarray, float] | None:
    """Poses ``[P, 3]`` along the points with arcs for corners, and the tightest radius."""
    way = np.diff(points, axis=0)
    size = np.hypot(*way.T)
    heading = np.arctan2(way[:, 1], way[:, 0])
    room = 0.48 * size
    room[0], room[-1] = room[0] - start / 2, room[-1] - end / 2
    if len(size) > 1:
        room[0], room[-1] = size[0] - start - 6, size[-1] - end - 6
        if len(size) > 2:
            room[[0, -1]] = np.minimum(room[[0, -1]], size[[0, -1]] - 0.48 * size[[1, -2]].min())
    if room.min() < 8:
        return None
    pieces, last, tightest = [], points[0], np.inf
    for i in range(len(size) - 1):
        turn = float(wrap(heading[i + 1] - heading[i]))
        side, tan = np.sign(turn), np.tan(abs(turn) / 2)
        radius = min(rng.uniform(*RADII_M), min(room[i], room[i + 1]) / max(tan, 1e-3))
        if radius < RADII_M[0]:
            return None
        tightest = min(tightest, radius)
        begin = points[i] + way[i] / size[i] * (size[i] - radius * tan)
        normal = np.array([-np.sin(heading[i]), np.cos(heading[i])])
        angles = heading[i] + np.linspace(0, turn, int(np.ceil(radius * abs(turn) / STEP_M)) + 1)
        arc = side * radius * np.stack([np.sin(angles), -np.cos(angles)], -1)
        pieces += [_straight(last, begin), np.c_[begin + side * radius * normal + arc, angles]]
        last = points[i + 1] + way[i + 1] / size[i + 1] * radius * tan
    return np.concatenate([*pieces, _straight(last, points[-1])]), tightest


def _straight(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    steps = np.linspace(0, 1, int(np.ceil(np.hypot(*(b - a)) / STEP_M)) + 1)[:, None]
    return np.c_[a + steps * (b - a), np.full(len(steps), np.arctan2(*(b - a)[::-1]))]
