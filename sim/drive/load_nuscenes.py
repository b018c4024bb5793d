"""Scenes of a nuScenes root, real or synthetic, through nuscenes-devkit.

The log is read at 10 Hz from step 0 at the first sample: the ego's pose from the poses of
LIDAR_TOP and CAM_FRONT (20 and 12 Hz), the others from their 2 Hz boxes, positions linear and
headings the short way round, there between their first and last box. The ground is flat, so real
boxes stand on it whatever height they were annotated at.

    >>> load_root(Path("/data/nuscenes"))  # doctest: +SKIP
    ['scene-0061', 'scene-0103', ...]
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from vla_prune_sim.drive.broken import scene_data
from vla_prune_sim.drive.load_map import check_expansion, load_map, window_around
from vla_prune_sim.drive.load_shots import (
    chain,
    finite,
    load_shots,
    mounting,
    pose_of,
    readings,
)
from vla_prune_sim.drive.matching import find_route
from vla_prune_sim.drive.nuscenes_format import EXTRA, TABLES, VERSION
from vla_prune_sim.drive.sampling import check_size, resample, settled, speed_along, stack_tracks
from vla_prune_sim.drive.scene import (
    CAMERAS,
    STEP_S,
    Camera,
    Lane,
    RoadMap,
    Scene,
    Scenery,
    Tracks,
)

from vla_prune.errors import ConfigError, MissingError, ShapeError, did_you_mean

VERSIONS = ("v1.0-mini", "v1.0-trainval", VERSION)
OFF_LANES = "The log leaves the lanes, so the route is its own path."


@dataclass(frozen=True)
class _Root:
    """A root that has been opened and checked."""

    tables: Any  # the devkit's NuScenes
    scenes: dict[str, dict]
    extra: dict[str, dict] | None


def load_root(root: Path, version: str | None = None) -> list[str]:
    """Names of the scenes of a root.

    Raises:
        MissingError: a table, picture or map is not there; names the file.
        ConfigError: the version or a map name is unknown.

    Args:
        root: the folder that holds ``v1.0-...``, ``maps`` and ``samples``.
        version: None takes the only one there is.
    """
    return list(_open_root(Path(root), version).scenes)


def load_scene(root: Path, name: str, version: str | None = None) -> Scene:
    """One scene of a root; a synthetic one as it was written.

    Raises:
        ShapeError: a pose or camera is not finite, time stamps go backwards, or a record is broken
            in another way; names the scene.
        ConfigError: there is no such scene.
    """
    root = Path(root)
    opened = _open_root(root, version)
    if name not in opened.scenes:
        raise did_you_mean(str(root), "scene", name, opened.scenes)
    with scene_data(f"{root / opened.tables.version}, {name}", "mend the tables, or leave it out"):
        return _scene(root, opened, name)


def _scene(root: Path, opened: _Root, name: str) -> Scene:
    tables, record = opened.tables, opened.scenes[name]
    samples = _samples(tables, record)
    start = samples[0]["timestamp"]
    stamps = np.array([sample["timestamp"] for sample in samples]) - start
    steps = int(stamps[-1] / (STEP_S * 1e6) + 1e-3) + 1
    at_us = np.arange(steps) * STEP_S * 1e6
    ego = _ego(tables, name, samples, at_us)
    log = tables.get("log", record["log_token"])
    scene = Scene(
        name=name,
        source="synthetic" if opened.extra else "nuscenes",
        version=tables.version,
        description=record["description"],
        map=RoadMap(log["location"], {}, []),
        ego=ego,
        ego_speed=speed_along(ego),
        tracks=_tracks(tables, name, samples, at_us),
        cameras=_cameras(tables, samples[0]),
        route=ego[:, :2],
        scenery=bare_scenery(),
        keyframes=np.minimum(np.round(stamps / (STEP_S * 1e6)).astype(int), steps - 1),
        images={
            channel: [Path(tables.get_sample_data_path(s["data"][channel])) for s in samples]
            for channel in CAMERAS
        },
        shots=load_shots(tables, name, samples[0]),
        start_us=start,
    )
    if opened.extra:
        return _as_written(scene, root, opened.extra)
    ground = load_map(root, log["location"], window_around(ego))
    route, on_lanes = find_route(ground.lanes, ego)
    said = scene.description if on_lanes else f"{scene.description} {OFF_LANES}".strip()
    tracks = replace(scene.tracks, z=scene.tracks.size[:, 2] / 2)
    return replace(
        scene, map=ground, route=route, on_lanes=on_lanes, tracks=tracks, description=said
    )


def read_image(path: Path) -> np.ndarray:
    """A picture ``[H, W, 3]`` uint8 RGB, whole or not at all."""
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except FileNotFoundError as error:
        raise MissingError(
            f"{path} is missing; get the picture, or leave out its scene."
        ) from error
    except (OSError, SyntaxError) as error:
        raise ShapeError(f"{path} is no whole picture ({error}); get it again.") from error


def bare_scenery() -> Scenery:
    """Nothing beside the road."""
    return Scenery(np.zeros((0, 6)), np.zeros((0, 3), np.uint8), np.zeros((0, 4)))


def find_version(root: Path, version: str | None = None) -> str:
    """The version asked for, or the only one a root has."""
    if version is None:
        found = [name for name in VERSIONS if (root / name).is_dir()]
        if len(found) != 1:
            what = f"has {', '.join(found)}" if found else "has no nuScenes tables"
            raise ConfigError(
                f"{root} {what}; name one of {', '.join(found or VERSIONS)} as the version, or "
                f"give its folder, such as {root / (found or VERSIONS)[0]}."
            )
        version = found[0]
    if version not in VERSIONS:
        raise did_you_mean(str(root), "version", version, VERSIONS)
    return version


def _open_root(root: Path, version: str | None) -> _Root:
    """The root, once per process as long as its tables stay the same."""
    version = find_version(root, version)
    files = [root / version / f"{name}.json" for name in TABLES]
    files += [root / EXTRA] if version == VERSION else []
    for file in files:
        if not file.is_file():
            raise MissingError(f"{file} is missing; a root of {version} is not whole without it.")
    return _open(root, version, tuple(file.stat().st_mtime_ns for file in files))


@lru_cache(maxsize=2)
def _open(root: Path, version: str, stamps: tuple[int, ...]) -> _Root:
    try:
        from nuscenes.nuscenes import NuScenes
    except ImportError as error:
        raise MissingError("nuscenes-devkit is missing; install vla-prune[nuscenes].") from error
    try:
        for record in read_table(root / version / "map.json"):
            if not (root / record["filename"]).is_file():
                raise MissingError(
                    f"{root / record['filename']} is missing; get the map's picture."
                )
        if not read_table(root / version / "scene.json"):
            raise ConfigError(
                f"{root / version / 'scene.json'} has no scene; get the tables again."
            )
        tables = NuScenes(version=version, dataroot=str(root), verbose=False)
        scenes = {record["name"]: record for record in tables.scene}
        locations = {log["location"] for log in tables.log}
        _check_pictures(root, tables)
    except ValueError:
        for name in TABLES:  # the devkit does not say which
            read_json(root / version / f"{name}.json")
        raise
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{root / version}: a table lacks the record or field {error}; get the tables again."
        ) from error
    for location in sorted(locations):
        check_expansion(root, location)
    return _Root(tables, scenes, read_json(root / EXTRA) if version == VERSION else None)


def read_json(path: Path) -> Any:
    """A table or a map; what is no JSON is named."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # no JSON, or not even text
        raise ConfigError(f"{path} is no JSON ({error}); get it again.") from error


def read_table(path: Path) -> list[dict]:
    """A table, which is a list of records."""
    table = read_json(path)
    if not isinstance(table, list) or not all(isinstance(row, dict) for row in table):
        raise ConfigError(f"{path} is no list of records; get it again.")
    return table


def _check_pictures(root: Path, tables: Any) -> None:
    """All keyframes' pictures, by listing each folder once."""
    listed: dict[str, set[str]] = {}
    for row in tables.sample_data:
        if row["is_key_frame"] and row["channel"] in CAMERAS:
            folder, _, name = row["filename"].rpartition("/")
            if folder not in listed:
                here = root / folder
                listed[folder] = {p.name for p in here.iterdir()} if here.is_dir() else set()
            if name not in listed[folder]:
                raise MissingError(
                    f"{root / row['filename']} is missing; get all pictures of {tables.version}."
                )


def _samples(tables: Any, scene: dict) -> list[dict]:
    samples = chain(tables, scene["name"], "sample", scene["first_sample_token"])
    for sample in samples:
        for channel in (*CAMERAS, "LIDAR_TOP"):
            if channel not in sample["data"]:
                raise MissingError(
                    f"{scene['name']}: sample {sample['token']} has no {channel}; get the tables "
                    "again."
                )
    return samples


def _ego(tables: Any, scene: str, samples: list[dict], at_us: np.ndarray) -> np.ndarray:
    """Pose ``[T, 3]`` of the rear axle."""
    known = {}
    for channel in ("CAM_FRONT", "LIDAR_TOP"):
        rows, poses = readings(tables, scene, samples[0], channel)
        known |= dict(zip((row["timestamp"] for row in rows), poses, strict=True))
    times = np.array(sorted(known))
    poses = np.array([known[time] for time in times])
    return resample((times - samples[0]["timestamp"]) / 1e6, poses, at_us / 1e6)[0]


def _tracks(tables: Any, scene: str, samples: list[dict], at_us: np.ndarray) -> Tracks:
    seen: dict[str, list[tuple[float, dict]]] = {}
    for sample in samples:
        for token in sample["anns"]:
            box = tables.get("sample_annotation", token)
            time = (sample["timestamp"] - samples[0]["timestamp"]) / 1e6
            seen.setdefault(box["instance_token"], []).append((time, box))
    categories, size, z, moves = [], [], [], []
    for token, boxes in seen.items():
        poses = np.array([pose_of(box) for _, box in boxes])
        width, length, height = np.median([box["size"] for _, box in boxes], axis=0)
        heights = [box["translation"][2] for _, box in boxes]
        finite(scene, f"instance {token}", poses)
        category = boxes[0][1]["category_name"]
        times = np.array([time for time, _ in boxes])
        moves.append(resample(times, settled(category, poses), at_us / 1e6))
        categories.append(category)
        size.append((length, width, height))
        check_size(scene, f"instance {token}", size[-1])
        z.append(np.median(heights))
    return stack_tracks(tuple(seen), categories, size, z, moves, len(at_us))


def _cameras(tables: Any, sample: dict) -> dict[str, Camera]:
    cameras = {}
    for channel in CAMERAS:
        reading = tables.get("sample_data", sample["data"][channel])
        sensor = tables.get("calibrated_sensor", reading["calibrated_sensor_token"])
        mount, intrinsic = mounting(channel, sensor), np.array(sensor["camera_intrinsic"], float)
        if intrinsic.shape != (3, 3) or not (intrinsic[[0, 1], [0, 1]] > 0).all():
            raise ShapeError(
                f"{channel}: camera_intrinsic of {sensor['token']} is no matrix [3, 3] with "
                "positive focal lengths; mend calibrated_sensor.json."
            )
        cameras[channel] = Camera(
            name=channel,
            width=reading["width"],
            height=reading["height"],
            intrinsic=intrinsic,
            rotation=mount[:3, :3],
            translation=mount[:3, 3],
        )
    return cameras


def _as_written(scene: Scene, root: Path, extra: dict[str, dict]) -> Scene:
    """A synthetic scene back in its own town, with what nuScenes has no place for."""
    ours = extra["scenes"][scene.name]
    town = extra["towns"][ours["town"]]
    offset = np.array(town["offset"], float)
    ground = load_map(root, scene.map.location, tuple(town["bounds"]))
    names = {token: name for token, (name, _) in town["lanes"].items()}
    lanes = {
        names[token]: Lane(
            token=names[token],
            centre=lane.centre - np.append(offset, 0.0),
            polygon=lane.polygon - offset,
            after=tuple(names[t] for t in lane.after),
            speed_mps=town["lanes"][token][1],
            connector=lane.connector,
        )
        for token, lane in ground.lanes.items()
    }
    areas = ("crossings", "walkways", "dividers", "centre_lines", "stop_lines")
    ground = replace(
        ground,
        lanes={name: lanes[name] for name in names.values()},
        drivable=[[ring - offset for ring in rings] for rings in ground.drivable],
        **{key: [ring - offset for ring in getattr(ground, key)] for key in areas},
    )
    scenery, tracks = ours["scenery"], scene.tracks
    where = {token: i for i, token in enumerate(tracks.tokens)}
    order = [where[token] for token in ours["tracks"] if token in where]
    return replace(
        scene,
        map=ground,
        ego=scene.ego - np.append(offset, 0.0),
        tracks=Tracks(
            tokens=tuple(ours["tracks"][tracks.tokens[i]] for i in order),
            categories=tuple(tracks.categories[i] for i in order),
            size=tracks.size[order],
            pose=tracks.pose[order] - np.append(offset, 0.0),
            z=tracks.z[order],
            speed=tracks.speed[order],
            valid=tracks.valid[order],
        ),
        shots={
            channel: replace(shots, pose=shots.pose - np.append(offset, 0.0))
            for channel, shots in scene.shots.items()
        },
        route=np.array(ours["route"]),
        scenery=Scenery(
            buildings=np.reshape(scenery["buildings"], (-1, 6)).astype(float),
            building_colours=np.reshape(scenery["building_colours"], (-1, 3)).astype(np.uint8),
            trees=np.reshape(scenery["trees"], (-1, 4)).astype(float),
            sun=scenery["sun"],
            sky=tuple(scenery["sky"]),
        ),
        seed=ours["seed"],
        scenario=ours["scenario"],
    )
