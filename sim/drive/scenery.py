"""What stands beside the streets of a synthetic town: buildings, trees, light. For pictures only.

>>> scenery = build_scenery(town, route.poses, np.random.default_rng(7))  # doctest: +SKIP
"""

from __future__ import annotations

import numpy as np
import shapely
from shapely.geometry import Point, Polygon
from shapely.ops import unary_union
from vla_prune_sim.drive.geometry import corners
from vla_prune_sim.drive.roads import PARKING_M, WALK_M, Town
from vla_prune_sim.drive.scene import Scenery

BUILDINGS, TREES = 50, 70  # at most
CORNER_M = 26.0  # junctions can be seen into
FACADES = np.array(
    [
        (176, 120, 98), (201, 180, 150), (150, 150, 158), (120, 134, 150), (214, 205, 190),
        (140, 98, 84), (190, 160, 120), (104, 112, 118), (168, 176, 170), (222, 190, 160),
    ]
)  # fmt: skip
# Name, brightness of the sun, colour of the sky.
LIGHTS = (
    ("bright sun", 1.05, (120, 175, 232)),
    ("a clear day", 0.95, (150, 188, 226)),
    ("haze", 0.85, (188, 198, 206)),
    ("overcast", 0.7, (168, 174, 180)),
    ("low sun", 0.75, (222, 178, 140)),
    ("dusk", 0.42, (84, 84, 116)),
)


def build_scenery(town: Town, route: np.ndarray, rng: np.random.Generator) -> tuple[Scenery, str]:
    """Scenery, nearest to the route first, and the name of its light.

    Args:
        town: its buildings and trees keep clear of every street and pavement.
        route: ``[P, 2 or more]`` points of the route.
        rng: decides everything.
    """
    paved = unary_union([Polygon(part[0], part[1:]) for part in town.map.drivable])
    buildings, outlines = _buildings(town, paved.buffer(WALK_M + 1.5), rng)
    order = _nearest(buildings, route)[:BUILDINGS]
    kept = unary_union([outlines[i].buffer(2.0) for i in order])
    trees = _trees(town, paved.buffer(WALK_M + 0.4), kept, rng)
    name, sun, sky = LIGHTS[rng.integers(len(LIGHTS))]
    colours = FACADES[rng.integers(len(FACADES), size=len(order))] + rng.integers(
        -14, 15, size=(len(order), 3)
    )
    return Scenery(
        buildings=buildings[order].round(3),
        building_colours=np.clip(colours, 0, 255).astype(np.uint8),
        trees=trees[_nearest(trees, route)[:TREES]].round(3),
        sun=round(float(sun + rng.uniform(-0.05, 0.05)), 3),
        sky=tuple(int(v) for v in np.clip(np.array(sky) + rng.integers(-10, 11, 3), 0, 255)),
    ), name


def _buildings(
    town: Town, kept_free: shapely.Geometry, rng: np.random.Generator
) -> tuple[np.ndarray, list[Polygon]]:
    """Rows of houses ``[B, 6]`` along both sides of every street, and their outlines."""
    rows, outlines = [], []
    shapely.prepare(kept_free)
    for road in town.roads:
        for side in (1, -1):
            s = rng.uniform(0, 12)
            while s < road.path.length:
                length, width = rng.uniform(9, 24), rng.uniform(8, 15)
                back = road.half + PARKING_M + WALK_M + rng.uniform(2.5, 7) + width / 2
                pose = road.path.pose(s + length / 2, side * back)
                s += length + rng.uniform(2, 14)
                height = rng.uniform(4, 9) if rng.random() < 0.6 else rng.uniform(9, 26)
                outline = Polygon(corners(pose, length, width))
                if np.hypot(*(town.corners - pose[:2]).T).min() < CORNER_M:
                    continue
                if outline.intersects(kept_free) or any(outline.intersects(o) for o in outlines):
                    continue
                rows.append((*pose, length, width, height))
                outlines.append(outline)
    return np.array(rows).reshape(-1, 6), outlines


def _trees(
    town: Town, paved: shapely.Geometry, built: shapely.Geometry, rng: np.random.Generator
) -> np.ndarray:
    """Trees ``[K, 4]`` behind the pavements."""
    shapely.prepare(paved)
    shapely.prepare(built)
    trees = []
    for road in town.roads:
        for side in (1, -1):
            for s in np.arange(rng.uniform(0, 10), road.path.length, rng.uniform(9, 22)):
                off = road.half + PARKING_M + WALK_M + rng.uniform(0.6, 5)
                x, y, _ = road.path.pose(s + rng.uniform(-2, 2), side * off)
                height = rng.uniform(4, 10)
                crown = height * rng.uniform(0.2, 0.32)
                if not paved.intersects(Point(x, y)) and not built.intersects(Point(x, y)):
                    trees.append((x, y, height, crown))
    return np.array(trees).reshape(-1, 4)


def _nearest(things: np.ndarray, route: np.ndarray) -> np.ndarray:
    """Indices of things by their distance to the route."""
    away = np.hypot(*np.moveaxis(things[:, None, :2] - route[::10, :2], -1, 0)).min(1)
    return np.argsort(away, kind="stable")
