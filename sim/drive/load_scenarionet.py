"""ScenarioNet pickles of nuScenes scenes (Li et al., 2023, arXiv 2306.12241): no pictures.

The format is a dict with ``id``, ``version``, ``length``, ``metadata``, ``tracks`` and
``map_features``, as ScenarioNet's nuScenes converter writes it. What one must know of it: the
ego's length and width are swapped, so that we take neither from the file; its poses are every
fifth CAN-bus message whether or not one is missing, which differentiate to nonsense, so that we
spread the jumps along the path and smooth over 0.9 s; only every fifth step is annotated; lanes
across a junction have no outline, older files do not link them; drivable areas are rings. The
ground is flat, so boxes stand on it whatever height they were annotated at.

Pickles can run code, so that only arrays and plain containers are let in.
"""

from __future__ import annotations

import pickle
import re
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.lib.stride_tricks import sliding_window_view
from shapely.geometry import LineString, Polygon, box
from vla_prune_sim.drive.broken import scene_data
from vla_prune_sim.drive.cameras import nuscenes_cameras
from vla_prune_sim.drive.geometry import wrap
from vla_prune_sim.drive.load_map import cut_area, window_around
from vla_prune_sim.drive.load_nuscenes import OFF_LANES, bare_scenery
from vla_prune_sim.drive.matching import find_route
from vla_prune_sim.drive.nuscenes_format import CATEGORIES
from vla_prune_sim.drive.sampling import check_size, resample, settled, speed_along, stack_tracks
from vla_prune_sim.drive.scene import PRIMED, STEP_S, Lane, RoadMap, Scene, Tracks

from vla_prune.errors import ConfigError, MissingError, ShapeError

NUMPY_2 = int(np.__version__.partition(".")[0]) >= 2
KEYFRAME_STEPS = 5
LANE_M = 3.5  # width of a connector, which brings none
SMOOTH_STEPS = 4  # before and after
REVERSED_M = 3.0  # a log that goes back farther really reversed
LINK_M, LINK_RAD = 0.5, 0.35  # between the end of a lane and the start of the next
KINDS = {
    "VEHICLE": "vehicle.car",
    "PEDESTRIAN": "human.pedestrian.adult",
    "CYCLIST": "vehicle.bicycle",
    "TRAFFIC_CONE": "movable_object.trafficcone",
    "TRAFFIC_BARRIER": "movable_object.barrier",
}
ALLOWED = {
    *(
        (f"numpy.{core}.multiarray", n)
        for core in ("core", "_core")
        for n in ("_reconstruct", "scalar")
    ),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    *(("numpy", name) for name in ("ndarray", "dtype")),
    ("collections", "defaultdict"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    *(("builtins", n) for n in ("dict", "list", "tuple", "set", "frozenset", "bytearray")),
    *(("builtins", n) for n in ("int", "float", "bool", "str", "bytes", "complex")),
}


def scene_files(folder: Path) -> dict[str, Path]:
    """Name of each scene -> its pickle, in this folder and those below."""
    files: dict[str, Path] = {}
    for path in sorted(Path(folder).rglob("*.pkl")):
        if path.stem in ("dataset_summary", "dataset_mapping"):
            continue
        name = re.sub(r"^sd_nuscenes_v1\.0-[a-z]+_", "", path.stem)
        if name in files:
            raise ConfigError(f"{files[name]} and {path} are both {name!r}; rename or remove one.")
        files[name] = path
    return files


def load_pickle(path: Path) -> dict[str, Any]:
    """The dict in a ScenarioNet file, which may hold nothing but data."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in ALLOWED:
                raise ConfigError(
                    f"{path} holds a {module}.{name}; ScenarioNet files hold arrays and plain "
                    "containers only, so do not trust it."
                )
            # numpy 1 and numpy 2 keep the same functions in modules of different names.
            if module.startswith(("numpy.core.", "numpy._core.")):
                part = module.rpartition(".")[2]
                module = f"{'numpy._core' if NUMPY_2 else 'numpy.core'}.{part}"
            return super().find_class(module, name)

    try:
        with Path(path).open("rb") as file:
            whole = Unpickler(file).load()
    except FileNotFoundError as error:
        raise MissingError(f"{path} is missing; give a folder of ScenarioNet pickles.") from error
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError) as error:
        raise ShapeError(
            f"{path} is no whole pickle ({error}); convert the scene again."
        ) from error
    wanted = ("id", "version", "length", "metadata", "tracks", "map_features")
    lost = [key for key in wanted if not isinstance(whole, dict) or key not in whole]
    if lost:
        raise ShapeError(f"{path} lacks {', '.join(lost)}; give files of ScenarioNet scenes.")
    return whole


def load_scenarionet(path: Path) -> Scene:
    """One scene of a ScenarioNet file, with the cameras of a nuScenes car and no pictures.

    Raises:
        ShapeError: it is no ScenarioNet file of nuScenes, has no ego, the pickle, a track or a map
            feature is not whole, time stamps go backwards or are not 0.1 s apart, or a pose or
            size makes no sense.
        ConfigError: it holds code. Who gave the file cannot be trusted with the others either.
    """
    whole = load_pickle(path)
    with scene_data(str(path), "convert the scene again"):
        return _scene(path, whole)


def _scene(path: Path, whole: dict[str, Any]) -> Scene:
    name, steps, about = str(whole["id"]), int(whole["length"]), whole["metadata"]
    ego_id = about.get("sdc_id", "ego")
    if ego_id not in whole["tracks"]:
        raise ShapeError(f"{path} has no ego track {str(ego_id)!r}; convert the scene again.")
    if "nuscenes" not in str(about.get("dataset", "nuscenes")).lower():
        raise ShapeError(
            f"{path} is of {about['dataset']}; only scenes of nuScenes have its cameras and car."
        )
    _check_stamps(path, about.get("ts"), steps)
    state = whole["tracks"][ego_id]["state"]
    poses, there = _poses(path, ego_id, state, steps), _there(state)
    if not there.all():
        raise ShapeError(
            f"{path}: the ego, track {ego_id}, is not there at step {there.argmin()}; convert the "
            "scene again."
        )
    # The second that hands a drive over is smoothed by itself: it must not know what came later.
    first, whole_way = PRIMED + 1, _smooth(_spread(poses))
    ego = np.concatenate([_smooth(_spread(poses[:first])), whole_way[first:]])
    ground = _ground(whole["map_features"], about.get("map", ""), ego)
    route, on_lanes = find_route(ground.lanes, ego)
    said = f"{about.get('dataset', 'nuscenes')} scene on {about.get('map', 'an unnamed map')}."
    return Scene(
        name=name,
        source="scenarionet",
        version=str(whole["version"]),
        description=said if on_lanes else f"{said} {OFF_LANES}",
        on_lanes=on_lanes,
        map=ground,
        ego=ego,
        ego_speed=speed_along(ego),
        tracks=_tracks(path, whole["tracks"], ego_id, steps),
        cameras=nuscenes_cameras(),
        route=route,
        scenery=bare_scenery(),
        keyframes=np.arange(0, steps, KEYFRAME_STEPS),
    )


def _check_stamps(path: Path, given: Any, steps: int) -> None:
    """One time stamp a step, ascending, 0.1 s apart; files without any are believed."""
    if given is None:
        return
    stamps = np.asarray(given, float)
    if stamps.shape != (steps,) or not np.isfinite(stamps).all():
        raise ShapeError(
            f"{path}: ts has {stamps.size} entries for {steps} steps, or one is not finite; "
            "convert the scene again."
        )
    apart = np.diff(stamps)
    if (apart <= 0).any():
        at = int(np.argmax(apart <= 0)) + 1
        raise ShapeError(f"{path}: time stamp {at} does not come after the one before; mend ts.")
    if steps > 1 and abs(np.median(apart) - STEP_S) > 0.2 * STEP_S:
        raise ShapeError(
            f"{path}: its steps are {np.median(apart):g} s apart; a drive needs {STEP_S:g} s, so "
            "convert the scene at 10 Hz."
        )


def _poses(path: Path, track: str, state: dict[str, Any], steps: int) -> np.ndarray:
    """``[T, 3]``, finite wherever the track is valid."""
    place, heading = np.asarray(state["position"], float), np.asarray(state["heading"], float)
    if place.shape[:1] != (steps,) or heading.size != steps:
        raise ShapeError(
            f"{path}: track {track} has positions {place.shape} and headings {heading.shape} for "
            f"{steps} steps; convert the scene again."
        )
    poses = np.column_stack([place[:, :2], heading.reshape(-1)])
    there = _there(state)
    if there.shape != (steps,):
        raise ShapeError(
            f"{path}: track {track} says for {there.size} of {steps} steps whether it is there; "
            "convert the scene again."
        )
    if not np.isfinite(poses[there]).all():
        raise ShapeError(f"{path}: a pose of track {track} is not finite; convert it again.")
    return poses


def _there(state: dict[str, Any]) -> np.ndarray:
    return np.asarray(state["valid"]).reshape(-1) > 0.5


def _spread(poses: np.ndarray) -> np.ndarray:
    """The same path at the median pace of five steps, so that no step leaps ahead or back."""
    way = np.stack([np.cos(poses[:-1, 2]), np.sin(poses[:-1, 2])], -1)
    steps = (np.diff(poses[:, :2], axis=0) * way).sum(-1)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    reach = np.maximum.accumulate(along)
    if len(steps) < 5 or reach[-1] < 1.0 or (reach - along).max() > REVERSED_M:
        return poses
    pace = np.median(sliding_window_view(np.pad(steps, 2, mode="edge"), 5), axis=-1).clip(0)
    new = np.concatenate([[0.0], np.cumsum(pace) * reach[-1] / pace.sum()])
    ahead = np.concatenate([[True], along[1:] > reach[:-1]])
    columns = (poses[:, 0], poses[:, 1], np.unwrap(poses[:, 2]))
    return np.stack([np.interp(new, along[ahead], column[ahead]) for column in columns], -1)


def _smooth(poses: np.ndarray) -> np.ndarray:
    """A parabola through nine poses ``[T, 3]`` around each; fewer at the ends."""
    poses = np.column_stack([poses[:, :2], np.unwrap(poses[:, 2])])
    smooth = poses.copy()
    for i in range(len(poses)):
        low, high = max(i - SMOOTH_STEPS, 0), min(i + SMOOTH_STEPS + 1, len(poses))
        if high - low > SMOOTH_STEPS:
            fit = np.vander(np.arange(low, high) - i, 3)
            smooth[i] = np.linalg.lstsq(fit, poses[low:high] - poses[i], rcond=None)[0][-1]
            smooth[i] += poses[i]
    return np.column_stack([smooth[:, :2], wrap(smooth[:, 2])])


def _tracks(path: Path, tracks: dict[str, Any], ego_id: str, steps: int) -> Tracks:
    tokens, categories, size, z, moves = [], [], [], [], []
    at = np.arange(steps) * STEP_S
    for token, track in tracks.items():
        state = track["state"]
        poses = _poses(path, token, state, steps) if token != ego_id else None
        there = _there(state)
        keys = np.flatnonzero(there[::KEYFRAME_STEPS]) * KEYFRAME_STEPS
        if poses is None or not len(keys):
            continue
        kind = str(track.get("metadata", {}).get("type"))
        category = kind if kind in CATEGORIES else KINDS.get(str(track["type"]))
        if category is None:
            continue
        sides = [
            np.asarray(state[key], float).reshape(-1) for key in ("length", "width", "height")
        ]
        tokens.append(str(token))
        categories.append(category)
        size.append(tuple(float(np.median(side[keys])) for side in sides))
        check_size(str(path), f"track {token}", size[-1])
        z.append(size[-1][2] / 2)
        moves.append(resample(at[keys], settled(category, poses[keys]), at))
    return stack_tracks(tuple(tokens), categories, size, z, moves, steps)


def _ground(features: dict[str, Any], location: str, ego: np.ndarray) -> RoadMap:
    """The map around the log, as `load_map` cuts it."""
    window = box(*window_around(ego))
    near: dict[str, dict[str, np.ndarray]] = {}
    for token, feature in features.items():
        points = feature["polyline"] if feature.get("polygon") is None else feature["polygon"]
        points = np.asarray(points, float)[:, :2]
        if len(points) > 1 and window.intersects(LineString(points)):
            near.setdefault(str(feature["type"]), {})[token] = points
    lanes = {
        token: _lane(token, features[token])
        for kind in ("LANE_SURFACE_STREET", "LANE_SURFACE_UNSTRUCTURE")
        for token in near.get(kind, ())
    }
    if not any("exit_lanes" in features[token] for token in lanes):
        lanes = _link(lanes)
    known = {k: tuple(t for t in lane.after if t in lanes) for k, lane in lanes.items()}
    lanes = {token: replace(lane, after=known[token]) for token, lane in lanes.items()}
    outlines = [
        Polygon(ring)
        for token, ring in near.get("ROAD_LINE_SOLID_SINGLE_WHITE", {}).items()
        if str(token).startswith("boundary") and len(ring) > 3
    ]
    if outlines:
        # A ring within another one is a hole, a ring within that is ground again.
        area = reduce(shapely.symmetric_difference, (shapely.make_valid(o) for o in outlines))
    else:
        area = shapely.unary_union([Polygon(lane.polygon).buffer(0.3) for lane in lanes.values()])
    lines = {kind: list(near.get(kind, {}).values()) for kind in near}
    return RoadMap(
        location=location,
        lanes=lanes,
        drivable=cut_area(area, window),
        crossings=lines.get("CROSSWALK", []),
        walkways=lines.get("ROAD_EDGE_SIDEWALK", []),
        dividers=lines.get("ROAD_LINE_BROKEN_SINGLE_WHITE", []),
        centre_lines=lines.get("ROAD_LINE_SOLID_SINGLE_YELLOW", []),
    )


def _lane(token: str, feature: dict[str, Any]) -> Lane:
    line = np.asarray(feature["polyline"], float)[:, :2]
    step = np.hypot(*np.diff(line, axis=0).T)
    line = line[np.concatenate([[True], step > 1e-3])]
    if len(line) < 2 or not np.isfinite(line).all():
        raise ShapeError(f"lane {token} has no two places; convert the scene again.")
    way = np.gradient(line, axis=0)
    outline = feature.get("polygon")
    connector = outline is None or str(feature["type"]) == "LANE_SURFACE_UNSTRUCTURE"
    if outline is None:
        strip = LineString(line).buffer(LANE_M / 2, cap_style="flat")
        outline = np.array(strip.exterior.coords)[:-1]
    if len(outline) < 3:
        raise ShapeError(
            f"lane {token} has an outline of {len(outline)} corners; convert the scene again."
        )
    return Lane(
        token=token,
        centre=np.column_stack([line, np.arctan2(way[:, 1], way[:, 0])]),
        polygon=np.asarray(outline, float)[:, :2],
        after=tuple(feature.get("exit_lanes") or ()),
        connector=connector,
    )


def _link(lanes: dict[str, Lane]) -> dict[str, Lane]:
    """Lanes followed by those that begin where they end and as they do; older files are silent."""
    tokens = list(lanes)
    starts = np.array([lane.centre[0] for lane in lanes.values()]).reshape(-1, 3)
    linked = {}
    for token, lane in lanes.items():
        end = lane.centre[-1]
        near = np.hypot(*(starts[:, :2] - end[:2]).T) < LINK_M
        near &= np.abs(wrap(starts[:, 2] - end[2])) < LINK_RAD
        after = tuple(tokens[i] for i in np.flatnonzero(near) if tokens[i] != token)
        linked[token] = replace(lane, after=after)
    return linked
