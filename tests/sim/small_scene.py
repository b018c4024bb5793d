"""A hand-made driving scene of four seconds: straight on, left round a bend, straight on.

Everything is drawn as if the first street ran along x, then turned by 170 degrees: headings
pass over pi, and coordinates are negative.
"""

from dataclasses import replace

import numpy as np
from vla_prune_sim.drive.cameras import nuscenes_cameras
from vla_prune_sim.drive.geometry import to_world, wrap
from vla_prune_sim.drive.scene import Lane, RoadMap, Scene, Scenery, Tracks

PLACE = np.array([-20.0, 35.0, np.deg2rad(170)])
STEPS, SPEED = 41, 10.0
RADIUS = 15.0


def put(points) -> np.ndarray:
    """Points, or poses, where they belong."""
    points = np.asarray(points, float)
    xy = to_world(points[..., :2].reshape(-1, 2), PLACE).reshape(*points.shape[:-1], 2)
    if points.shape[-1] == 2:
        return xy
    return np.concatenate([xy, wrap(points[..., 2:] + PLACE[2])], -1)


def along(s) -> np.ndarray:
    """Poses on the middle of the way: 60 m, a left bend of 90 degrees, 120 m; not yet put."""
    s = np.asarray(s, float)
    bend = np.clip((s - 60) / RADIUS, 0, np.pi / 2)
    rest = np.maximum(s - 60 - RADIUS * np.pi / 2, 0)
    x = np.minimum(s, 60) + RADIUS * np.sin(bend)
    return np.stack([x, RADIUS * (1 - np.cos(bend)) + rest, bend], -1)


def band(poses: np.ndarray, right: float, left: float) -> np.ndarray:
    """Outline of a strip along poses."""
    side = np.stack([-np.sin(poses[:, 2]), np.cos(poses[:, 2])], -1)
    return np.concatenate([poses[:, :2] - right * side, (poses[:, :2] + left * side)[::-1]])


def lane(token, poses, after=(), **more) -> Lane:
    return Lane(token, put(poses), put(band(poses, 1.75, 1.75)), after, **more)


def small_map() -> RoadMap:
    end = 60 + RADIUS * np.pi / 2
    first, bend, second = (
        along(np.linspace(*span, 121)) for span in ((0, 60), (60, end), (end, end + 120))
    )
    beside = first + np.array([0, 3.5, 0])
    out = along(np.linspace(0, end + 120, 200))
    drivable = put(band(out, 2, 8))
    hole = put([[20, 5.5], [40, 5.5], [40, 7.0], [20, 7.0]])
    park = put([[0, -60], [100, -60], [100, -20], [0, -20]])
    return RoadMap(
        location="singapore-queenstown",
        lanes={
            "first": lane("first", first, ("bend",), speed_mps=11.1),
            "beside": lane("beside", beside),
            "bend": lane("bend", bend, ("second",), speed_mps=8.3, connector=True),
            "second": lane("second", second),
        },
        drivable=[[drivable, hole], [park]],
        crossings=[put([[50, -2], [53, -2], [53, 8], [50, 8]])],
        walkways=[put(band(out, 5, -2)), put([[0, 8], [30, 8], [30, 11], [0, 11]])],
        dividers=[put([[0, 1.75], [60, 1.75]])],
        centre_lines=[put([[0, 5.25], [20, 5.25], [60, 5.3]])],
        stop_lines=[put([[48, -2], [48.5, -2], [48.5, 2], [48, 2]])],
    )


def small_tracks() -> Tracks:
    """A car ahead through the bend, a parked truck, someone who crosses, a cone for a while."""
    at = 0.1 * np.arange(STEPS)
    ahead = along(50 + 8.0 * at)
    still = np.tile([10.0, 6.0, 0.3], (STEPS, 1))
    walks = np.stack([np.full(STEPS, 51.5), -4 + 1.5 * at, np.full(STEPS, np.pi / 2)], -1)
    cone = np.tile([30.0, -1.5, 0.0], (STEPS, 1))
    valid = np.ones((4, STEPS), bool)
    valid[3] = (np.arange(STEPS) >= 10) & (np.arange(STEPS) <= 30)
    size = np.array([[4.6, 1.9, 1.7], [8.0, 2.5, 3.2], [0.7, 0.7, 1.75], [0.4, 0.4, 1.0]])
    return Tracks(
        tokens=("ahead", "truck", "walker", "cone"),
        categories=(
            "vehicle.car",
            "vehicle.truck",
            "human.pedestrian.adult",
            "movable_object.trafficcone",
        ),
        size=size,
        pose=put(np.stack([ahead, still, walks, cone])),
        z=size[:, 2] / 2 + [0, 0, 0, 0.1],
        speed=np.repeat([[8.0], [0.0], [1.5], [0.0]], STEPS, axis=1),
        valid=valid,
    )


def small_scene(name: str = "small", ground: RoadMap | None = None, **changes) -> Scene:
    ego = put(along(32 + SPEED * 0.1 * np.arange(STEPS)))
    scene = Scene(
        name=name,
        source="synthetic",
        version="v1.0-synthetic",
        description="A bend.",
        map=ground or small_map(),
        ego=ego,
        ego_speed=np.full(STEPS, SPEED),
        tracks=small_tracks(),
        cameras=nuscenes_cameras(),
        route=put(along(np.arange(2, 152, 0.5)))[:, :2],
        scenery=Scenery(
            buildings=np.array([[5.0, 30.0, 0.1, 12.0, 9.0, 7.5]]),
            building_colours=np.array([[200, 120, 90]], np.uint8),
            trees=np.array([[1.0, -8.0, 6.0, 2.0], [9.0, -8.0, 5.0, 1.5]]),
            sun=0.8,
        ),
        keyframes=np.arange(0, STEPS, 5),
        start_us=1_530_000_000_000_000,
        seed=11,
        scenario="cut_in",
    )
    return replace(scene, **changes)


def parked_scene(name: str, ground: RoadMap) -> Scene:
    """A drive across the car park, away from all lanes."""
    s = SPEED * 0.1 * np.arange(STEPS)
    ego = put(np.stack([10 + s, np.full(STEPS, -40.0), np.zeros(STEPS)], -1))
    return small_scene(name, ground, ego=ego, start_us=1_530_000_100_000_000)
