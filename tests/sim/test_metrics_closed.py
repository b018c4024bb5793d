"""Scores of drives whose answers can be worked out by hand, and slow references for the rest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely
from vla_prune_sim.drive.geometry import Polyline, corners
from vla_prune_sim.drive.scene import EGO_LENGTH, EGO_WIDTH, Lane, RoadMap, ego_centre
from vla_prune_sim.metrics import closed_loop, comfort
from vla_prune_sim.metrics.closed_loop import Drive, score
from vla_prune_sim.metrics.ground import Ground

from vla_prune.errors import MissingError, ShapeError

HALF = EGO_LENGTH / 2
NOSE = 1.294 + HALF  # from the rear axle to the front bumper


def rectangle(x0: float, x1: float, y0: float, y1: float) -> np.ndarray:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def line(x0: float, x1: float, y: float, heading: float) -> np.ndarray:
    x = np.linspace(x0, x1, 401)
    return np.column_stack([x, np.full_like(x, y), np.full_like(x, heading)])


def street() -> RoadMap:
    """East along y = 0 in two lanes that follow each other, and a lane to the west along y = 4."""
    lanes = [
        Lane("a", line(-100, 100, 0, 0.0), rectangle(-100, 100, -2, 2), after=("b",)),
        Lane("b", line(100, 300, 0, 0.0), rectangle(100, 300, -2, 2)),
        Lane("west", line(300, -100, 4, np.pi), rectangle(-100, 300, 2, 6)),
    ]
    area = [rectangle(-100, 300, -2, 6)]
    return RoadMap("singapore-onenorth", {lane.token: lane for lane in lanes}, [area])


def drive(speed, tracks=(), *, y=0.0, heading=0.0, feasible=None, road=None, steps=101) -> Drive:
    """Straight along x from 0; tracks are (x, y, heading, speed, category), all 4 x 2 metres."""
    speed = np.broadcast_to(np.asarray(speed, float), (steps,)).copy()
    at = np.concatenate([[0.0], np.cumsum(speed[1:] * 0.1)])
    ego = np.column_stack(
        [at * np.cos(heading), y + at * np.sin(heading), np.full(steps, heading)]
    )
    time = np.arange(steps)[:, None] * 0.1
    x0, y0, angle, v = (np.array([t[i] for t in tracks], float) for i in range(4))
    shape = (steps, len(tracks))
    x, y = x0 + v * time * np.cos(angle), y0 + v * time * np.sin(angle)
    pose = np.stack([x, y, np.broadcast_to(angle, shape)], axis=-1)
    return Drive(
        ego,
        speed,
        pose,
        np.tile([4.0, 2.0, 1.5], (len(tracks), 1)),
        np.ones(shape, bool),
        np.broadcast_to(v, shape),
        tuple(t[4] for t in tracks),
        road or street(),
        Polyline(np.array([[-50.0, 0.0], [300.0, 0.0]])),
        max(0.0, float(at[-1])) if feasible is None else feasible,
    )


def test_a_clear_road_driven_as_far_as_feasible_scores_one():
    parts = score(drive(10.0))
    assert parts["score"] == 1.0
    assert parts["progress_m"] == pytest.approx(100.0)
    assert (parts["hits"], parts["collision_s"], parts["ttc_s"], parts["off_road_m"]) == (
        0,
        None,
        None,
        0.0,
    )


def test_half_the_way_costs_half_of_five_twelfths():
    parts = score(drive(10.0, feasible=200.0))
    assert parts["ep"] == pytest.approx(0.5)
    assert parts["score"] == pytest.approx((5 * 0.5 + 5 + 2) / 12)


def test_a_comfortable_stop_scores_nothing():
    speed = np.maximum(5.0 - 2.0 * 0.1 * np.arange(101), 0.0)
    speed = np.convolve(np.pad(speed, 10, mode="edge"), np.ones(21) / 21, "valid")
    parts = score(drive(speed, feasible=100.0))
    assert (parts["nc"], parts["dac"], parts["ttc"], parts["comfort"]) == (1, 1, 1, 1)
    assert 0.0 < parts["ep"] < 0.2
    assert (parts["gate"], parts["score"]) == (0.0, 0.0)


def test_standing_where_nothing_was_feasible_is_no_fault():
    parts = score(drive(0.0, feasible=0.4))
    assert (parts["ep"], parts["gate"], parts["score"]) == (1.0, 1.0, 1.0)
    for feasible in (0.6, 4.9, 5.0):
        assert score(drive(0.0, feasible=feasible))["score"] == 0.0
    creeping = score(drive(0.1, feasible=4.9))  # 1 m in 10 s
    assert (creeping["ep"], creeping["gate"]) == (1.0, 1.0)


def test_the_gate_opens_at_a_fifth():
    assert score(drive(1.0, feasible=50.1))["gate"] == 0.0
    assert score(drive(1.0, feasible=49.9))["gate"] == 1.0


def test_driving_into_a_parked_car_is_at_fault_and_timed():
    parts = score(drive(10.0, [(50.0, 0.0, 0.0, 0.0, "vehicle.car")]))
    assert (parts["nc"], parts["ttc"], parts["score"]) == (0.0, 0.0, 0.0)
    assert parts["collision_kind"] == "stopped_track"
    assert parts["collision_s"] == pytest.approx(np.ceil((48.0 - NOSE) / 1.0) * 0.1)
    assert parts["collision_ego_mps"] == parts["collision_relative_mps"] == 10.0


def test_a_cone_costs_half():
    parts = score(drive(10.0, [(50.0, 0.0, 0.0, 0.0, "movable_object.trafficcone")]))
    assert (parts["nc"], parts["ttc"]) == (0.5, 0.0)
    assert parts["score"] == pytest.approx(0.5 * (5 + 0 + 2) / 12)


def test_a_slower_car_ahead_is_met_at_the_difference_of_speeds():
    parts = score(drive(10.0, [(20.0, 0.0, 0.0, 4.0, "vehicle.car")]))
    assert parts["collision_kind"] == "active_front"
    assert parts["collision_relative_mps"] == pytest.approx(6.0)
    assert parts["collision_s"] == pytest.approx(np.ceil((18.0 - NOSE) / 0.6) * 0.1)


def test_being_hit_from_behind_is_not_at_fault():
    parts = score(drive(5.0, [(-20.0, 0.0, 0.0, 12.0, "vehicle.car")]))
    assert (parts["hits"], parts["at_fault"]) == (1, 0)
    assert (parts["nc"], parts["ttc"], parts["score"]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("y", [0.0, 2.0])
def test_what_comes_from_behind_is_so_in_and_out_of_the_lane(y):
    seen = drive(5.0, [(-20.0, y, 0.0, 12.0, "vehicle.car")], y=y)
    lane = Ground(seen.road).in_lane(seen.ego)
    assert lane.all() == (y == 0.0)
    (hit,) = closed_loop.hits(seen, lane, closed_loop.first_contacts(seen))
    assert (hit.kind, hit.at_fault) == ("active_rear", False)


def test_time_to_collision_looks_sideways_in_junctions_too():
    beside = (3.0, 3.6, -np.pi / 2, 2.0, "vehicle.car")  # crosses from the left, beside the ego
    road = street()
    turn = replace(road, lanes=road.lanes | {"a": replace(road.lanes["a"], connector=True)})
    on_lane, on_connector = (drive(2.0, [beside], steps=3, road=r) for r in (road, turn))
    assert Ground(turn).in_lane(on_connector.ego).all()
    assert score(on_lane)["ttc_s"] is None
    assert score(on_connector)["ttc_s"] is not None


def test_being_hit_while_standing_is_not_at_fault():
    for track in ((-20.0, 0.0, 0.0, 5.0), (20.0, 0.0, np.pi, 5.0), (1.0, 20.0, -np.pi / 2, 5.0)):
        parts = score(drive(0.0, [(*track, "vehicle.car")], feasible=0.0))
        assert (parts["hits"], parts["at_fault"], parts["nc"]) == (1, 0, 1.0)


def test_the_side_counts_only_out_of_lane():
    # A neighbour at the same speed, drifting in from the left by 0.5 m/s, meets the ego's side.
    v = np.hypot(5.0, 0.5)
    track = (1.0, 3.0, -np.arctan2(0.5, 5.0), v, "vehicle.car")
    inside = score(drive(5.0, [track]))
    across = score(drive(5.0, [(1.0, 4.3, *track[2:])], y=1.4))
    assert (inside["hits"], inside["at_fault"], inside["nc"]) == (1, 0, 1.0)
    assert across["collision_kind"] == "active_lateral"
    assert across["nc"] == 0.0


def test_what_touches_at_the_start_is_nobodys_fault():
    parts = score(drive(5.0, [(5.0, 0.0, 0.0, 5.0, "vehicle.car")]))
    assert (parts["hits"], parts["nc"]) == (0, 1.0)


def test_tracks_that_are_not_there_are_not_looked_at():
    seen = drive(10.0, [(50.0, 0.0, 0.0, 0.0, "vehicle.car")])
    pose = np.full_like(seen.pose, np.nan)
    assert score(replace(seen, valid=np.zeros_like(seen.valid), pose=pose))["score"] == 1.0


def test_a_successor_belongs_to_the_lane_and_a_neighbour_does_not():
    ground = Ground(street())
    ego = np.array([[99.0, 0.0, 0.0], [50.0, 0.0, 0.0], [50.0, 1.5, 0.0], [50.0, -3.0, 0.0]])
    assert ground.in_lane(ego).tolist() == [True, True, False, False]


def test_off_road_is_measured_at_the_outermost_corner():
    edge = -2.0 + EGO_WIDTH / 2  # lowest y that keeps the box on the road
    for off, dac in ((-0.01, 1.0), (0.29, 1.0), (0.31, 0.0)):
        parts = score(drive(10.0, y=edge - off))
        assert parts["off_road_m"] == pytest.approx(max(off, 0.0))
        assert parts["dac"] == dac


def test_holes_are_off_road():
    road = replace(street(), drivable=[[rectangle(-100, 300, -2, 6), rectangle(50, 60, -1, 1)]])
    assert score(drive(10.0, road=road))["off_road_m"] > 0.1


@pytest.mark.parametrize(("speed", "ddc"), [(1.9, 1.0), (2.1, 0.5), (5.9, 0.5), (6.1, 0.0)])
def test_against_the_lane_counts_metres_in_a_second(speed, ddc):
    parts = score(drive(speed, y=4.0))
    assert parts["against_m"] == pytest.approx(speed)
    assert parts["ddc"] == ddc
    assert score(drive(speed))["against_m"] == 0.0


def test_reversing_in_the_own_lane_is_against_it():
    assert score(drive(-3.0))["against_m"] == pytest.approx(3.0)


def test_in_junctions_the_lane_that_fits_best_counts():
    lanes = dict(street().lanes)
    lanes["turn"] = Lane("turn", line(-100, 300, 4, 0.0), rectangle(-100, 300, 2, 6))
    assert score(drive(10.0, y=4.0, road=replace(street(), lanes=lanes)))["ddc"] == 1.0


@pytest.mark.parametrize("gap", [6.9, 8.9, 9.1, 30.0])
def test_time_to_collision_is_the_gap_over_the_closing_speed(gap):
    # A step of driving, so that nothing is ever hit: 10 m/s towards something that stands.
    there = 1.0 + NOSE + gap + 2.0
    parts = score(drive(10.0, [(there, 0.0, 0.0, 0.0, "vehicle.car")], steps=2))
    assert parts["ttc_s"] == (pytest.approx(np.ceil(gap) / 10) if gap <= 9.0 else None)


def test_time_to_collision_looks_ahead_and_sideways_only_out_of_lane():
    beside = (3.0, 3.6, -np.pi / 2, 2.0, "vehicle.car")  # crosses from the left, beside the ego
    inside = score(drive(2.0, [beside], steps=3))
    across = score(drive(2.0, [(3.0, 5.1, *beside[2:])], y=1.5, steps=3))
    assert (inside["hits"], across["hits"]) == (0, 0)
    assert inside["ttc_s"] is None
    assert across["ttc_s"] is not None
    standing = replace(drive(0.0, [beside], steps=3), feasible_m=0.0)
    assert score(standing)["ttc"] == 1.0


def test_progress_on_another_road_earns_nothing():
    """Straight on where the route turns left at x = 40."""
    route = Polyline(np.array([[-50.0, 0.0], [40.0, 0.0], [40.0, 200.0]]))
    parts = score(replace(drive(10.0, feasible=100.0), route=route))
    assert parts["progress_m"] == pytest.approx(40.0, abs=5.0)


def test_progress_follows_a_route_that_crosses_itself():
    angle = np.linspace(0, 1.5 * np.pi, 200)
    loop = np.column_stack([30 * np.sin(angle), 30 - 30 * np.cos(angle)])
    route = Polyline(np.concatenate([[[-40.0, 0.0]], loop, [[-30.0, -40.0]]]))
    s = 40.0 + np.arange(160.0)
    ego = route.pose(np.clip(s, 0, route.length))
    road = replace(street(), drivable=[[rectangle(-100, 100, -100, 100)]])
    whole = replace(drive(10.0, road=road, steps=160), ego=ego, route=route)
    assert score(whole)["progress_m"] == pytest.approx(159.0, abs=0.5)


def test_comfort_terms_of_a_circle_and_of_braking():
    time = np.arange(100) * 0.1
    rate, speed = 0.2, 8.0
    circle = np.column_stack([np.zeros(100), np.zeros(100), 3.0 + rate * time])
    terms = comfort.comfort_terms(circle, np.full(100, speed))
    assert terms["yaw_rate"] == pytest.approx(rate)
    assert terms["lat_accel"] == pytest.approx(speed * rate)
    assert terms["lon_accel"] == pytest.approx(-(rate**2) * 1.294)
    assert terms["jerk"] == pytest.approx(0.0, abs=1e-9)
    braking = comfort.comfort_terms(np.zeros((100, 3)), 20.0 - 0.5 * time**2 / 2)
    assert braking["lon_accel"] == pytest.approx(-0.5 * time, abs=1e-9)
    assert braking["lon_jerk"] == pytest.approx(-0.5)
    for accel, good in ((-4.0, 1.0), (-4.1, 0.0), (2.3, 1.0), (2.5, 0.0)):
        steady = comfort.comfort_terms(np.zeros((100, 3)), 50.0 + accel * time)
        assert comfort.comfort(steady) == good


def test_savgol_is_scipys():
    signal = pytest.importorskip("scipy.signal")
    values = np.random.default_rng(0).normal(size=60).cumsum()
    for window, degree, derivative in ((5, 2, 1), (5, 3, 2), (9, 3, 1), (15, 2, 1)):
        theirs = signal.savgol_filter(values, window, degree, deriv=derivative, delta=0.1)
        assert comfort.savgol(values, window, degree, derivative) == pytest.approx(theirs)
    assert comfort.savgol(np.array([1.0, 3.0]), 15, 2, 1) == pytest.approx([20.0, 20.0])


def random_drive(seed: int) -> Drive:
    """Thirty steps of wandering among twenty others."""
    rng = np.random.default_rng(seed)
    steps, n = 30, 20
    base = drive(rng.uniform(0, 8), y=rng.uniform(-1, 4), steps=steps)
    ego = base.ego + np.cumsum(rng.normal(0, [0.0, 0.05, 0.02], (steps, 3)), axis=0)
    speed = rng.uniform(-2, 9, n) * (rng.random(n) < 0.8)
    heading = rng.uniform(-np.pi, np.pi, n)
    start = np.column_stack([rng.uniform(-10, 25, n), rng.uniform(-9, 13, n)])
    way = np.column_stack([np.cos(heading), np.sin(heading)]) * speed[:, None]
    xy = start + np.arange(steps)[:, None, None] * 0.1 * way
    return replace(
        base,
        ego=ego,
        pose=np.concatenate([xy, np.broadcast_to(heading[:, None], (steps, n, 1))], axis=-1),
        size=rng.uniform([0.5, 0.5], [6.0, 2.5], (n, 2)),
        valid=rng.random((steps, n)) < 0.9,
        track_speed=np.broadcast_to(speed, (steps, n)),
        categories=tuple(rng.choice(["vehicle.car", "human.adult", "movable_object.barrier"], n)),
    )


def box(pose: np.ndarray, length: float, width: float) -> shapely.Polygon:
    turn, at = np.exp(1j * pose[2]), complex(*pose[:2])
    half = complex(length, width) / 2
    ring = [at + turn * z for z in (half, -half.conjugate(), -half, half.conjugate())]
    return shapely.Polygon([(z.real, z.imag) for z in ring])


def slow_reference(d: Drive) -> tuple[list[tuple], float, float, list[bool]]:
    """Hits, least time to collision, metres off road, lane keeping: step by step with shapely."""
    road = shapely.Polygon(d.road.drivable[0][0])
    lanes = d.road.lanes
    areas = {token: shapely.Polygon(lane.polygon) for token, lane in lanes.items()}
    sets = [{a} for a in lanes] + [{"a", "b"}]
    found, met, ttc, off, lane_kept = [], set(), np.inf, 0.0, []
    for t, pose in enumerate(d.ego):
        centre = pose + 1.294 * np.array([np.cos(pose[2]), np.sin(pose[2]), 0.0])
        ego = box(centre, EGO_LENGTH, EGO_WIDTH)
        ahead = d.speed[t] * np.array([np.cos(pose[2]), np.sin(pose[2]), 0.0])
        ghosts = [box(centre + 0.1 * k * ahead, EGO_LENGTH, EGO_WIDTH) for k in range(1, 10)]
        points = [shapely.Point(p) for p in corners(ego_centre(pose), EGO_LENGTH, EGO_WIDTH)]
        off = max(off, *(road.distance(p) for p in points))
        kept = any(all(any(areas[a].covers(p) for a in s) for p in points) for s in sets)
        lane_kept.append(kept)
        new = []
        for n in range(len(d.categories)):
            if not d.valid[t, n] or n in met:
                continue
            other = d.pose[t, n]
            away = other[:2] - pose[:2]
            if np.linalg.norm(away) > 25.0:  # nobody drives faster than 9 m/s
                continue
            cos = np.clip(away @ [np.cos(pose[2]), np.sin(pose[2])] / np.linalg.norm(away), -1, 1)
            angle = np.degrees(np.arccos(cos))
            if ego.intersects(box(other, *d.size[n])):
                met.add(n)
                if t == 0:
                    continue
                bumper = shapely.LineString([points[0], points[3]])
                still = d.categories[n].startswith("movable") or abs(d.track_speed[t, n]) <= 0.05
                if abs(d.speed[t]) <= 0.05:
                    kind, fault = "stopped_ego", False
                elif still:
                    kind, fault = "stopped_track", True
                elif angle > 150:
                    kind, fault = "active_rear", False
                elif bumper.intersects(box(other, *d.size[n])):
                    kind, fault = "active_front", True
                else:
                    kind, fault = "active_lateral", not kept
                new.append((t, n, kind, fault))
            elif abs(d.speed[t]) > 0.005 and (angle < 30 or (not kept and angle <= 150)):
                way = np.array([np.cos(other[2]), np.sin(other[2]), 0.0]) * d.track_speed[t, n]
                for k, ghost in enumerate(ghosts, start=1):
                    if ghost.intersects(box(other + 0.1 * k * way, *d.size[n])):
                        ttc = min(ttc, 0.1 * k)
                        break
        found += new
    return found, (0.0 if any(f[3] for f in found) else ttc), off, lane_kept


def test_random_drives_agree_with_a_slow_reference():
    kinds, times = set(), set()
    for seed in range(6):
        d = random_drive(seed)
        found, ttc, off, kept = slow_reference(d)
        ground = Ground(d.road)
        lane, first = ground.in_lane(d.ego), closed_loop.first_contacts(d)
        ours = closed_loop.hits(d, lane, first)
        assert lane.tolist() == kept
        assert [(h.step, h.track, h.kind, h.at_fault) for h in ours] == found
        assert closed_loop.time_to_collision(d, ground, lane, first, ours) == pytest.approx(ttc)
        assert ground.off_road(d.ego).max() == pytest.approx(off)
        kinds |= {h.kind for h in ours}
        times.add(round(ttc, 1))
    assert kinds >= {"stopped_track", "active_front", "active_lateral"}
    assert len(times) > 1


def test_the_same_drive_scores_the_same_and_a_shared_ground_changes_nothing():
    d = random_drive(3)
    assert score(d) == score(d, Ground(d.road)) == score(random_drive(3))


def test_bad_drives_are_refused_in_a_sentence():
    good = drive(10.0, [(50.0, 0.0, 0.0, 0.0, "vehicle.car")])
    with pytest.raises(ShapeError, match=r"Drive\.size has shape \[1, 1\].*\[1, 2\] or \[1, 3\]"):
        replace(good, size=np.ones((1, 1)))
    with pytest.raises(ShapeError, match=r"Drive\.ego holds NaN"):
        replace(good, ego=np.full_like(good.ego, np.nan))
    with pytest.raises(ShapeError, match=r"feasible_m is -1"):
        replace(good, feasible_m=-1.0)
    with pytest.raises(ShapeError, match="two or more"):
        replace(good, ego=good.ego[:1])
    with pytest.raises(MissingError, match="no drivable area"):
        score(replace(good, road=replace(street(), drivable=[])))


def test_a_map_without_lanes_still_scores():
    parts = score(drive(10.0, road=replace(street(), lanes={})))
    assert (parts["score"], parts["ddc"]) == (1.0, 1.0)
