"""Synthetic towns: streets that hang together, sane others, scenarios that need eyes."""

from __future__ import annotations

from dataclasses import fields
from functools import cache

import numpy as np
import pytest
import shapely
from shapely.geometry import LineString, Point, Polygon
from shapely.ops import unary_union
from vla_prune_sim.drive.cameras import nuscenes_cameras
from vla_prune_sim.drive.geometry import Polyline, corners, overlap, wrap
from vla_prune_sim.drive.roads import build_town
from vla_prune_sim.drive.scenarios import SCENARIOS
from vla_prune_sim.drive.scene import CAMERAS, EGO_LENGTH, EGO_WIDTH, STEP_S, Scene, ego_centre
from vla_prune_sim.drive.town import make_scene

from vla_prune.errors import ConfigError

# One scene of each kind, each in another town.
KINDS = {name: 40 + i for i, name in enumerate(sorted(SCENARIOS))}
ORDINARY = (46, 47)

# Bounds of the boxes that nuScenes annotates: length, width, height in metres.
BOUNDS = {
    "vehicle.car": ((3.5, 1.5, 1.3), (6.5, 2.3, 3.0)),
    "vehicle.truck": ((5.0, 1.9, 1.9), (12.0, 3.0, 4.2)),
    "vehicle.bus.rigid": ((7.0, 2.4, 2.8), (13.0, 3.2, 4.0)),
    "vehicle.bicycle": ((1.2, 0.4, 0.9), (2.2, 0.9, 2.0)),
    "vehicle.motorcycle": ((1.4, 0.5, 1.1), (2.7, 1.2, 2.0)),
    "human.pedestrian.adult": ((0.3, 0.4, 1.4), (1.2, 1.0, 2.1)),
    "human.pedestrian.child": ((0.3, 0.3, 0.9), (0.8, 0.7, 1.4)),
    "movable_object.trafficcone": ((0.2, 0.2, 0.5), (0.7, 0.7, 1.2)),
    "movable_object.barrier": ((0.3, 1.0, 0.7), (0.8, 3.0, 1.3)),
}


@cache
def scene(seed: int, name: str = "") -> Scene:
    return make_scene(seed, name)


ALL = [(seed, name) for name, seed in KINDS.items()] + [(ORDINARY[0], "")]


@pytest.fixture(params=[ALL[0], ALL[3], ALL[5], ALL[-1]])
def any_scene(request) -> Scene:
    return scene(*request.param)


@pytest.fixture(params=[0, 1, 5], scope="module")
def town(request):
    return build_town(np.random.default_rng(request.param))


def ground(ground_map) -> shapely.Geometry:
    return unary_union([Polygon(part[0], part[1:]) for part in ground_map.drivable])


def boxes(scene: Scene) -> np.ndarray:
    size = scene.tracks.size
    return corners(scene.tracks.pose, size[:, None, 0], size[:, None, 1])


def ego_boxes(scene: Scene, wider: float = 0.0) -> np.ndarray:
    return corners(ego_centre(scene.ego), EGO_LENGTH + 2 * wider, EGO_WIDTH + 2 * wider)


def special(scene: Scene) -> np.ndarray:
    name = scene.scenario + "-"
    return np.array([token.startswith(name) for token in scene.tracks.tokens])


def test_every_lane_ends_where_its_successors_begin(town):
    lanes = town.map.lanes
    for lane in lanes.values():
        assert lane.after
        for token in lane.after:
            gap = lanes[token].centre[0] - lane.centre[-1]
            assert np.hypot(*gap[:2]) < 0.05
            assert abs(wrap(gap[2])) < np.deg2rad(5)
    reached = {token for lane in lanes.values() for token in lane.after}
    assert reached == set(lanes)


def test_lanes_are_finely_sampled_along_their_heading_inside_their_outline(town):
    for lane in town.map.lanes.values():
        step = np.diff(lane.centre[:, :2], axis=0)
        assert np.hypot(*step.T).max() <= 1.0
        turn = wrap(np.arctan2(step[:, 1], step[:, 0]) - lane.centre[:-1, 2])
        assert np.abs(turn).max() < np.deg2rad(6)
        outline = Polygon(lane.polygon)
        assert outline.is_valid
        assert outline.buffer(0.05).covers(LineString(lane.centre[:, :2]))


def test_the_drivable_area_covers_every_lane_and_no_pavement(town):
    area = ground(town.map)
    assert area.is_valid
    assert area.geom_type == "Polygon"
    for lane in town.map.lanes.values():
        assert area.buffer(0.02).covers(Polygon(lane.polygon))
    walkways = [Polygon(ring) for ring in town.map.walkways]
    assert all(p.is_valid for p in walkways)
    assert area.buffer(-0.1).intersection(unary_union(walkways)).area < 0.5
    for ring in town.map.crossings + town.map.stop_lines:
        assert area.buffer(0.5).covers(Polygon(ring))


def test_a_town_has_junctions_bends_and_both_kinds_of_street():
    towns = [build_town(np.random.default_rng(seed)) for seed in (0, 1, 5)]
    assert {road.lanes for t in towns for road in t.roads} == {1, 2}
    assert min(len(t.corners) for t in towns) >= 3
    assert min(len(t.junction) for t in towns) > 20
    roads = [road.path.poses for t in towns for road in t.roads]
    assert min(np.ptp(poses[:, 2]) for poses in roads) < np.deg2rad(5)
    assert max(np.ptp(poses[:, 2]) for poses in roads) > np.deg2rad(75)
    bends = np.concatenate([np.diff(poses[:, 2]) for poses in roads]) / 0.5
    assert 1 / 35 < np.abs(bends).max() < 1 / 11.5
    for t in towns:
        points = np.concatenate([lane.centre for lane in t.map.lanes.values()])
        assert (np.ptp(points[:, :2], axis=0) > 180).all()
        assert (np.ptp(points[:, :2], axis=0) < 330).all()


def test_the_route_follows_connected_lanes_and_is_long_enough(any_scene):
    route = Polyline(any_scene.route)
    start, aside = route.project(any_scene.ego[0, :2])
    assert start == pytest.approx(30.0, abs=0.5)
    assert abs(aside) < 0.05
    assert route.length - start >= 280
    assert np.hypot(*np.diff(any_scene.route, axis=0).T).max() <= 1.0
    assert ground(any_scene.map).covers(LineString(any_scene.route))
    middles = np.concatenate([lane.centre[:, :2] for lane in any_scene.map.lanes.values()])
    away = any_scene.route[::20, None] - middles
    assert np.hypot(away[..., 0], away[..., 1]).min(1).max() < 0.3


def test_the_nominal_ego_drives_its_route_gently(any_scene):
    scene = any_scene
    assert scene.steps == 201
    assert scene.ego.shape == (201, 3)
    assert (scene.keyframes == np.arange(0, 201, 5)).all()
    driven = np.hypot(*np.diff(scene.ego[:, :2], axis=0).T) / STEP_S
    assert np.abs(driven - scene.ego_speed[:-1]).max() < 0.3
    assert 4.0 < scene.ego_speed.mean() < 12.0
    rate = wrap(np.diff(scene.ego[:, 2])) / STEP_S
    assert np.abs(driven * rate).max() < 2.6
    assert ground(scene.map).contains(shapely.points(ego_boxes(scene)).ravel()).all()


@pytest.mark.parametrize(("seed", "name"), ALL)
def test_nobody_touches_anybody_at_any_step(seed, name):
    box, tokens = boxes(scene(seed, name)), scene(seed, name).tracks.tokens
    for i in range(len(box) - 1):
        touched = overlap(box[i], box[i + 1 :]).any(1)
        assert not touched.any(), (tokens[i], np.flatnonzero(touched) + i + 1)


def test_others_are_as_nuscenes_annotates_them(any_scene):
    tracks = any_scene.tracks
    assert 15 <= len(tracks) <= 50
    assert len(set(tracks.tokens)) == len(tracks)
    assert tracks.pose.shape == (len(tracks), 201, 3)
    assert tracks.valid.all()
    assert np.isfinite(tracks.pose).all()
    assert (tracks.z == tracks.size[:, 2] / 2).all()
    for category, size in zip(tracks.categories, tracks.size, strict=True):
        low, high = BOUNDS[category]
        assert (low <= size).all(), (category, size)
        assert (size <= high).all(), (category, size)


def test_others_move_along_their_heading_at_sane_speeds(any_scene):
    tracks = any_scene.tracks
    for i, category in enumerate(tracks.categories):
        step = np.diff(tracks.pose[i, :, :2], axis=0) / STEP_S
        speed = tracks.speed[i]
        assert np.hypot(*step.T) == pytest.approx(speed[:-1], abs=0.3)
        limit = 3.0 if category.startswith("human") else 15.0
        assert 0 <= speed.min() <= speed.max() < limit
        heading = tracks.pose[i, :-1, 2]
        ahead = step[:, 0] * np.cos(heading) + step[:, 1] * np.sin(heading)
        fast = speed[:-1] > 1.0
        assert (ahead[fast] > 0.9 * speed[:-1][fast]).all(), tracks.tokens[i]


def test_drivers_keep_to_the_lanes_and_walkers_near_the_road(any_scene):
    tracks, area = any_scene.tracks, ground(any_scene.map)
    shapely.prepare(area)
    lanes = shapely.MultiLineString([v.centre[:, :2] for v in any_scene.map.lanes.values()])
    shapely.prepare(lanes)
    for i in np.flatnonzero(~special(any_scene)):
        at = shapely.points(tracks.pose[i, ::10, :2])
        if tracks.categories[i].startswith("vehicle") and tracks.speed[i].max() > 0:
            assert shapely.distance(lanes, at).max() < 1.2, tracks.tokens[i]
        else:
            assert shapely.distance(area, at).max() < 4.0, tracks.tokens[i]


def test_buildings_and_trees_stand_clear_of_streets_and_pavements(any_scene):
    scenery = any_scene.scenery
    paved = ground(any_scene.map).buffer(3.0)
    shapely.prepare(paved)
    b = scenery.buildings
    assert 10 <= len(b) == len(scenery.building_colours)
    for outline in corners(b[:, :3], b[:, 3], b[:, 4]):
        assert not paved.intersects(Polygon(outline))
    assert not any(paved.intersects(Point(x, y)) for x, y in scenery.trees[:, :2])
    assert 0.35 <= scenery.sun <= 1.1


@pytest.mark.parametrize(("name", "seed"), KINDS.items())
def test_who_does_not_look_hits_the_scenario_and_nobody_else(name, seed):
    told = scene(seed, name)
    mine, hit = special(told), overlap(ego_boxes(told), boxes(told))
    assert told.scenario == name
    assert mine.any()
    assert hit[mine].any()
    assert np.flatnonzero(hit[mine].any(0))[0] > 3.0 / STEP_S
    assert not overlap(ego_boxes(told, 0.2), boxes(told))[~mine].any()


@pytest.mark.parametrize("seed", ORDINARY)
def test_ordinary_traffic_leaves_the_nominal_ego_alone(seed):
    quiet = scene(seed, "")
    assert not overlap(ego_boxes(quiet, 0.2), boxes(quiet)).any()


def last_escape(scene: Scene) -> tuple[int, int]:
    """The step of the accident, and the last at which braking at 3 m/s^2 still avoids it."""
    others = boxes(scene)[special(scene)]
    hit = int(overlap(ego_boxes(scene), others).any(0).argmax())
    route = Polyline(scene.route)
    s = 30.0 + np.concatenate([[0], np.cumsum(np.hypot(*np.diff(scene.ego[:, :2], axis=0).T))])
    for step in range(hit, 0, -1):
        v = scene.ego_speed[step]
        time = np.clip((np.arange(201) - step) * STEP_S, 0, v / 3)
        late = np.where(np.arange(201) <= step, s, s[step] + v * time - 1.5 * time**2)
        box = corners(ego_centre(route.pose(late)), EGO_LENGTH, EGO_WIDTH)
        if not overlap(box, others).any():
            return hit, step
    return hit, -1


@pytest.mark.parametrize(("name", "seed"), KINDS.items())
def test_who_looks_and_brakes_has_no_accident(name, seed):
    hit, last = last_escape(scene(seed, name))
    assert 0 < last < hit


def test_the_child_is_hidden_until_late_and_shows_before_it_is_too_late():
    told = scene(KINDS["occluded_child"], "occluded_child")
    child, van = told.tracks.tokens.index("occluded_child-0"), 1
    assert told.tracks.categories[child] == "human.pedestrian.child"
    hit, last = last_escape(told)
    cover = Polygon(boxes(told)[van, 0])

    def shows(step):
        x, y, heading = told.ego[step]
        eye = (x + 1.7 * np.cos(heading), y + 1.7 * np.sin(heading))
        return not cover.intersects(LineString([eye, told.tracks.pose[child, step, :2]]))

    assert not shows(hit - 38)
    assert shows(last - 2)


def test_the_seed_fixes_every_bit():
    first, again = scene(ORDINARY[0], ""), make_scene(ORDINARY[0], "")

    def same(a, b):
        if isinstance(a, np.ndarray):
            return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        if isinstance(a, dict):
            return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
        if isinstance(a, (list, tuple)):
            return len(a) == len(b) and all(map(same, a, b))
        if hasattr(a, "__dataclass_fields__"):
            return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
        return a == b

    assert same(first, again)
    assert not same(first, scene(ORDINARY[1], ""))


def test_without_a_name_the_seed_draws_the_scenario():
    drawn = make_scene(3)
    assert drawn.scenario in {"", *SCENARIOS}
    assert drawn.name == "town-0003" + (f"-{drawn.scenario}" if drawn.scenario else "")


def test_unknown_names_and_seeds_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'cut_in'"):
        make_scene(1, "cut_inn")
    with pytest.raises(ConfigError, match="seed is -1"):
        make_scene(-1)


def test_cameras_look_where_their_names_say():
    cameras = nuscenes_cameras()
    assert tuple(cameras) == CAMERAS
    ways = {"FRONT": (1, 0), "BACK": (-1, 0), "FRONT_LEFT": (0.5, 0.8), "FRONT_RIGHT": (0.5, -0.8)}
    ways |= {"BACK_LEFT": (-0.4, 0.9), "BACK_RIGHT": (-0.4, -0.9)}
    for name, way in ways.items():
        camera = cameras["CAM_" + name]
        assert (camera.width, camera.height) == (1600, 900)
        assert camera.rotation.T @ camera.rotation == pytest.approx(np.eye(3))
        assert np.linalg.det(camera.rotation) == pytest.approx(1.0)
        assert camera.rotation[:2, 2] @ way > 0.9 * np.hypot(*way)
        u, v, w = camera.intrinsic @ camera.rotation.T @ [20 * way[0], 20 * way[1], 0.0]
        assert w > 0
        assert 0 < u / w < 1600
        assert 0 < v / w < 900
    focal = {name: camera.intrinsic[0, 0] for name, camera in cameras.items()}
    assert focal["CAM_FRONT"] == pytest.approx(1266, abs=1)
    assert focal["CAM_BACK"] == pytest.approx(797, abs=1)
