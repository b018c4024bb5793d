"""The ground around a scene, from a nuScenes map expansion through nuscenes-devkit."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import shapely
from shapely.geometry import Polygon, box
from vla_prune_sim.drive.geometry import wrap
from vla_prune_sim.drive.scene import Lane, RoadMap

from vla_prune.errors import ConfigError, MissingError, did_you_mean

RESOLUTION_M = 0.5
AREAS = ("drivable_area", "lane", "lane_connector", "ped_crossing", "walkway", "stop_line")
LINES = ("lane_divider", "road_divider")


def load_map(root: Path, location: str, bounds: tuple[float, float, float, float]) -> RoadMap:
    """What touches a window of a map.

    Drivable areas are cut at the window; lanes are kept whole. Lanes without an arcline path,
    which some real maps have, are left out.

    Args:
        root: of the data.
        location: a nuScenes map name.
        bounds: of the window: x and y from, x and y to, metres.
    """
    api, shapes = _open(root, location, expansion(root, location).stat().st_mtime_ns)
    window = box(*bounds)
    shapely.prepare(window)
    found = {
        layer: [(token, shape) for token, shape in pairs if window.intersects(shape)]
        for layer, pairs in shapes.items()
    }
    from nuscenes.map_expansion.arcline_path_utils import discretize_lane

    lanes = {}
    for layer in ("lane", "lane_connector"):
        for token, outline in found[layer]:
            if arcs := api.arcline_path_3.get(token):
                after = tuple(api.connectivity.get(token, {}).get("outgoing", ()))
                centre = _centre(np.array(discretize_lane(arcs, RESOLUTION_M)))
                lanes[token] = token, centre, _ring(outline.exterior), after, layer != "lane"
    known = {
        token: Lane(
            token, centre, ring, tuple(t for t in after if t in lanes), connector=connector
        )
        for token, centre, ring, after, connector in lanes.values()
    }
    return RoadMap(
        location=location,
        lanes=known,
        drivable=_within([shape for _, shape in found["drivable_area"]], window),
        crossings=[_ring(shape.exterior) for _, shape in found["ped_crossing"]],
        walkways=[_ring(shape.exterior) for _, shape in found["walkway"]],
        dividers=[np.array(shape.coords) for _, shape in found["lane_divider"]],
        centre_lines=[np.array(shape.coords) for _, shape in found["road_divider"]],
        stop_lines=[_ring(shape.exterior) for _, shape in found["stop_line"]],
    )


def expansion(root: Path, location: str) -> Path:
    """The file of a map, which must be there."""
    from nuscenes.map_expansion.map_api import locations

    if location not in locations:
        raise did_you_mean(str(root), "map", location, locations)
    path = root / "maps" / "expansion" / f"{location}.json"
    if not path.is_file():
        raise MissingError(
            f"{path} is missing; unpack the nuScenes map expansion 1.3 into {root / 'maps'}."
        )
    return path


def window_around(ego: np.ndarray, margin_m: float = 150.0) -> tuple[float, float, float, float]:
    """Bounds of a log ``[T, 3]`` with a margin; enough for route, traffic and view."""
    low, high = ego[:, :2].min(0) - margin_m, ego[:, :2].max(0) + margin_m
    return (*low.tolist(), *high.tolist())


def check_expansion(root: Path, location: str) -> None:
    """Refuse a map that is not there, of an older version, or not whole."""
    path = expansion(root, location)
    _check(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _check(path: Path, stamp: int) -> None:
    try:
        head = json.loads(path.read_text())
    except ValueError as error:  # no JSON, or not even text
        raise ConfigError(
            f"{path} is no JSON ({error}); unpack the map expansion again."
        ) from error
    if not isinstance(head, dict):
        raise ConfigError(f"{path} is no map; unpack the map expansion again.")
    if str(head.get("version", "1.0")) < "1.3":
        raise ConfigError(
            f"{path} is of version {head.get('version', '1.0')}; get the map expansion 1.3."
        )
    wanted = {*AREAS, *LINES, "arcline_path_3", "connectivity", "canvas_edge", "node", "polygon"}
    if lost := sorted(wanted - set(head)):
        raise MissingError(f"{path} lacks {', '.join(lost)}; unpack the map expansion 1.3 again.")


@lru_cache(maxsize=4)
def _open(root: Path, location: str, stamp: int):
    """The devkit's map, and the shapes of its layers: ``layer -> [(token, shape)]``."""
    from nuscenes.map_expansion.map_api import NuScenesMap

    check_expansion(root, location)
    api = NuScenesMap(dataroot=str(root), map_name=location)
    shapes = {}
    for layer in AREAS:
        shapes[layer] = []
        for record in getattr(api, layer):
            for token in record.get("polygon_tokens") or [record["polygon_token"]]:
                shapes[layer].append((record["token"], api.extract_polygon(token)))
    for layer in LINES:
        lines = [(r["token"], api.extract_line(r["line_token"])) for r in getattr(api, layer)]
        shapes[layer] = [pair for pair in lines if not pair[1].is_empty]
    return api, shapes


def _centre(poses: np.ndarray) -> np.ndarray:
    step = np.hypot(*np.diff(poses[:, :2], axis=0).T)
    poses = poses[np.concatenate([[True], step > 1e-3])]
    return np.column_stack([poses[:, :2], wrap(poses[:, 2])])


def _within(areas: list[Polygon], window: Polygon) -> list[list[np.ndarray]]:
    return [rings for area in areas for rings in cut_area(area, window)]


def cut_area(area: shapely.Geometry, window: Polygon) -> list[list[np.ndarray]]:
    """``[outer, hole, ...]`` of each part of an area inside a window; untouched where all is."""
    if not (area.is_valid and isinstance(area, Polygon) and window.contains(area)):
        area = shapely.make_valid(area).intersection(window)
    parts = [p for p in getattr(area, "geoms", [area]) if isinstance(p, Polygon) and p.area > 0.1]
    return [[_ring(ring) for ring in (part.exterior, *part.interiors)] for part in parts]


def _ring(ring: shapely.LinearRing) -> np.ndarray:
    return np.array(ring.coords)[:-1, :2]
