"""Scores of a drive: what the ego did in closed loop, never what it planned.

The parts are nuPlan's closed-loop metrics (motional/nuplan-devkit, ``planning/metrics``), put
together as in NAVSIM's PDM score (autonomousvision/navsim) with nuPlan's making-progress gate in
front; each function says its rule and where it differs. Knows no simulator and no policy.

    drive = Drive(ego, speed, pose, size, valid, track_speed, categories, road, route, 180.0)
    parts = score(drive)
    parts["score"], parts["nc"], parts["collision_s"]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from vla_prune_sim.drive.geometry import Polyline, corners, overlap, to_local
from vla_prune_sim.drive.scene import (
    EGO_LENGTH,
    EGO_WIDTH,
    STEP_S,
    STOPPED_MPS,
    RoadMap,
    ego_centre,
)
from vla_prune_sim.metrics.comfort import comfort, comfort_terms
from vla_prune_sim.metrics.ground import Ground

from vla_prune.errors import ShapeError

OFF_ROAD_M = 0.3
AGAINST_M = (2.0, 6.0)
AHEAD, BEHIND = np.deg2rad(30.0), np.deg2rad(150.0)
TTC_TIMES = np.arange(1, 10) * STEP_S  # those below nuPlan's bound of 0.95 s
SHORT_M, LEAST_PROGRESS, CREEP_M = 5.0, 0.2, 0.1
ROUTE_REACH_M = 10.0


@dataclass(frozen=True)
class Drive:
    """What was driven, every ``STEP_S``.

    Attributes:
        ego: ``[T, 3]`` poses of the rear axle.
        speed: ``[T]`` m/s along the heading, negative backwards.
        pose: ``[T, N, 3]`` centres and headings of the others.
        size: ``[N, 2]`` or ``[N, 3]`` their length and width in metres; a height is not looked at.
        valid: ``[T, N]`` whether each was there.
        track_speed: ``[T, N]`` m/s along their headings.
        categories: ``N`` nuScenes categories.
        road: the ground.
        route: the way to follow.
        feasible_m: metres along the route that a reference driver made in the whole episode.
        ended: why it ended early; empty where it ran to its end.
    """

    ego: np.ndarray
    speed: np.ndarray
    pose: np.ndarray
    size: np.ndarray
    valid: np.ndarray
    track_speed: np.ndarray
    categories: Sequence[str]
    road: RoadMap
    route: Polyline
    feasible_m: float
    ended: str = ""

    def __post_init__(self) -> None:
        steps, tracks = len(self.ego), len(self.categories)
        if steps < 2:
            raise ShapeError(f"Drive has {steps} steps of ego; a score needs two or more.")
        wanted = {
            "ego": [(steps, 3)],
            "speed": [(steps,)],
            "pose": [(steps, tracks, 3)],
            "size": [(tracks, 2), (tracks, 3)],
            "valid": [(steps, tracks)],
            "track_speed": [(steps, tracks)],
        }
        for name, shapes in wanted.items():
            shape = np.shape(getattr(self, name))
            if shape not in shapes:
                raise ShapeError(
                    f"Drive.{name} has shape {list(shape)}; {steps} steps and {tracks} categories "
                    f"ask for {' or '.join(str(list(s)) for s in shapes)}."
                )
        for name in ("ego", "speed", "pose", "track_speed"):
            value = np.asarray(getattr(self, name))
            seen = value if name in ("ego", "speed") else value[np.asarray(self.valid, bool)]
            if not np.isfinite(seen).all():
                raise ShapeError(f"Drive.{name} holds NaN or infinity; end the episode before it.")
        if not (np.isfinite(self.feasible_m) and self.feasible_m >= 0):
            raise ShapeError(f"Drive.feasible_m is {self.feasible_m}; give metres, zero or more.")


@dataclass(frozen=True)
class Hit:
    """The ego's first contact with one track.

    Attributes:
        step: of the contact.
        track: index.
        kind: ``stopped_ego``, ``stopped_track``, ``active_rear``, ``active_front`` or
            ``active_lateral``.
        at_fault: whether the ego could have prevented it.
        static: whether the track is a thing, such as a cone.
        ego_mps: the ego's speed.
        relative_mps: length of the difference of the two velocities.
    """

    step: int
    track: int
    kind: str
    at_fault: bool
    static: bool
    ego_mps: float
    relative_mps: float


def is_static(category: str) -> bool:
    """Whether a nuScenes category is a thing that does not move by itself."""
    return category.startswith(("movable_object", "static_object"))


def bearing(drive: Drive) -> np.ndarray:
    """Angle ``[T, N]`` between the ego's heading and the way from its rear axle to each track."""
    local = to_local(drive.pose[..., :2], drive.ego)
    return np.arctan2(np.abs(local[..., 1]), local[..., 0])


def first_contacts(drive: Drive) -> np.ndarray:
    """Step ``[N]`` of the first contact with each track; the number of steps for none."""
    centre = ego_centre(drive.ego)
    box = corners(centre, EGO_LENGTH, EGO_WIDTH)
    reach = (np.hypot(EGO_LENGTH, EGO_WIDTH) + np.hypot(*drive.size[:, :2].T)) / 2
    away = np.linalg.norm(drive.pose[..., :2] - centre[:, None, :2], axis=-1)
    step, track = np.nonzero(drive.valid & (away <= reach))
    other = corners(drive.pose[step, track], *drive.size[track, :2].T)
    touch = np.zeros(drive.valid.shape, bool)
    touch[step, track] = overlap(box[step], other)
    return np.where(touch.any(0), touch.argmax(0), len(drive.ego))


def hits(drive: Drive, lane: np.ndarray, first: np.ndarray) -> list[Hit]:
    """Contacts in order of time, with nuPlan's classes of fault.

    At fault: a stopped track or thing; a moving one met with the front bumper; one met with the
    side while the ego is not in its lane. Not at fault: anything that meets a stopped ego; what is
    behind. Each track counts once. As in NAVSIM, not in nuPlan, contacts of step 0 are left out:
    nobody drove into them.

    Args:
        drive: what was driven.
        lane: ``[T]`` from `Ground.in_lane`.
        first: ``[N]`` from `first_contacts`.
    """
    angle = bearing(drive)
    found = []
    for track in np.argsort(first, kind="stable"):
        step = int(first[track])
        if not 0 < step < len(drive.ego):
            continue
        static = is_static(drive.categories[track])
        ego, other = drive.ego[step], drive.pose[step, track]
        speed, theirs = drive.speed[step], drive.track_speed[step, track]
        box = corners(ego_centre(ego), EGO_LENGTH, EGO_WIDTH)
        outline = shapely.Polygon(corners(other, *drive.size[track, :2]))
        if abs(speed) <= STOPPED_MPS:
            kind, fault = "stopped_ego", False
        elif static or abs(theirs) <= STOPPED_MPS:
            kind, fault = "stopped_track", True
        elif angle[step, track] > BEHIND:
            kind, fault = "active_rear", False
        elif shapely.LineString(box[[0, 3]]).intersects(outline):
            kind, fault = "active_front", True
        else:
            kind, fault = "active_lateral", not lane[step]
        relative = np.hypot(
            speed * np.cos(ego[2]) - theirs * np.cos(other[2]),
            speed * np.sin(ego[2]) - theirs * np.sin(other[2]),
        )
        found.append(
            Hit(step, int(track), kind, bool(fault), static, abs(float(speed)), float(relative))
        )
    return found


def no_at_fault_collision(found: list[Hit]) -> float:
    """NC: 1; 0.5 where only things were hit at fault; 0 where a road user was.

    NAVSIM's values. nuPlan agrees for one thing and gives 0 from the second on.
    """
    return min((0.5 if hit.static else 0.0 for hit in found if hit.at_fault), default=1.0)


def against_lane(drive: Drive, ground: Ground) -> float:
    """Metres that the ego's centre moved against its lane in the worst second.

    nuPlan's driving direction: movement along the lane's direction, summed over 1 s, less than
    zero. Where lanes overlap, in junctions, the one that fits best counts (nuPlan takes the
    first); where there is no lane there is no direction.
    """
    centre = ego_centre(drive.ego)[:, :2]
    moved = np.diff(centre, axis=0)
    point, area = ground.lane_areas.holding(centre[1:])
    along = np.full(len(moved), -np.inf)
    for index in np.unique(area):
        here = point[area == index]
        line = Polyline(ground.lanes[index].centre)
        heading = line.pose(line.project(centre[here + 1])[0])[:, 2]
        gain = moved[here, 0] * np.cos(heading) + moved[here, 1] * np.sin(heading)
        along[here] = np.maximum(along[here], gain)
    total = np.concatenate([[0.0], np.cumsum(np.where(np.isinf(along), 0.0, along))])
    second = round(1.0 / STEP_S)
    before = total[np.maximum(np.arange(len(total)) - second, 0)]
    return float(max(0.0, (before - total).max()))


def driving_direction(against_m: float) -> float:
    """DDC: 1 below 2 m against the lane in a second, 0.5 below 6 m, else 0 (nuPlan)."""
    return 1.0 if against_m < AGAINST_M[0] else 0.5 if against_m < AGAINST_M[1] else 0.0


def time_to_collision(
    drive: Drive, ground: Ground, lane: np.ndarray, first: np.ndarray, found: list[Hit]
) -> float:
    """Least time to collision in seconds; infinite where it never was below nuPlan's 0.95 s.

    Every step, all boxes go on with constant speed and heading, in steps of 0.1 s. Tracks ahead
    (within 30 degrees of the rear axle's heading) count; all that are not behind (150 degrees) do
    where the ego is not in its lane or is in a junction; none while the ego stands, and none after
    its contact with the ego. A collision at fault is a time of zero. nuPlan projects with the
    speed's magnitude; here what goes backwards goes on backwards.
    """
    if any(hit.at_fault for hit in found):
        return 0.0
    angle = bearing(drive)
    wide = ~lane | ground.in_junction(drive.ego)
    counts = drive.valid & (np.arange(len(drive.ego))[:, None] < first)
    counts &= (np.abs(drive.speed) > 0.005)[:, None]
    counts &= (angle < AHEAD) | (wide[:, None] & (angle <= BEHIND))
    centre = ego_centre(drive.ego)
    ours, theirs = (
        speed[..., None] * np.stack([np.cos(pose[..., 2]), np.sin(pose[..., 2])], -1)
        for speed, pose in ((drive.speed, drive.ego), (drive.track_speed, drive.pose))
    )
    reach = (np.hypot(EGO_LENGTH, EGO_WIDTH) + np.hypot(*drive.size[:, :2].T)) / 2
    away = np.linalg.norm(drive.pose[..., :2] - centre[:, None, :2], axis=-1)
    closing = np.linalg.norm(theirs - ours[:, None], axis=-1)
    step, track = np.nonzero(counts & (away <= reach + closing * TTC_TIMES[-1]))
    box = corners(centre, EGO_LENGTH, EGO_WIDTH)[step]
    other = corners(drive.pose[step, track], *drive.size[track, :2].T)
    drift = (theirs[step, track] - ours[step])[:, None, None, :] * TTC_TIMES[:, None, None]
    meet = overlap(box[:, None], other[:, None] + drift).any(0)  # [times]
    return float(TTC_TIMES[meet.argmax()]) if meet.any() else float("inf")


def progress(drive: Drive) -> float:
    """Net metres along the route, zero or more.

    nuPlan counts along the lanes of the expert's route; here what counts is the last point within
    ``ROUTE_REACH_M`` of the route, so that another road earns nothing.
    """
    start = at = reached = float(drive.route.project(drive.ego[0, :2])[0])
    # Twice a second is enough to follow a route that crosses itself.
    for xy in [*drive.ego[5:-1:5, :2], drive.ego[-1, :2]]:
        at = float(drive.route.project(xy, near=at)[0])
        if np.linalg.norm(xy - drive.route.pose(at)[:2]) <= ROUTE_REACH_M:
            reached = at
    return max(0.0, reached - start)


def route_progress(driven_m: float, feasible_m: float) -> float:
    """EP: driven over feasible metres, at most 1; 1 where less than 5 m were feasible (NAVSIM)."""
    return 1.0 if feasible_m < SHORT_M else float(np.clip(driven_m / feasible_m, 0.0, 1.0))


def making_progress(driven_m: float, feasible_m: float) -> float:
    """The gate: 0 where less than a fifth of the feasible progress was made, else 1 (nuPlan).

    Both count as 0.1 m at least, as in nuPlan; the 5 m of NAVSIM are for `route_progress`.
    """
    driven_m, feasible_m = max(driven_m, CREEP_M), max(feasible_m, CREEP_M)
    return float(driven_m >= LEAST_PROGRESS * feasible_m)


def score(drive: Drive, ground: Ground | None = None) -> dict[str, Any]:
    """All parts of one drive, and ``gate * NC * DAC * (5 EP + 5 TTC + 2 C) / 12``.

    Args:
        drive: what was driven.
        ground: of ``drive.road``, where it is shared among drives.

    Returns:
        ``score``, its factors ``gate``, ``nc``, ``dac``, ``ep``, ``ttc``, ``comfort`` and, beside
        it, ``ddc``, all in [0, 1]; ``progress_m``, ``feasible_m``, ``off_road_m``, ``against_m``,
        ``ttc_s``; ``hits``, their number, and ``at_fault``, of these; ``collision_s``,
        ``collision_kind``, ``collision_ego_mps`` and ``collision_relative_mps`` of the first hit
        at fault; ``worst``, each comfort term furthest from zero; ``ended``. None where there is
        none.
    """
    ground = ground or Ground(drive.road)
    lane, first = ground.in_lane(drive.ego), first_contacts(drive)
    found = hits(drive, lane, first)
    off_road = float(ground.off_road(drive.ego).max())
    against = against_lane(drive, ground)
    ttc_s = time_to_collision(drive, ground, lane, first, found)
    driven, terms = progress(drive), comfort_terms(drive.ego, drive.speed)
    faults = [hit for hit in found if hit.at_fault]
    fault = faults[0] if faults else None
    nc, dac = no_at_fault_collision(found), float(off_road < OFF_ROAD_M)
    ep = route_progress(driven, drive.feasible_m)
    ttc, ease = float(np.isinf(ttc_s)), comfort(terms)
    gate = making_progress(driven, drive.feasible_m)
    return {
        "score": gate * nc * dac * (5 * ep + 5 * ttc + 2 * ease) / 12,
        "gate": gate,
        "nc": nc,
        "dac": dac,
        "ep": ep,
        "ttc": ttc,
        "comfort": ease,
        "ddc": driving_direction(against),
        "progress_m": driven,
        "feasible_m": float(drive.feasible_m),
        "off_road_m": off_road,
        "against_m": against,
        "ttc_s": None if np.isinf(ttc_s) else ttc_s,
        "hits": len(found),
        "at_fault": len(faults),
        "collision_s": fault and fault.step * STEP_S,
        "collision_kind": fault and fault.kind,
        "collision_ego_mps": fault and fault.ego_mps,
        "collision_relative_mps": fault and fault.relative_mps,
        "worst": {name: float(v[np.abs(v).argmax()]) for name, v in terms.items()},
        "ended": drive.ended,
    }
