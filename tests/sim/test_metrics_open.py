"""Open-loop scores: cases worked out by hand, literal loops and shapely boxes as references."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely
from vla_prune_sim.drive.scene import RoadMap, Scene, Scenery, Tracks
from vla_prune_sim.metrics.open_loop import OPEN_LOOP, Frame, evaluate, frame_at

from vla_prune.errors import ConfigError, ShapeError

K = np.arange(1, 7)
CENTRE = 0.5 + 0.985793  # of the ego box, ahead of the rear axle
ROAD = np.array([[-50.0, -4.0], [50.0, -4.0], [50.0, 4.0], [-50.0, 4.0]])


def path(x=0.0, y=0.0) -> np.ndarray:
    """Six waypoints, each coordinate a number or six of them."""
    return np.column_stack([np.broadcast_to(x, 6), np.broadcast_to(y, 6)]).astype(float)


def frame(log: np.ndarray, *tracks: tuple, **more) -> Frame:
    """Tracks are (x, y, heading, length, width, category, steps at which it is there, from 1)."""
    boxes = np.array([t[:5] for t in tracks], float).reshape(-1, 5)
    present = np.array([[k in t[6] for t in tracks] for k in K], bool).reshape(6, -1)
    names = tuple(t[5] for t in tracks)
    return Frame(log, np.tile(boxes, (6, 1, 1)), present, names, **more)


def one(name: str, plan: np.ndarray, *frames: Frame) -> list[float]:
    """The score of one plan for each of the frames: 1, 2, 3 s and average."""
    table = evaluate(np.stack([plan] * len(frames)), frames, [name])[name]
    assert list(table) == ["1s", "2s", "3s", "avg"]
    return list(table.values())


def test_l2_of_a_constant_speed_error_differs_by_a_factor_of_1_6():
    """One m/s too fast: e_k = 0.5 k."""
    log, plan = frame(path(5.0 * K)), path(5.5 * K)
    assert one("l2_uniad", plan, log) == pytest.approx([1.0, 2.0, 3.0, 2.0])
    assert one("l2_st_p3_vad", plan, log) == pytest.approx([0.75, 1.25, 1.75, 1.25])


def test_l2_of_a_constant_acceleration_error_differs_by_a_factor_of_2_2():
    """Constant velocity against a log that brakes with 1 m/s^2: e_k = k^2 / 8."""
    log, plan = frame(path(5.0 * K - K**2 / 8)), path(5.0 * K)
    uniad, vad = one("l2_uniad", plan, log), one("l2_st_p3_vad", plan, log)
    assert uniad == pytest.approx([4 / 8, 16 / 8, 36 / 8, 56 / 24])
    assert vad == pytest.approx([5 / 16, 30 / 32, 91 / 48, (5 / 16 + 30 / 32 + 91 / 48) / 3])
    assert uniad[3] / vad[3] == pytest.approx(2.225, abs=0.001)


def test_a_hit_at_the_last_step_is_a_sixth_for_vad_and_one_for_bev_planner():
    seen = frame(path(), (30.0, 0.0, 0.0, 4.0, 2.0, "vehicle.car", {6}))
    plan = path(5.0 * K)
    assert one("collision_vad", plan, seen) == pytest.approx([0.0, 0.0, 1 / 6, 1 / 18])
    assert one("collision_bev_planner", plan, seen) == pytest.approx([0.0, 0.0, 1.0, 1 / 3])


def test_an_early_hit_stays_counted_for_bev_planner_and_fades_for_vad():
    seen = frame(path(), (6.5, 0.0, 0.0, 4.0, 2.0, "vehicle.car", {1}))
    plan = path(5.0 * K)
    assert one("collision_vad", plan, seen) == pytest.approx([1 / 2, 1 / 4, 1 / 6, 11 / 36])
    assert one("collision_bev_planner", plan, seen) == [1.0, 1.0, 1.0, 1.0]


def test_where_the_logged_ego_collides_too_nothing_is_counted_but_the_frame_is():
    track = (30.0, 0.0, 0.0, 4.0, 2.0, "vehicle.car", {6})
    masked, open_ = frame(path(5.0 * K), track), frame(path(), track)
    for name, hit in (("collision_vad", 1 / 6), ("collision_bev_planner", 1.0)):
        assert one(name, path(5.0 * K), masked)[2] == 0.0
        assert one(name, path(5.0 * K), masked, open_)[2] == pytest.approx(hit / 2)


def test_people_count_for_vad_only_and_things_for_nobody():
    for category, vad in (("human.pedestrian.adult", 1.0), ("movable_object.barrier", 0.0)):
        seen = frame(path(50.0), (0.0, 0.0, 0.0, 4.0, 2.0, category, set(K)))
        assert one("collision_vad", path(), seen)[2] == vad
        assert one("collision_bev_planner", path(), seen)[2] == 0.0


def test_only_bev_planner_turns_the_box_and_only_for_steps_of_a_metre():
    left = path(0.0, 2.0 * K)  # ends at (0, 12), driving along y
    beyond = frame(path(-40.0), (0.0, 14.8, 0.0, 0.4, 0.4, "vehicle.car", {6}))
    beside = frame(path(-40.0), (3.0, 12.0, 0.0, 0.4, 0.4, "vehicle.car", {6}))
    assert one("collision_bev_planner", left, beyond)[2] == 1.0
    assert one("collision_bev_planner", left, beside)[2] == 0.0
    assert one("collision_vad", left, beyond)[2] == 0.0
    assert one("collision_vad", left, beside)[2] == pytest.approx(1 / 6)
    for step, turned in ((0.99, False), (1.01, True)):
        seen = frame(path(-40.0), (3.0, 6 * step, 0.0, 0.4, 0.4, "vehicle.car", {6}))
        assert one("collision_bev_planner", path(0.0, step * K), seen)[2] == float(not turned)


def test_the_ego_box_reaches_from_0_56_m_behind_to_3_53_m_ahead_of_the_rear_axle():
    """In pixels of 0.1 m; with a box of 0.2 m, 0.25 m inside or outside either end."""
    front, rear = CENTRE + 2.042, CENTRE - 2.042
    for x, hit in ((front - 0.25, 1), (front + 0.25, 0), (rear + 0.25, 1), (rear - 0.25, 0)):
        seen = frame(path(-40.0), (x, 0.0, 0.0, 0.2, 0.2, "vehicle.car", set(K)))
        assert one("collision_bev_planner", path(), seen)[2] == hit
    for y, hit in ((0.925 - 0.25, 1), (0.925 + 0.25, 0)):
        seen = frame(path(-40.0), (1.0, y, 0.0, 0.2, 0.2, "vehicle.car", set(K)))
        assert one("collision_bev_planner", path(), seen)[2] == hit


def test_off_the_road_is_an_intersection_for_omnidrive_and_none_for_bev_planner():
    edges = [ROAD[:2], ROAD[2:]]
    seen = frame(path(5.0 * K), drivable=[[ROAD]], boundary=edges)
    beyond = path(5.0 * K, [0.0, 0.0, 20.0, 20.0, 20.0, 20.0])  # jumps over the edge
    assert one("intersection_omnidrive", beyond, seen) == pytest.approx([0.0, 1.0, 1.0, 2 / 3])
    assert one("intersection_bev_planner", path(5.0 * K, 20.0), seen)[2] == 0.0
    assert one("intersection_omnidrive", path(5.0 * K, 20.0), seen)[0] == 1.0
    on_the_line = path(5.0 * K, [0.0, 0.0, 0.0, 0.0, 0.0, 3.5])
    assert one("intersection_bev_planner", on_the_line, seen)[2] == 1.0
    assert one("intersection_omnidrive", path(5.0 * K), seen) == [0.0] * 4


def test_omnidrive_forgives_a_plan_that_begins_off_the_road():
    away = ROAD + np.array([0.0, 3.5])
    seen = frame(path(5.0 * K), drivable=[[away]])
    on_the_road = frame(path(5.0 * K), drivable=[[ROAD]])
    plan = path(5.0 * K, 20.0)
    assert one("intersection_omnidrive", plan, seen)[2] == 0.0
    assert one("intersection_omnidrive", plan, seen, on_the_road)[2] == 0.5


def test_holes_in_the_road_are_off_it():
    hole = np.array([[10.0, -2.0], [14.0, -2.0], [14.0, 2.0], [10.0, 2.0]])
    plan = path(5.0 * K)
    assert one("intersection_omnidrive", plan, frame(plan, drivable=[[ROAD, hole]]))[2] == 1.0
    twice = frame(plan, drivable=[[ROAD, hole], [hole]])
    assert one("intersection_omnidrive", plan, twice)[2] == 0.0


def test_bev_planner_leaves_out_lines_that_the_logged_ego_crosses():
    line = np.array([[15.0, -5.0], [15.0, 5.0]])
    plan = path(5.0 * K)
    assert one("intersection_bev_planner", plan, frame(path(), boundary=[line]))[2] == 1.0
    assert one("intersection_bev_planner", plan, frame(plan, boundary=[line]))[2] == 0.0


def test_frames_without_a_whole_future_do_not_count():
    log = frame(path(5.0 * K))
    short = frame(path(0.0), complete=False)
    assert one("l2_uniad", path(5.0 * K), log, short)[2] == 0.0
    with pytest.raises(ShapeError, match="none of 1 frames has 3 s"):
        one("l2_uniad", path(), short)


def random_frame(rng: np.random.Generator, angles: np.ndarray) -> tuple[np.ndarray, Frame]:
    heading = rng.uniform(-0.5, 0.5)
    way = np.cumsum(rng.uniform(0.2, 4.0, 6))[:, None] * [np.cos(heading), np.sin(heading)]
    tracks = [
        (
            *rng.uniform([-3.0, -8.0], [25.0, 8.0]),
            rng.choice(angles),
            *rng.uniform([0.6, 0.6], [5.0, 2.0]),
            rng.choice(["vehicle.car", "human.adult", "movable_object.barrier"]),
            set(rng.choice(K, 3)),
        )
        for _ in range(8)
    ]
    return way, frame(path(2.0 * K, 1.2 * K), *tracks)


def vad_by_loops(way: np.ndarray, seen: Frame) -> list[bool]:
    """Pixel sets, one pixel at a time; right angles only, so that outlines are rectangles."""
    out = []
    for k in range(6):
        taken = set()
        for n, (x, y, heading, length, width) in enumerate(seen.boxes[k]):
            if not seen.present[k, n] or seen.categories[n].startswith("movable"):
                continue
            if abs(np.sin(heading)) > 0.5:
                length, width = width, length
            x -= 0.985793  # the lidar's frame
            columns = sorted(round((50 - v) / 0.5) for v in (y - width / 2, y + width / 2))
            rows = sorted(round((50 - v) / 0.5) for v in (x - length / 2, x + length / 2))
            for row in range(rows[0], rows[1] + 1):
                for column in range(columns[0], columns[1] + 1):
                    taken.add((row, column))
        hit = False
        for i in range(200):
            for j in range(95, 105):
                ahead, right = -49.75 + 0.5 * i, -49.75 + 0.5 * j
                if -2.042 + 0.5 <= ahead <= 2.042 + 0.5 and -0.925 <= right <= 0.925:
                    pixel = (int(200 - way[k, 0] / 0.5 - i), int(-way[k, 1] / 0.5 + j))
                    hit = hit or pixel in taken
        out.append(hit)
    return out


def test_vad_agrees_with_literal_loops():
    rng = np.random.default_rng(0)
    seen_values = set()
    for _ in range(40):
        way, seen = random_frame(rng, np.array([0.0, np.pi / 2, np.pi]))
        hit = np.array(vad_by_loops(way, seen)) & ~np.array(vad_by_loops(seen.ego, seen))
        wanted = [hit[:2].mean(), hit[:4].mean(), hit.mean()]
        assert one("collision_vad", way, seen)[:3] == pytest.approx(wanted)
        seen_values.add(wanted[2])
    assert len(seen_values) >= 3


def outline(x: float, y: float, heading: float, length: float, width: float) -> shapely.Polygon:
    turn, half = np.exp(1j * heading), complex(length, width) / 2
    ring = [complex(x, y) + turn * z for z in (half, -half.conjugate(), -half, half.conjugate())]
    return shapely.Polygon([(z.real, z.imag) for z in ring])


def ego_outlines(way: np.ndarray, least: float, length: float) -> list[shapely.Polygon]:
    """The box at each waypoint, turned about the rear axle by steps of at least ``least``."""
    out, last = [], np.zeros(2)
    for here in way:
        step = here - last
        angle = np.arctan2(step[1], step[0]) if np.linalg.norm(step) >= least else 0.0
        centre = here + CENTRE * np.array([np.cos(angle), np.sin(angle)])
        out.append(outline(*centre, angle, length, 1.85))
        last = here
    return out


def surely(ego: shapely.Polygon, others: list, slack: float = 0.2) -> bool | None:
    """Whether boxes meet; None where pixels of 0.1 m may decide either way."""
    if any(ego.buffer(-slack).intersects(other) for other in others):
        return True
    return None if any(ego.distance(other) <= slack for other in others) else False


def test_bev_planner_agrees_with_shapely_boxes():
    rng = np.random.default_rng(1)
    counts = {True: 0, False: 0}
    for _ in range(60):
        way, seen = random_frame(rng, np.linspace(-3, 3, 13))
        steps = []
        for k in range(6):
            cars = [
                outline(*seen.boxes[k, n])
                for n in range(8)
                if seen.present[k, n] and seen.categories[n] == "vehicle.car"
            ]
            ours, logs = (surely(ego_outlines(p, 1.0, 4.084)[k], cars) for p in (way, seen.ego))
            steps.append(None if None in (ours, logs) else ours and not logs)
        wanted = True if True in steps else None if None in steps else False
        if wanted is not None:
            assert one("collision_bev_planner", way, seen)[2] == float(wanted)
            counts[wanted] += 1
    assert min(counts.values()) >= 5


def test_intersections_agree_with_shapely():
    rng = np.random.default_rng(2)
    counts = {(name, hit): 0 for name in ("line", "area") for hit in (True, False)}
    for _ in range(40):
        bend = np.column_stack([np.linspace(-10, 45, 12), rng.normal(0, 0.7, 12).cumsum()])
        left, right = bend + np.array([0.0, 5.0]), bend - np.array([0.0, 5.0])
        area = np.concatenate([left, right[::-1]])
        way = path(np.cumsum(rng.uniform(1.0, 5.0, 6)), np.cumsum(rng.normal(0, 0.6, 6)))
        seen = frame(path(-45.0), drivable=[[area]], boundary=[left, right])
        lines = [shapely.LineString(v) for v in (left, right)]
        hits = [surely(ego, lines) for ego in ego_outlines(way, 1.0, 4.084)]
        wanted = True if True in hits else None if None in hits else False
        if wanted is not None:
            assert one("intersection_bev_planner", way, seen)[2] == float(wanted)
            counts["line", wanted] += 1
        # OmniDrive's box keeps its centre ahead along x, however the plan turns.
        step = np.diff(way, axis=0, prepend=np.zeros((1, 2)))
        boxes = [
            outline(x + CENTRE, y, np.arctan2(dy, dx), 4.08, 1.85)
            for (x, y), (dx, dy) in zip(way, step, strict=True)
        ]
        road = shapely.Polygon(area)
        if not road.contains(outline(CENTRE, 0.0, 0.0, 4.08, 1.85).buffer(0.2)):
            continue
        off = any(not road.contains(box.buffer(-0.2)) for box in boxes)
        on = all(road.contains(box.buffer(0.2)) for box in boxes)
        if off or on:
            assert one("intersection_omnidrive", way, seen)[2] == float(off)
            counts["area", off] += 1
    assert min(counts.values()) >= 4


def tiny_scene() -> Scene:
    """Seven metres a second to the north from (100, 200); a car that is overtaken by 1 m/s."""
    steps = 50
    y = 200.0 + 0.7 * np.arange(steps)
    ego = np.column_stack([np.full(steps, 100.0), y, np.full(steps, np.pi / 2)])
    pose = np.stack([ego + np.array([-4.0, 5.0, 0.0])])
    pose[0, :, 1] -= 0.1 * np.arange(steps)
    tracks = Tracks(
        ("t",),
        ("vehicle.car",),
        np.array([[4.5, 1.9, 1.6]]),
        pose,
        np.array([0.8]),
        np.full((1, steps), 6.0),
        np.arange(steps)[None] < 30,
    )
    area = np.array([[94.0, 150.0], [104.0, 150.0], [104.0, 300.0], [94.0, 300.0]])
    far = area + 500.0
    road = RoadMap("singapore-onenorth", {}, [[area], [far]])
    scenery = Scenery(np.zeros((0, 6)), np.zeros((0, 3), np.uint8), np.zeros((0, 4)))
    return Scene(
        name="scene-0001",
        source="synthetic",
        version="v1.0-synthetic",
        description="",
        map=road,
        ego=ego,
        ego_speed=np.full(steps, 7.0),
        tracks=tracks,
        cameras={},
        route=ego[:, :2],
        scenery=scenery,
        keyframes=np.arange(0, steps, 5),
    )


def test_a_frame_of_a_scene_is_in_the_egos_frame():
    scene = tiny_scene()
    seen = frame_at(scene, 10)
    assert seen.ego == pytest.approx(path(3.5 * K), abs=1e-9)
    assert seen.boxes[:, 0, :2] == pytest.approx(path(4.0 + 3.0 * K, 4.0))
    assert seen.boxes[0, 0, 2:] == pytest.approx([0.0, 4.5, 1.9])
    assert seen.present[:, 0].tolist() == [True, True, True, False, False, False]
    assert len(seen.drivable) == 1
    # The road is 10 m wide and longer than the patch: two edges, 60 m long each.
    edges = sorted(seen.boundary, key=lambda line: line[0, 1])
    assert [line[:, 1].mean() for line in edges] == pytest.approx([-4.0, 6.0])
    assert [np.ptp(line[:, 0]) for line in edges] == pytest.approx([60.0, 60.0])
    assert (seen.complete, frame_at(scene, 20).complete) == (True, False)


def test_the_log_as_plan_scores_zero_everywhere():
    scene = tiny_scene()
    frames = [frame_at(scene, step) for step in (0, 5, 10, 40)]
    plans = np.stack([f.ego for f in frames])
    tables = evaluate(plans, frames)
    assert tables.keys() == OPEN_LOOP.keys()
    assert {v for table in tables.values() for v in table.values()} == {0.0}
    with_heading = np.concatenate([plans, np.ones((4, 6, 1))], axis=-1)
    assert evaluate(with_heading, frames) == tables


def test_bad_input_is_refused_in_a_sentence():
    seen = frame(path())
    with pytest.raises(ConfigError, match="did you mean 'collision_vad'"):
        evaluate(path()[None], [seen], ["collision_vat"])
    with pytest.raises(ShapeError, match=r"plans have shape \[6, 2\]"):
        evaluate(path(), [seen])
    with pytest.raises(ShapeError, match="2 plans came with 1 frames"):
        evaluate(np.zeros((2, 6, 2)), [seen])
    with pytest.raises(ShapeError, match="NaN"):
        evaluate(np.full((1, 6, 2), np.nan), [seen])
    with pytest.raises(ShapeError, match=r"Frame\.boxes has shape"):
        replace(seen, categories=("vehicle.car",))
