"""Where a car is on a road map: on the drivable area, in one lane, in a junction.

Knows no other road user and no score. The ego is given by poses ``[T, 3]`` of its rear axle.
"""

from __future__ import annotations

import numpy as np
import shapely
from vla_prune_sim.drive.geometry import corners
from vla_prune_sim.drive.scene import EGO_LENGTH, EGO_WIDTH, RoadMap, ego_centre

from vla_prune.errors import MissingError


class _Areas:
    """Polygons asked for many points at once."""

    def __init__(self, rings: list[list[np.ndarray]]) -> None:
        shapes = np.array([shapely.Polygon(r[0], r[1:]) for r in rings], dtype=object)
        broken = ~shapely.is_valid(shapes)
        shapes[broken] = shapely.make_valid(shapes[broken])
        shapely.prepare(shapes)
        self.shapes, self.tree = shapes, shapely.STRtree(shapes)

    def holding(self, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (point, area) of points ``[P, 2]`` that lie inside or on the edge."""
        point, area = self.tree.query(shapely.points(xy))
        inside = shapely.intersects_xy(self.shapes[area], xy[point, 0], xy[point, 1])
        return point[inside], area[inside]

    def distance(self, xy: np.ndarray) -> np.ndarray:
        """Metres ``[P]`` from points ``[P, 2]`` to the nearest area; zero inside."""
        out = np.zeros(len(xy))
        outside = np.setdiff1d(np.arange(len(xy)), self.holding(xy)[0])
        (point, _), metres = self.tree.query_nearest(
            shapely.points(xy[outside]), return_distance=True, all_matches=False
        )
        out[outside[point]] = metres
        return out


class Ground:
    """A road map made ready for the metrics: build it once for all drives on the map."""

    def __init__(self, road: RoadMap) -> None:
        if not road.drivable:
            raise MissingError(
                f"the map {road.location!r} has no drivable area; the metrics need its outlines."
            )
        self.lanes = list(road.lanes.values())
        self.drivable = _Areas(road.drivable)
        self.lane_areas = _Areas([[lane.polygon] for lane in self.lanes])

    def off_road(self, ego: np.ndarray) -> np.ndarray:
        """Metres ``[T]`` by which the outermost corner of the ego's box is off the road."""
        box = corners(ego_centre(ego), EGO_LENGTH, EGO_WIDTH)
        return self.drivable.distance(box.reshape(-1, 2)).reshape(-1, 4).max(1)

    def in_lane(self, ego: np.ndarray) -> np.ndarray:
        """Whether ``[T]`` the ego's box is in one lane, or in a lane and one that follows it.

        nuPlan's "common or connected" rule: both front corners in one lane and both rear corners
        in the same or in a neighbour of it along the road.
        """
        box = corners(ego_centre(ego), EGO_LENGTH, EGO_WIDTH).reshape(-1, 2)
        point, area = self.lane_areas.holding(box)
        touched, column = np.unique(area, return_inverse=True)
        held = np.zeros((len(box), len(touched)), bool)
        held[point, column] = True
        held = held.reshape(len(ego), 4, -1)
        lanes = [self.lanes[i] for i in touched]
        linked = np.array(
            [[a is b or a.token in b.after or b.token in a.after for b in lanes] for a in lanes],
            dtype=bool,
        ).reshape(len(lanes), len(lanes))
        front, rear = held[:, [0, 3]].all(1), held[:, [1, 2]].all(1)
        return ((front @ linked) & rear).any(1)

    def in_junction(self, ego: np.ndarray) -> np.ndarray:
        """Whether ``[T]`` the rear axle is on a connector, for nuPlan's intersections."""
        point, area = self.lane_areas.holding(ego[:, :2])
        out = np.zeros(len(ego), bool)
        out[point[[self.lanes[i].connector for i in area]]] = True
        return out
