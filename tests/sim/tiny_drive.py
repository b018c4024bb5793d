"""A scene small enough to think about: a straight street with two lanes, boxes, one building."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from vla_prune_sim.drive.cameras import nuscenes_cameras
from vla_prune_sim.drive.scene import STEP_S, Lane, RoadMap, Scene, Scenery, Tracks

LANE_M = 3.5
STEPS = 41
SPEED_MPS = 8.0

Box = tuple[str, tuple[float, float, float], tuple[float, float, float]]  # category, size, pose
CAR: Box = ("vehicle.car", (4.5, 1.8, 1.6), (18.0, 0.0, 0.0))
PEDESTRIAN: Box = ("human.pedestrian.adult", (0.6, 0.7, 1.8), (12.0, -4.2, np.pi / 2))
BUILDING = (30.0, 14.0, 0.0, 12.0, 8.0, 9.0)


def tiny_scene(
    boxes: Sequence[Box] = (CAR, PEDESTRIAN),
    buildings: Sequence[Sequence[float]] = (BUILDING,),
    trees: Sequence[Sequence[float]] = (),
) -> Scene:
    """The ego drives east along y = 0 from x = 0; the lane to its left comes the other way.

    Args:
        boxes: category, size (length, width, height) and pose of the centre of things that stand.
        buildings: x, y, heading, length, width, height each.
        trees: x, y, height, crown radius each.
    """
    east = _lane("east", np.array([[-60.0, 0.0], [140.0, 0.0]]))
    west = _lane("west", np.array([[140.0, LANE_M], [-60.0, LANE_M]]))
    road = _band(-60.0, 140.0, -LANE_M / 2, 1.5 * LANE_M)
    ego = np.zeros((STEPS, 3))
    ego[:, 0] = SPEED_MPS * STEP_S * np.arange(STEPS)
    size = np.array([box[1] for box in boxes], float).reshape(-1, 3)
    pose = np.array([box[2] for box in boxes], float).reshape(-1, 1, 3)
    return Scene(
        name="tiny",
        source="synthetic",
        version="v1.0-synthetic",
        description="A straight street.",
        map=RoadMap(
            location="boston-seaport",
            lanes={lane.token: lane for lane in (east, west)},
            drivable=[[road]],
            crossings=[_band(40.0, 43.0, -LANE_M / 2, 1.5 * LANE_M)],
            walkways=[
                _band(-60.0, 140.0, -LANE_M / 2 - 2.5, -LANE_M / 2),
                _band(-60.0, 140.0, 1.5 * LANE_M, 1.5 * LANE_M + 2.5),
            ],
            centre_lines=[np.array([[-60.0, LANE_M / 2], [140.0, LANE_M / 2]])],
        ),
        ego=ego,
        ego_speed=np.full(STEPS, SPEED_MPS),
        tracks=Tracks(
            tokens=tuple(f"box-{i}" for i in range(len(boxes))),
            categories=tuple(box[0] for box in boxes),
            size=size,
            pose=np.repeat(pose, STEPS, axis=1),
            z=size[:, 2] / 2,
            speed=np.zeros((len(boxes), STEPS)),
            valid=np.ones((len(boxes), STEPS), bool),
        ),
        cameras=nuscenes_cameras(),
        route=np.stack([np.arange(-30.0, 100.0), np.zeros(130)], axis=-1),
        scenery=Scenery(
            buildings=np.array(buildings, float).reshape(-1, 6),
            building_colours=np.tile(np.array([[180, 120, 90]], np.uint8), (len(buildings), 1)),
            trees=np.array(trees, float).reshape(-1, 4),
        ),
        keyframes=np.arange(0, STEPS, 5),
        seed=0,
    )


def _lane(token: str, ends: np.ndarray) -> Lane:
    way = ends[1] - ends[0]
    share = np.linspace(0, 1, int(np.hypot(*way)) + 1)[:, None]
    heading = np.full((len(share), 1), np.arctan2(way[1], way[0]))
    low, high = ends.min(0), ends.max(0)
    outline = _band(low[0], high[0], low[1] - LANE_M / 2, high[1] + LANE_M / 2)
    return Lane(token, np.hstack([ends[0] + share * way, heading]), outline)


def _band(x0: float, x1: float, y0: float, y1: float) -> np.ndarray:
    """Rectangle ``[4, 2]``."""
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
