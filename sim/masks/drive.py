"""Masks of nuScenes roots: exact ones of synthetic roots, annotated ones of real roots.

Foreground as in nuScenes-FG (FastDriveVLA, arXiv 2507.23318, 4.1): people, roads, vehicles,
barriers and cones. Signs and lights are in neither: our towns have none, and nuScenes annotates
none with a reliable height.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import shapely
from shapely.geometry import Polygon
from vla_prune_sim.drive.load import find_root, open_world
from vla_prune_sim.drive.load_map import load_map
from vla_prune_sim.drive.load_nuscenes import load_root, read_image
from vla_prune_sim.drive.nuscenes_format import VERSION
from vla_prune_sim.drive.render import ROAD, Renderer
from vla_prune_sim.drive.scene import CAMERAS, Scene
from vla_prune_sim.masks.index import Entry

from vla_prune.errors import MissingError, UnsupportedError

FOREGROUND = ("human.", "vehicle.", "movable_object.barrier", "movable_object.trafficcone")
NEAR_M = 0.5  # boxes and ground nearer than this are cut off
ROAD_M = 60.0  # beyond, the flat ground is a guess
HIDDEN = "1"  # visibility token of less than 40% seen
BAND = 0.006  # of the picture's width: how far a box's hull may be off the thing


def root_entries(root: Path, annotations: bool = False) -> Iterator[Entry]:
    """Keyframes of all cameras.

    Args:
        root: nuScenes, real or synthetic.
        annotations: masks from boxes and map also where exact ones can be had.
    """
    # Real or not, the loader's checks run first: each names the file that is missing.
    world = open_world(root)
    if world.label == VERSION and not annotations:
        for name in world.names:
            yield from exact_entries(world.load(name))
        return
    folder, _, pickles = find_root(root)
    if pickles:
        raise UnsupportedError(
            f"{root} holds ScenarioNet pickles, which have no pictures; give a nuScenes root."
        )
    yield from annotated_entries(folder, world.label)


# --- exact --------------------------------------------------------------------------------------


def exact_entries(scene: Scene) -> Iterator[Entry]:
    """What the renderer painted, at the size of the pictures on disk."""
    drawn: dict[int, dict[str, np.ndarray]] = {}

    def masks(step: int) -> dict[str, np.ndarray]:
        if step not in drawn:
            drawn.clear()
            camera = next(iter(scene.cameras.values()))
            renderer = _renderer(scene, (camera.width, camera.height))
            tracks = scene.tracks
            ids = renderer.render(
                scene.ego[step], tracks.pose[:, step], tracks.valid[:, step], masks=True
            )[1]
            drawn[step] = {name: exact_mask(scene, seen) for name, seen in ids.items()}
        return drawn[step]

    def maker(channel: str, number: int, step: int) -> Callable:
        return lambda: (scene.images[channel][number], masks(step)[channel])

    for number, step in enumerate(scene.keyframes.tolist()):
        for channel in scene.cameras:
            key, frame = f"{scene.name}__{channel}__{step:04d}", f"{scene.name}__{step:04d}"
            yield Entry(key, channel, scene.name, frame, maker(channel, number, step))


_last: list[tuple[Scene, tuple[int, int], Renderer]] = []


def _renderer(scene: Scene, size: tuple[int, int]) -> Renderer:
    """One scene's, kept until another scene comes."""
    if not _last or _last[0][0] is not scene or _last[0][1] != size:
        _last[:] = [(scene, size, Renderer(scene, size))]
    return _last[0][2]


def exact_mask(scene: Scene, ids: np.ndarray) -> np.ndarray:
    """``[H, W]`` uint8, 0 or 1, from a mask of the renderer."""
    mask = (ids == ROAD).astype(np.uint8)
    agents = ids > 0
    shown = np.array([c.startswith(FOREGROUND) for c in scene.tracks.categories], bool)
    if agents.any():
        mask[agents] = shown[ids[agents] - 1]
    return mask


# --- from annotations ---------------------------------------------------------------------------


def annotated_entries(root: Path, version: str) -> Iterator[Entry]:
    """Hulls of the boxes over the drivable ground, with bands to ignore where hulls end."""
    try:
        from nuscenes.nuscenes import NuScenes
    except ImportError as error:
        raise MissingError("nuscenes-devkit is missing; install vla-prune[nuscenes].") from error
    load_root(root, version)
    tables = NuScenes(version=version, dataroot=str(root), verbose=False)
    for scene in tables.scene:
        location = tables.get("log", scene["log_token"])["location"]
        token = scene["first_sample_token"]
        number = 0
        while token:
            sample = tables.get("sample", token)
            for channel in CAMERAS:
                key = f"{scene['name']}__{channel}__{number:04d}"
                frame = f"{scene['name']}__{number:04d}"
                maker = _annotated(tables, root, location, sample["data"][channel])
                yield Entry(key, channel, scene["name"], frame, maker)
            token, number = sample["next"], number + 1


def _annotated(tables, root: Path, location: str, token: str) -> Callable:
    def make() -> tuple[Path, np.ndarray]:
        path = Path(tables.get_sample_data_path(token))
        height, width = read_image(path).shape[:2]
        return path, annotated_mask(tables, root, location, token, (width, height))

    return make


def annotated_mask(
    tables, root: Path, location: str, token: str, size: tuple[int, int]
) -> np.ndarray:
    """``[H, W]`` uint8: 0 background, 1 foreground, 2 ignore.

    Args:
        tables: the devkit's NuScenes.
        root: of the maps.
        location: which map.
        token: of the camera's sample_data.
        size: width and height of the picture.
    """
    from pyquaternion import Quaternion

    width, height = size
    reading = tables.get("sample_data", token)
    mount = tables.get("calibrated_sensor", reading["calibrated_sensor_token"])
    pose = tables.get("ego_pose", reading["ego_pose_token"])
    turn = Quaternion(pose["rotation"]).rotation_matrix @ (
        Quaternion(mount["rotation"]).rotation_matrix
    )
    eye = np.array(pose["translation"]) + Quaternion(pose["rotation"]).rotate(
        np.array(mount["translation"])
    )
    scale = np.diag([width / reading["width"], height / reading["height"], 1.0])
    lens = scale @ np.array(mount["camera_intrinsic"], float)
    mask = np.zeros((height, width), np.uint8)
    for rings in _ground(root, location, np.array(pose["translation"])[:2]):
        flat = [
            clipped_pixels((np.column_stack([r, np.zeros(len(r))]) - eye) @ turn @ lens.T, size)
            for r in rings
        ]
        if any(len(ring) > 2 for ring in flat):
            cv2.fillPoly(mask, [ring for ring in flat if len(ring) > 2], 1)
    outlines = np.zeros_like(mask)
    band = max(1, round(BAND * width))
    boxes = [tables.get_box(t) for t in tables.get("sample", reading["sample_token"])["anns"]]
    for box in sorted(boxes, key=lambda b: -np.linalg.norm(b.center - eye)):
        if tables.get("sample_annotation", box.token)["visibility_token"] == HIDDEN:
            continue
        hull = _hull(box.corners().T, eye, turn, lens, size)
        if hull is not None:
            cv2.fillConvexPoly(mask, hull, int(box.name.startswith(FOREGROUND)))
            cv2.polylines(outlines, [hull], True, 1, 2 * band + 1)
    around = np.ones((2 * band + 1, 2 * band + 1), np.uint8)
    edge = cv2.dilate(mask, around) != cv2.erode(mask, around)
    mask[edge & (outlines > 0)] = 2
    return mask


def _ground(root: Path, location: str, at: np.ndarray) -> list[list[np.ndarray]]:
    """Drivable outlines with holes within reach, world metres."""
    disc = shapely.Point(*at).buffer(ROAD_M)
    found = []
    for rings in load_map(root, location, tuple(disc.bounds)).drivable:
        part = Polygon(rings[0], rings[1:]).buffer(0).intersection(disc)
        for piece in getattr(part, "geoms", [part]):
            if isinstance(piece, Polygon) and not piece.is_empty:
                outlines = [piece.exterior, *piece.interiors]
                found.append([np.array(ring.coords)[:-1, :2] for ring in outlines])
    return found


def clipped_pixels(spots: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The part of a polygon that lies before the camera and around the picture, edges straight.

    Args:
        spots: ``[P, 3]`` corners as ``(u z, v z, z)``: pixels times metres ahead, and these.
        size: width and height of the picture; one more to each side is kept, so that what is
            drawn along a cut edge is not seen.

    Returns:
        ``[Q, 2]`` int32 pixels; nothing if all is elsewhere.
    """
    width, height = size
    planes = ((0, 0, 1), (1, 0, width), (-1, 0, 2 * width), (0, 1, height), (0, -1, 2 * height))
    for number, plane in enumerate(planes):
        inside = spots @ np.array(plane, float) - (NEAR_M if number == 0 else 0.0)
        kept = []
        for here, there, a, b in zip(
            spots, np.roll(spots, -1, axis=0), inside, np.roll(inside, -1), strict=True
        ):
            if a >= 0:
                kept.append(here)
            if (a >= 0) != (b >= 0):
                kept.append(here + a / (a - b) * (there - here))
        spots = np.array(kept).reshape(-1, 3)
    return np.rint(spots[:, :2] / spots[:, 2:]).astype(np.int32)


# Corners of a devkit box: four in front, four behind, in the same turn.
EDGES = [(a, b) for f in (0, 4) for a, b in zip(range(f, f + 4), (f + 1, f + 2, f + 3, f))]  # noqa: B905
EDGES += [(i, i + 4) for i in range(4)]


def _hull(
    corners: np.ndarray,
    eye: np.ndarray,
    turn: np.ndarray,
    lens: np.ndarray,
    size: tuple[int, int],
) -> np.ndarray | None:
    """Convex outline of a box in pixels ``[Q, 2]`` int32, or None if it is out of sight."""
    seen = (corners - eye) @ turn
    points = [p for p in seen if p[2] >= NEAR_M]
    for a, b in EDGES:
        if (seen[a, 2] >= NEAR_M) != (seen[b, 2] >= NEAR_M):
            share = (NEAR_M - seen[a, 2]) / (seen[b, 2] - seen[a, 2])
            points.append(seen[a] + share * (seen[b] - seen[a]))
    if len(points) < 3:
        return None
    spots = np.array(points) @ lens.T
    outline = cv2.convexHull((spots[:, :2] / spots[:, 2:]).astype(np.float32))[:, 0]
    shown = clipped_pixels(np.column_stack([outline, np.ones(len(outline))]), size)
    return shown if len(shown) > 2 else None
