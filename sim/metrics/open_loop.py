"""Scores of planned trajectories against the logged future, in the conventions that papers use.

Six waypoints of the rear axle, every 0.5 s, in the frame of the ego at the time of planning (x
forward, y left). A name says whose definition a number follows; numbers of two names must never
be compared. All are fractions or metres over the frames whose future is logged to the end. Knows
no closed loop: nobody reacts to a plan here.

    frames = [frame_at(scene, step) for step in scene.keyframes[:-6]]
    evaluate(plans, frames)["collision_vad"]["3s"]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import shapely
from vla_prune_sim.drive.geometry import corners, to_local, wrap
from vla_prune_sim.drive.scene import STEP_S, Scene

from vla_prune.errors import ShapeError, did_you_mean

WAYPOINTS = 6
STRIDE = round(0.5 / STEP_S)
SECONDS = {"1s": 2, "2s": 4, "3s": 6}  # name -> waypoints up to then
RANGE_M = 50.0  # the rasters reach this far on all sides
COARSE_M, FINE_M = 0.5, 0.1  # pixels of VAD, and of BEV-Planner and OmniDrive
# Every convention's ego box is centred half a metre ahead of the lidar.
LENGTH, WIDTH, AHEAD_OF_LIDAR, LIDAR = 4.084, 1.85, 0.5, 0.985793
OMNIDRIVE_LENGTH = 4.08
PATCH_M = (60.0, 30.0)  # length and width of the vector map around the ego


@dataclass(frozen=True)
class Frame:
    """What the log holds at and after one moment, in the ego's frame of that moment.

    Attributes:
        ego: ``[6, 2]`` where the rear axle went.
        boxes: ``[6, N, 5]`` the others at these times: x, y, heading, length, width.
        present: ``[6, N]`` whether each was there.
        categories: ``N`` nuScenes categories.
        drivable: outlines with holes: a list of ``[outer, hole, ...]``, each ``[Q, 2]``.
        boundary: lines where the road ends, ``[P, 2]`` each.
        complete: whether all six times are logged.
    """

    ego: np.ndarray
    boxes: np.ndarray
    present: np.ndarray
    categories: Sequence[str] = ()
    drivable: Sequence[Sequence[np.ndarray]] = ()
    boundary: Sequence[np.ndarray] = ()
    complete: bool = True

    def __post_init__(self) -> None:
        n = len(self.categories)
        wanted = {
            "ego": (WAYPOINTS, 2),
            "boxes": (WAYPOINTS, n, 5),
            "present": (WAYPOINTS, n),
        }
        for name, shape in wanted.items():
            if np.shape(getattr(self, name)) != shape:
                raise ShapeError(
                    f"Frame.{name} has shape {list(np.shape(getattr(self, name)))}; {n} "
                    f"categories ask for {list(shape)}."
                )


def frame_at(scene: Scene, step: int) -> Frame:
    """The frame of a logged scene at ``step``; not complete where the log ends within 3 s."""
    later = np.minimum(step + STRIDE * np.arange(1, WAYPOINTS + 1), scene.steps - 1)
    here, tracks = scene.ego[step], scene.tracks
    pose = tracks.pose[:, later].transpose(1, 0, 2)  # [6, N, 3]
    size = np.broadcast_to(tracks.size[:, :2], (*pose.shape[:2], 2))
    heading = wrap(pose[..., 2:] - here[2])
    drivable = [[to_local(ring, here) for ring in rings] for rings in scene.map.drivable]
    drivable = [rings for rings in drivable if _within_reach(rings[0])]
    return Frame(
        ego=to_local(scene.ego[later, :2], here),
        boxes=np.concatenate([to_local(pose[..., :2], here), heading, size], axis=-1),
        present=tracks.valid[:, later].T.astype(bool),
        categories=tracks.categories,
        drivable=drivable,
        boundary=boundary_lines(drivable),
        complete=step + STRIDE * WAYPOINTS < scene.steps,
    )


def _within_reach(ring: np.ndarray) -> bool:
    """Whether the bounding box of an outline ``[Q, 2]`` comes into the rasters."""
    return bool((ring.min(0) <= RANGE_M).all() and (ring.max(0) >= -RANGE_M).all())


def boundary_lines(drivable: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Where the drivable area ends within 60 x 30 m around the ego: lines ``[P, 2]``.

    The vector map that BEV-Planner draws is cut like this, but its lines are resampled to 20
    points each, which cuts corners; these keep all their points.
    """
    length, width = PATCH_M
    patch = shapely.box(-length / 2, -width / 2, length / 2, width / 2)
    areas = [shapely.Polygon(rings[0], rings[1:]).buffer(0) for rings in drivable]
    road = shapely.union_all([area for area in areas if area.intersects(patch)])
    if road.is_empty:
        return []
    parts = shapely.get_parts(shapely.line_merge(road.boundary.intersection(patch)))
    return [shapely.get_coordinates(part) for part in parts if part.length > 0]


def complete(plans: np.ndarray, frames: Sequence[Frame]) -> tuple[np.ndarray, list[Frame]]:
    """Plans ``[F, 6, 2]`` and frames with a whole logged future: the only ones that count."""
    shape = np.shape(plans)
    if len(shape) != 3 or shape[1:] not in ((WAYPOINTS, 2), (WAYPOINTS, 3)):
        raise ShapeError(f"plans have shape {list(shape)}; give [F, 6, 2] or [F, 6, 3].")
    if shape[0] != len(frames):
        raise ShapeError(f"{shape[0]} plans came with {len(frames)} frames; give one for each.")
    plans = np.asarray(plans, float)[..., :2]
    if not np.isfinite(plans).all():
        raise ShapeError("plans hold NaN or infinity; leave out what could not be planned.")
    kept = [i for i, frame in enumerate(frames) if frame.complete]
    if not kept:
        raise ShapeError(f"none of {len(frames)} frames has 3 s of logged future; give one.")
    return plans[kept], [frames[i] for i in kept]


def _displacement(plans: np.ndarray, frames: Sequence[Frame]) -> np.ndarray:
    """Distances ``[F, 6]`` in metres between plan and log."""
    plans, kept = complete(plans, frames)
    return np.linalg.norm(plans - np.stack([frame.ego for frame in kept]), axis=-1)


def _table(at: Callable[[int], float]) -> dict[str, float]:
    """Values at 1, 2 and 3 s and their mean, of a function of the number of waypoints."""
    values = {name: float(at(count)) for name, count in SECONDS.items()}
    return {**values, "avg": float(np.mean(list(values.values())))}


def l2_uniad(plans: np.ndarray, frames: Sequence[Frame]) -> dict[str, float]:
    """Metres between plan and log AT 1, 2 and 3 s (UniAD, OpenDriveLab/UniAD)."""
    error = _displacement(plans, frames)
    return _table(lambda count: error[:, count - 1].mean())


def l2_st_p3_vad(plans: np.ndarray, frames: Sequence[Frame]) -> dict[str, float]:
    """Mean metres between plan and log UP TO 1, 2 and 3 s (ST-P3; VAD, hustvl/VAD)."""
    error = _displacement(plans, frames)
    return _table(lambda count: error[:, :count].mean())


def _occupied(
    frame: Frame, kinds: tuple[str, ...], pixels: Callable[[np.ndarray], np.ndarray], cell: float
) -> np.ndarray:
    """Rasters ``[6, S, S]`` of the others whose category begins with one of ``kinds``."""
    side = round(2 * RANGE_M / cell)
    raster = np.zeros((WAYPOINTS, side, side), np.uint8)
    chosen = np.array([c.startswith(kinds) for c in frame.categories], dtype=bool)
    for when, track in np.argwhere(frame.present & chosen):
        box = frame.boxes[when, track]
        cv2.fillPoly(raster[when], [pixels(corners(box[:3], box[3], box[4]))], 1)
    return raster


def _inside(low: float, high: float, cell: float) -> np.ndarray:
    """Pixels whose centres, ``-RANGE_M + cell / 2`` and on, lie between two metres."""
    first, last = ((v + RANGE_M - cell / 2) / cell for v in (low, high))
    return np.arange(np.ceil(first), np.floor(last) + 1)


def _touches(raster: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Whether ``[6]`` any pixel ``[6, K]`` is set in its raster ``[6, S, S]``.

    What lies outside the raster is looked up on its rim, as both conventions do.
    """
    last = raster.shape[-1] - 1
    row, column = (np.clip(v.astype(np.int32), 0, last) for v in (row, column))
    return raster[np.arange(WAYPOINTS)[:, None], row, column].any(1)


def _vad_touches(path: np.ndarray, raster: np.ndarray) -> np.ndarray:
    """The unrotated box along ``path`` ``[6, 2]`` in VAD's raster (rows backwards, columns right).

    Columns of the box are rounded down, corners of the others to the nearest pixel: on average the
    ego is looked up half a metre too far to the left. VAD's own numbers have it, so ours do.
    """
    ahead = _inside(AHEAD_OF_LIDAR - LENGTH / 2, AHEAD_OF_LIDAR + LENGTH / 2, COARSE_M)
    right = _inside(-WIDTH / 2, WIDTH / 2, COARSE_M)
    ahead, right = (v.ravel() for v in np.meshgrid(ahead, right))
    row = raster.shape[-1] - (path[:, :1] / COARSE_M + ahead)
    return _touches(raster, row, -path[:, 1:] / COARSE_M + right)


def _bev_planner_touches(path: np.ndarray, raster: np.ndarray) -> np.ndarray:
    """The box turned by the path's tangent, in BEV-Planner's raster (rows left, columns ahead).

    It turns about the rear axle; a step of less than a metre leaves it unturned.
    """
    centre = LIDAR + AHEAD_OF_LIDAR
    zero = (RANGE_M - FINE_M / 2) / FINE_M
    x = _inside(centre - LENGTH / 2, centre + LENGTH / 2, FINE_M) - zero
    y = _inside(-WIDTH / 2, WIDTH / 2, FINE_M) - zero
    x, y = (v.ravel() for v in np.meshgrid(x, y))
    step = np.diff(path, axis=0, prepend=np.zeros((1, 2)))
    angle = np.arctan2(step[:, 1], step[:, 0]) * (np.linalg.norm(step, axis=1) >= 1.0)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    column = path[:, :1] / FINE_M + np.round(cos * x - sin * y + zero)
    return _touches(raster, path[:, 1:] / FINE_M + np.round(sin * x + cos * y + zero), column)


def _vad_pixels(points: np.ndarray) -> np.ndarray:
    right_back = np.stack([-points[..., 1], LIDAR - points[..., 0]], axis=-1)
    return np.round((right_back + RANGE_M) / COARSE_M).astype(np.int32)


def _bev_planner_pixels(points: np.ndarray) -> np.ndarray:
    return ((points + RANGE_M - FINE_M / 2) / FINE_M).astype(np.int32)


def _omnidrive_pixels(points: np.ndarray) -> np.ndarray:
    return np.round((points + RANGE_M) / FINE_M).astype(np.int32)


def collision_vad(plans: np.ndarray, frames: Sequence[Frame]) -> dict[str, float]:
    """Share of STEPS up to t at which the ego box meets a vehicle or person (VAD, hustvl/VAD).

    Pixels of 0.5 m; the ego box is not turned along the plan. A step at which the logged ego meets
    something too is no collision, yet stays in the denominator. VAD moves the lidar along the
    plan, we the rear axle: the same where the plan does not turn.
    """
    counted = []
    for plan, frame in zip(*complete(plans, frames), strict=True):
        raster = _occupied(frame, ("vehicle", "human"), _vad_pixels, COARSE_M)
        counted.append(_vad_touches(plan, raster) & ~_vad_touches(frame.ego, raster))
    counted = np.array(counted)
    return _table(lambda count: counted[:, :count].mean())


def collision_bev_planner(plans: np.ndarray, frames: Sequence[Frame]) -> dict[str, float]:
    """Share of PLANS whose ego box meets a vehicle at any step up to t (NVlabs/BEV-Planner).

    Pixels of 0.1 m; the ego box is turned by the plan's tangent; people do not count. Steps at
    which the logged ego meets a vehicle are left out of the numerator only.
    """
    counted = []
    for plan, frame in zip(*complete(plans, frames), strict=True):
        raster = _occupied(frame, ("vehicle",), _bev_planner_pixels, FINE_M)
        counted.append(
            _bev_planner_touches(plan, raster) & ~_bev_planner_touches(frame.ego, raster)
        )
    counted = np.array(counted)
    return _table(lambda count: counted[:, :count].any(1).mean())


def intersection_bev_planner(plans: np.ndarray, frames: Sequence[Frame]) -> dict[str, float]:
    """Share of plans whose ego box meets a road BOUNDARY LINE at any step up to t.

    NVlabs/BEV-Planner ("plus" there, CCR in the paper): the box of `collision_bev_planner` on
    lines one pixel wide; being entirely off the road is no intersection. Steps at which the logged
    ego meets a line are left out of the numerator only.
    """
    counted = []
    side = round(2 * RANGE_M / FINE_M)
    for plan, frame in zip(*complete(plans, frames), strict=True):
        raster = np.zeros((side, side), np.uint8)
        for line in frame.boundary:
            pixels = np.clip((line + RANGE_M - FINE_M / 2) / FINE_M, 0, side - 1).astype(np.int32)
            cv2.polylines(raster, [pixels], isClosed=False, color=1, thickness=1)
        raster = np.broadcast_to(raster, (WAYPOINTS, side, side))
        counted.append(
            _bev_planner_touches(plan, raster) & ~_bev_planner_touches(frame.ego, raster)
        )
    counted = np.array(counted)
    return _table(lambda count: counted[:, :count].any(1).mean())


def intersection_omnidrive(plans: np.ndarray, frames: Sequence[Frame]) -> dict[str, float]:
    """Share of plans whose ego box leaves the DRIVABLE AREA at any step up to t.

    NVlabs/OmniDrive. Pixels of 0.1 m. The box is turned by the plan's tangent however short the
    step, about its own centre, which stays 1.486 m along the first heading ahead of the waypoint.
    Plans that begin with the box partly off the area never count, but stay in the denominator.
    """
    counted = []
    side = round(2 * RANGE_M / FINE_M)
    for plan, frame in zip(*complete(plans, frames), strict=True):
        off = np.ones((side, side), np.uint8)
        for outer, *holes in frame.drivable:
            area = cv2.fillPoly(np.zeros_like(off), [_omnidrive_pixels(outer)], 1)
            cv2.fillPoly(area, [_omnidrive_pixels(hole) for hole in holes], 0)
            off[area == 1] = 0
        path = np.concatenate([np.zeros((1, 2)), plan])
        step = np.diff(path, axis=0, prepend=np.zeros((1, 2)))
        pose = np.column_stack([path, np.arctan2(step[:, 1], step[:, 0])])
        pose[:, 0] += LIDAR + AHEAD_OF_LIDAR
        leaves = []
        for box in corners(pose, OMNIDRIVE_LENGTH, WIDTH):
            ego = cv2.fillPoly(np.zeros_like(off), [_omnidrive_pixels(box)], 1)
            leaves.append(bool((off & ego).any()))
        counted.append(np.array(leaves[1:]) & ~leaves[0])
    counted = np.array(counted)
    return _table(lambda count: counted[:, :count].any(1).mean())


OPEN_LOOP: Mapping[str, Callable[[np.ndarray, Sequence[Frame]], dict[str, float]]] = {
    "l2_uniad": l2_uniad,
    "l2_st_p3_vad": l2_st_p3_vad,
    "collision_vad": collision_vad,
    "collision_bev_planner": collision_bev_planner,
    "intersection_bev_planner": intersection_bev_planner,
    "intersection_omnidrive": intersection_omnidrive,
}


def evaluate(
    plans: np.ndarray, frames: Sequence[Frame], names: Sequence[str] = tuple(OPEN_LOOP)
) -> dict[str, dict[str, float]]:
    """Scores by name: each holds ``1s``, ``2s``, ``3s`` and ``avg``, in metres or as a fraction.

    Args:
        plans: ``[F, 6, 2]`` or ``[F, 6, 3]`` waypoints every 0.5 s; a heading is not looked at.
        frames: ``F`` of them; those that are not complete are left out, with their plans.
        names: of ``OPEN_LOOP``.
    """
    for name in names:
        if name not in OPEN_LOOP:
            raise did_you_mean("open_loop.evaluate", "score", name, OPEN_LOOP)
    return {name: OPEN_LOOP[name](plans, frames) for name in names}
