"""Seeded towns of about 300 x 300 m: streets, lanes that never end, junctions, kerbs, paint.

Traffic keeps to the right; nobody turns round. Knows nobody who drives there.

    >>> town = build_town(np.random.default_rng(7))
    >>> all(lane.after for lane in town.map.lanes.values())
    True
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import shapely
from shapely.geometry import LineString, Polygon, box
from shapely.ops import unary_union
from vla_prune_sim.drive.geometry import wrap
from vla_prune_sim.drive.scene import Lane, RoadMap
from vla_prune_sim.drive.streets import GUTTER_M, LANE_M, Path, Road, plan_streets

PARKING_M, WALK_M = 2.4, 3.0
PARKING_FROM_M = 14.0  # no parking closer to the end of a street
STREET_MPS, AVENUE_MPS, TURN_MPS = 11.1, 13.9, 8.3


@dataclass(frozen=True)
class Town:
    """A street network and what lane belongs where.

    Attributes:
        map: the ground.
        roads: its streets.
        place: token of a lane -> (index of its road, whether along the road's path, number of the
            lane, counted from the middle).
        junction: token of a connector -> index of its junction.
        length: token -> metres along the lane's middle.
        before: token -> tokens of the lanes that lead to it.
        crossings: (index of the road, arc length on it) of each crossing, in the map's order.
        corners: ``[J, 2]`` middle of each junction.
    """

    map: RoadMap
    roads: tuple[Road, ...]
    place: dict[str, tuple[int, bool, int]]
    junction: dict[str, int]
    length: dict[str, float]
    before: dict[str, tuple[str, ...]]
    crossings: tuple[tuple[int, float], ...]
    corners: np.ndarray


def build_town(rng: np.random.Generator) -> Town:
    """A town; the generator's state decides everything."""
    corners, roads, ends = plan_streets(rng)
    lanes, place = _lanes(roads)
    after, connectors, junction = defaultdict(list), {}, {}
    for index in range(len(corners)):
        arms = [(r, end) for r, pair in enumerate(ends) for end in (0, 1) if pair[end] == index]
        for token, come, go, centre in _turns(arms, roads, lanes):
            connectors[token] = Lane(token, centre, _strip(centre), (go,), TURN_MPS, True)
            junction[token] = index
            after[come].append(token)
    lanes = {k: Lane(k, v, _strip(v), tuple(after[k]), speed) for k, (v, speed) in lanes.items()}
    before = defaultdict(list)
    for lane in (*lanes.values(), *connectors.values()):
        for token in lane.after:
            before[token].append(lane.token)
    crossings = _crossings(roads, rng)
    return Town(
        map=_ground(roads, lanes, connectors, crossings),
        roads=tuple(roads),
        place=place,
        junction=junction,
        length={
            k: float(np.hypot(*np.diff(lane.centre[:, :2], axis=0).T).sum())
            for k, lane in (lanes | connectors).items()
        },
        before={k: tuple(v) for k, v in before.items()},
        crossings=crossings,
        corners=corners,
    )


def _lanes(roads: list[Road]) -> tuple[dict, dict]:
    """Token -> (poses, speed limit), and token -> place."""
    lanes, place = {}, {}
    for r, road in enumerate(roads):
        speed = AVENUE_MPS if road.lanes == 2 else STREET_MPS
        for forward in (True, False):
            for i in range(road.lanes):
                token = f"road{r}-{'forward' if forward else 'backward'}-{i}"
                off = (i + 0.5) * LANE_M
                poses = road.path.pose(road.path.at, -off if forward else off)
                if not forward:
                    poses = poses[::-1] + np.array([0.0, 0.0, np.pi])
                poses[:, 2] = wrap(poses[:, 2])
                lanes[token], place[token] = (poses, speed), (r, forward, i)
    return lanes, place


def _turns(arms: list[tuple[int, int]], roads: list[Road], lanes: dict):
    """Yield (token, lane it comes from, lane it goes to, poses) of each turn at one junction.

    Right turns run from kerb to kerb, left turns from middle to middle, straight ones keep their
    number as far as there are as many lanes. Nobody turns round.
    """
    for come, end in arms:
        for go, begin in arms:
            if (come, end) == (go, begin):
                continue
            a = f"road{come}-{'forward' if end else 'backward'}-"
            b = f"road{go}-{'backward' if begin else 'forward'}-"
            n, m = roads[come].lanes, roads[go].lanes
            turn = wrap(lanes[b + "0"][0][0, 2] - lanes[a + "0"][0][-1, 2])
            if turn > 0.75:
                pairs = {(0, 0)}
            elif turn < -0.75:
                pairs = {(n - 1, m - 1)}
            else:
                pairs = {(min(j, n - 1), j) for j in range(m)} | {
                    (i, min(i, m - 1)) for i in range(n)
                }
            for i, j in sorted(pairs):
                centre = _curve(lanes[f"{a}{i}"][0][-1], lanes[f"{b}{j}"][0][0])
                yield f"{a}{i}>{b}{j}", f"{a}{i}", f"{b}{j}", centre


def _curve(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Poses of a smooth curve from one pose to another: a cubic that is near an arc."""
    turn, chord = abs(float(wrap(b[2] - a[2]))), np.hypot(*(b - a)[:2])
    reach = chord / 3 if turn < 0.05 else 2 / 3 * np.tan(turn / 4) * chord / np.sin(turn / 2)
    p, q = a[:2], b[:2]
    p1 = p + reach * np.array([np.cos(a[2]), np.sin(a[2])])
    q1 = q - reach * np.array([np.cos(b[2]), np.sin(b[2])])
    t = np.linspace(0, 1, 101)[:, None]
    xy = (1 - t) ** 3 * p + 3 * (1 - t) ** 2 * t * p1 + 3 * (1 - t) * t**2 * q1 + t**3 * q
    slope = (1 - t) ** 2 * (p1 - p) + 2 * (1 - t) * t * (q1 - p1) + t**2 * (q - q1)
    poses = Path(np.c_[xy, np.arctan2(slope[:, 1], slope[:, 0])]).even()
    poses[:, 2] = wrap(poses[:, 2])
    return poses


def _crossings(roads: list[Road], rng: np.random.Generator) -> tuple[tuple[int, float], ...]:
    found = []
    for r, road in enumerate(roads):
        length = road.path.length
        found += [(r, s) for s in (2.5, length - 2.5) if rng.random() < 0.75]
        if length > 80 and not any(road.parking) and rng.random() < 0.6:
            found.append((r, float(length * rng.uniform(0.4, 0.6))))
    return tuple(found)


def _strip(
    poses: np.ndarray, right: float = LANE_M / 2, left: float = LANE_M / 2, fine: float = 0.005
) -> np.ndarray:
    """Outline ``[Q, 2]`` of a band along poses."""
    path = Path(poses)
    sides = [path.pose(path.at, off)[:, :2] for off in (-right, left)]
    sides = [np.array(LineString(side).simplify(fine).coords) for side in sides]
    return np.concatenate([sides[0], sides[1][::-1]])


def _ground(
    roads: list[Road],
    lanes: dict[str, Lane],
    connectors: dict[str, Lane],
    crossings: tuple[tuple[int, float], ...],
) -> RoadMap:
    pieces = [Polygon(lane.polygon).buffer(GUTTER_M) for lane in connectors.values()]
    dividers, centre_lines, stop_lines = [], [], []
    for road in roads:
        path, length = road.path, road.path.length
        pieces.append(Polygon(_strip(path.poses, road.half, road.half)))
        for side, allowed in zip((1, -1), road.parking, strict=True):
            if allowed:
                kerb = path.even(PARKING_FROM_M, length - PARKING_FROM_M)
                out, back = road.half + PARKING_M, 1.0
                pieces.append(Polygon(_strip(kerb, *((back, out) if side > 0 else (out, back)))))
        body = Path(path.even(6.0, length - 6.0))
        centre_lines.append(body.poses[:, :2].copy())
        if road.lanes == 2:
            dividers += [body.pose(body.at, off)[:, :2] for off in (LANE_M, -LANE_M)]
        wide = road.lanes * LANE_M
        stop_lines.append(_strip(path.even(5.2, 5.7), 0.0, wide))
        stop_lines.append(_strip(path.even(length - 5.7, length - 5.2), wide, 0.0))
    # Closing the union rounds the kerbs at the corners.
    paved = unary_union(pieces).buffer(5.0, quad_segs=6).buffer(-5.0, quad_segs=6)
    paved = shapely.remove_repeated_points(paved, 0.01)
    stripes = [
        _strip(roads[r].path.even(s - 1.7, s + 1.7), roads[r].half, roads[r].half)
        for r, s in crossings
    ]
    pavement = paved.buffer(WALK_M, quad_segs=4).difference(paved)
    return RoadMap(
        location="boston-seaport",
        lanes={**lanes, **connectors},
        drivable=[
            [_ring(ring) for ring in (part.exterior, *part.interiors)] for part in _parts(paved)
        ],
        crossings=stripes,
        walkways=[_ring(part.exterior) for part in _without_holes(pavement)],
        dividers=dividers,
        centre_lines=centre_lines,
        stop_lines=stop_lines,
    )


def _parts(shape: shapely.Geometry) -> list[Polygon]:
    return [p for p in getattr(shape, "geoms", [shape]) if isinstance(p, Polygon) and p.area > 0.5]


def _without_holes(shape: shapely.Geometry) -> list[Polygon]:
    """Cut polygons until none has a hole."""
    whole = []
    for part in _parts(shape):
        if not part.interiors:
            whole.append(part)
            continue
        x0, y0, x1, y1 = part.bounds
        x, y = ((x0 + x1) / 2, y1) if x1 - x0 > y1 - y0 else (x1, (y0 + y1) / 2)
        half = box(x0, y0, x, y)
        whole += _without_holes(part.intersection(half)) + _without_holes(part.difference(half))
    return whole


def _ring(ring: shapely.LinearRing) -> np.ndarray:
    return np.array(ring.simplify(0.01).coords)[:-1, :2]
