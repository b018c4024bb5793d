"""The ego's body, the others, the reference drivers, and what comes of them together."""

from dataclasses import replace

import numpy as np
import pytest
from vla_prune_sim.drive import drivers
from vla_prune_sim.drive.geometry import Polyline, corners, overlap
from vla_prune_sim.drive.scene import EGO_CENTRE, EGO_LENGTH, STEP_S, Scene, Tracks, ego_centre
from vla_prune_sim.drive.score import blameless, feasible_m, score
from vla_prune_sim.drive.simulation import PRIMED, Simulation, command, drive, touching
from vla_prune_sim.drive.town import make_scene
from vla_prune_sim.drive.traffic import Traffic
from vla_prune_sim.drive.vehicle import PLAN_DT_S, Body, Limits, Tracker, move
from vla_prune_sim.metrics.comfort import comfort, comfort_terms
from vla_prune_sim.train.drive_demos import TEACHER

from vla_prune.errors import ConfigError

STEPS = 201


@pytest.fixture(scope="module")
def town() -> Scene:
    return make_scene(0, "stopped_vehicle")


def tracks(*rows: tuple[str, np.ndarray], size=(4.5, 1.9, 1.6)) -> Tracks:
    """Categories and logged ``[STEPS, 3]`` poses."""
    pose = np.stack([pose for _, pose in rows])
    step = np.linalg.norm(np.diff(pose[..., :2], axis=1), axis=-1) / STEP_S
    return Tracks(
        tokens=tuple(f"t{i}" for i in range(len(rows))),
        categories=tuple(category for category, _ in rows),
        size=np.tile(size, (len(rows), 1)),
        pose=pose,
        z=np.full(len(rows), 0.8),
        speed=np.concatenate([step[:, :1], step], axis=1),
        valid=np.ones(pose.shape[:2], bool),
    )


def line(x: float, y: float, speed: float, heading: float = 0.0) -> np.ndarray:
    """A straight logged drive, ``[STEPS, 3]``."""
    way = speed * STEP_S * np.arange(STEPS)
    poses = [x + way * np.cos(heading), y + way * np.sin(heading), np.full(STEPS, heading)]
    return np.stack(poses, axis=-1)


def straight(town: Scene, others: Tracks, speed: float = 8.0) -> Scene:
    """A scene on an endless straight route along x."""
    route = np.stack([np.linspace(-50, 400, 451), np.zeros(451)], axis=-1)
    ego, pace = line(0.0, 0.0, speed), np.full(STEPS, speed)
    return replace(town, ego=ego, ego_speed=pace, tracks=others, route=route)


FAR = ("vehicle.car", line(0.0, 900.0, 0.0))


class TestBody:
    def test_a_held_wheel_drives_a_circle(self):
        body = Body(np.zeros(3), speed=5.0, steer=0.2)
        radius = 2.588 / np.tan(0.2)
        for _ in range(400):
            body = move(body, 0.0, 0.2, Limits())
            away = np.linalg.norm(body.pose[:2] - [0.0, radius])
            assert away == pytest.approx(radius, rel=2e-3)

    def test_it_brakes_to_a_stand_and_not_backwards(self):
        body = Body(np.zeros(3), speed=6.0)
        for _ in range(40):
            body = move(body, -100.0, 0.0, Limits())
        # 6 m/s at 6 m/s^2 is 3 m, and the pedals' lag adds less than two more.
        assert body.speed == 0.0
        assert 3.0 < body.pose[0] < 5.0

    def test_wheels_turn_no_faster_than_they_can(self):
        body = move(Body(np.zeros(3), speed=5.0), 0.0, 10.0, Limits())
        assert body.steer == pytest.approx(0.09)
        for _ in range(20):
            body = move(body, 0.0, 10.0, Limits())
        assert body.steer == pytest.approx(0.6)

    @pytest.mark.parametrize("left", [0.0, 3.0, -3.0])
    def test_the_tracker_gets_where_the_plan_ends(self, left: float):
        body, tracker = Body(np.zeros(3), speed=6.0), Tracker()
        way = 7.0 * 0.5 * np.arange(1, 7)
        plan = np.stack([way, left * (way / way[-1]) ** 2], axis=-1)
        tracker.take(plan, body)
        for _ in range(30):
            body = move(body, *tracker.command(body), Limits())
        assert body.pose[:2] == pytest.approx(plan[-1], abs=0.6)

    @pytest.mark.parametrize("speed", [5.0, 8.0, 12.0])
    @pytest.mark.parametrize("brakes", [1.5, 2.0, 2.4])
    def test_a_plan_that_brakes_gently_is_followed_gently(self, speed: float, brakes: float):
        body, tracker = Body(np.zeros(3), speed=speed), Tracker()
        driven = [body]
        for _ in range(20):
            time = np.minimum(PLAN_DT_S * np.arange(1, 7), body.speed / brakes)
            way = body.speed * time - brakes / 2 * time**2
            tracker.take(np.stack([way, 0 * way], axis=-1), body)
            for _ in range(5):
                body = move(body, *tracker.command(body), Limits())
                driven.append(body)
        terms = comfort_terms(
            np.stack([b.pose for b in driven]), np.array([b.speed for b in driven])
        )
        assert comfort(terms) == 1.0
        assert body.speed == 0.0

    def test_a_plan_to_stand_is_obeyed(self):
        body, tracker = Body(np.zeros(3), speed=3.0), Tracker()
        for _ in range(12):
            tracker.take(np.zeros((6, 2)), body)
            for _ in range(5):
                body = move(body, *tracker.command(body), Limits())
        assert body.speed == 0.0


class TestTraffic:
    def test_a_log_is_replayed_whatever_the_ego_does(self, town: Scene):
        traffic = Traffic(town, "log", start=7)
        for step in range(8, 20):
            others = traffic.advance(town.tracks.pose[0, step], 0.0)
            np.testing.assert_array_equal(others.pose, town.tracks.pose[:, step])
            np.testing.assert_array_equal(others.present, town.tracks.valid[:, step])

    def test_a_free_vehicle_follows_its_log(self, town: Scene):
        scene = straight(town, tracks(("vehicle.car", line(20.0, 3.5, 9.0))))
        traffic = Traffic(scene, "idm")
        for step in range(1, 150):
            now = traffic.advance(np.array([-60.0, 0.0, 0.0]), 0.0)
            np.testing.assert_allclose(now.pose[0], [20.0 + 0.9 * step, 3.5, 0.0], atol=1.0)

    def test_a_vehicle_stops_behind_the_standing_ego(self, town: Scene):
        scene = straight(town, tracks(("vehicle.car", line(-30.0, 0.0, 8.0))))
        standing = np.array([20.0, 0.0, 0.0])
        for mode, hits in (("idm", False), ("log", True)):
            traffic, touched = Traffic(scene, mode), False
            for _ in range(180):
                now = traffic.advance(standing, 0.0)
                box = corners(now.pose[0], 4.5, 1.9)
                touched |= bool(overlap(box, corners(ego_centre(standing), 4.084, 1.73)))
            assert touched == hits, mode
        assert Traffic(scene, "idm").now().pose[0] == pytest.approx([-30.0, 0.0, 0.0], abs=1e-6)

    def test_people_and_parked_cars_keep_to_the_log(self, town: Scene):
        walk = line(10.0, -4.0, 1.2, np.pi / 2)
        scene = straight(
            town,
            tracks(("human.pedestrian.adult", walk), ("vehicle.car", line(30.0, -3.0, 0.0))),
        )
        traffic = Traffic(scene, "idm")
        for step in range(1, 60):
            now = traffic.advance(np.array([10.0, 0.0, 0.0]), 0.0)
            np.testing.assert_array_equal(now.pose, scene.tracks.pose[:, step])

    def test_a_forecast_is_what_happens_when_nobody_is_in_the_way(self, town: Scene):
        scene = straight(town, tracks(("vehicle.car", line(20.0, 3.5, 9.0)), FAR))
        traffic, away = Traffic(scene, "idm"), np.array([-60.0, 0.0, 0.0])
        told, _ = traffic.forecast(np.array([1.0, 2.0]))
        for _ in range(20):
            now = traffic.advance(away, 0.0)
        np.testing.assert_allclose(told[:, 1], now.pose, atol=0.5)
        np.testing.assert_allclose(told[0, 1, :2] - told[0, 0, :2], [9.0, 0.0], atol=1e-6)

    def test_a_mode_that_is_not_there_is_named(self, town: Scene):
        with pytest.raises(ConfigError, match="mode 'imd' is unknown; did you mean 'idm'"):
            Traffic(town, "imd")


class TestDrivers:
    def test_the_log_expert_stays_on_the_log(self, town: Scene):
        simulation = drive(straight(town, tracks(FAR)), drivers.make("log_expert"))
        driven = np.stack([body.pose for body in simulation.record.bodies])
        np.testing.assert_allclose(driven, simulation.scene.ego, atol=0.35)

    def test_the_rule_expert_stops_behind_what_stands_and_goes_on(self, town: Scene):
        block = line(70.0, 0.0, 0.0)
        free = replace(tracks(("vehicle.car", block)))
        free.valid[:, 120:] = False
        simulation = drive(straight(town, free), drivers.make("rule_expert"))
        x = np.array([body.pose[0] for body in simulation.record.bodies])
        assert x[:121].max() < 70.0 - 2.25 - 4.084
        assert simulation.ended == "time"
        assert x[-1] > 75.0

    def test_the_teacher_keeps_more_room(self, town: Scene):
        stands = straight(town, tracks(("vehicle.truck", line(70.0, 0.0, 0.0))))
        reached = [
            drive(stands, drivers.RuleExpert(**more), "log").record.bodies[-1].pose[0]
            for more in ({}, TEACHER)
        ]
        assert 0.5 < reached[0] - reached[1] < 4.0

    def test_the_teacher_keeps_away_from_people_alone(self, town: Scene):
        def beside(category: str) -> np.ndarray:
            stands = tracks((category, line(70.0, 1.8, 0.0)), size=(0.6, 0.6, 1.7))
            bodies = drive(straight(town, stands), drivers.RuleExpert(person_m=0.8)).record.bodies
            return np.array([body.pose for body in bodies])

        post, person = beside("movable_object.barrier"), beside("human.pedestrian.adult")
        assert np.abs(post[:, 1]).max() < 0.1
        near = np.abs(person[:, 0] - 68.0) < 3.0
        assert not near.any() or person[near, 1].max() < -0.5

    def test_the_teacher_that_stands_too_near_stays(self, town: Scene):
        front = EGO_LENGTH / 2 + float(ego_centre(np.zeros(3))[0])
        for category, size in (
            ("vehicle.car", (4.0, 1.9, 1.6)),
            ("human.pedestrian.adult", (0.6, 0.6, 1.7)),
        ):
            ahead = tracks((category, line(front + 0.2 + size[0] / 2, 0.0, 0.0)), size=size)
            simulation = Simulation(straight(town, ahead, speed=0.0), "log")
            plan = drivers.RuleExpert(**TEACHER).plan(simulation.situation())
            assert plan[:, 0].max() < 0.1

    def test_the_teacher_that_cannot_stop_brakes(self, town: Scene):
        ahead = tracks(("vehicle.car", line(18.0, 0.0, 0.0)))
        simulation = Simulation(straight(town, ahead, speed=9.0), "log")
        plan = drivers.RuleExpert(**TEACHER).plan(simulation.situation())
        assert plan[-1, 0] < 8.0

    def test_the_rule_expert_is_slow_in_bends(self, town: Scene):
        turn = np.linspace(0, np.pi / 2, 60)
        arc = np.stack([40 + 12 * np.sin(turn), 12 - 12 * np.cos(turn)], axis=-1)
        out = np.stack([np.full(200, 52.0), np.linspace(13, 300, 200)], axis=-1)
        lead = np.stack([np.linspace(-50, 39.5, 180), np.zeros(180)], axis=-1)
        scene = replace(
            straight(town, tracks(FAR)),
            route=np.concatenate([lead, arc, out]),
        )
        bodies = drive(scene, drivers.make("rule_expert")).record.bodies
        lateral = [body.speed * body.yaw_rate for body in bodies]
        assert np.abs(lateral).max() < 3.5
        assert bodies[-1].pose[1] > 40.0

    def test_the_floors_do_what_they_are_called(self, town: Scene):
        scene = straight(town, tracks(FAR))
        away = drive(scene, drivers.make("constant_velocity")).record.bodies
        assert away[-1].pose[0] == pytest.approx(8.0 * 20.0, rel=0.03)
        stood = drive(scene, drivers.make("stop")).record.bodies
        assert stood[-1].speed == 0.0
        assert stood[-1].pose[0] < 8.0 + 25.0

    def test_a_driver_that_is_not_there_is_named(self):
        with pytest.raises(ConfigError, match="driver 'stopp' is unknown; did you mean 'stop'"):
            drivers.make("stopp")


class TestSimulation:
    def test_the_first_second_is_the_log(self, town: Scene):
        simulation = Simulation(town)
        assert simulation.step_index == PRIMED
        for step, body in enumerate(simulation.record.bodies):
            np.testing.assert_array_equal(body.pose, town.ego[step])

    def test_the_route_says_which_way_and_how_far(self):
        turn = np.linspace(0, np.pi / 2, 40)
        bend = np.stack([40 + 8 * np.sin(turn), 8 * np.cos(turn) - 8], axis=-1)  # to the right
        route = Polyline(np.concatenate([[[0.0, 0.0], [39.0, 0.0]], bend, [[48.0, -90.0]]]))
        assert command(route, 0.0) == (0, 30.0)
        which, off = command(route, 25.0)
        assert which == 2
        assert 15.0 <= off <= 21.0
        assert command(route, 60.0) == (0, 30.0)

    def test_a_state_holds_no_future(self, town: Scene):
        scene = straight(town, tracks(FAR), speed=8.0)
        state = Simulation(scene).state()
        # 8 m/s straight on, a second ago 8 m behind, route straight and free of turns.
        wanted = [8.0, 0.0, 0.0, 0.0, -8.0, 0.0, 1.0, 0.0, 0.0, 1.0]
        np.testing.assert_allclose(state, wanted, atol=1e-5)
        other = replace(scene, ego=scene.ego.copy(), ego_speed=scene.ego_speed.copy())
        other.ego[PRIMED + 1 :] += 5.0
        other.ego_speed[PRIMED + 1 :] += 5.0
        np.testing.assert_array_equal(Simulation(other).state(), state)

    def test_the_last_logged_body_moves_as_the_log_did(self, town: Scene):
        time = STEP_S * np.arange(STEPS)
        heading = 0.05 * (8.0 * time - time**2)  # a bend of 20 m, braking by 2 m/s^2
        bend = np.stack([20 * np.sin(heading), 20 * (1 - np.cos(heading)), heading], axis=-1)
        scene = replace(straight(town, tracks(FAR)), ego=bend)
        body = Simulation(scene).record.bodies[PRIMED]
        assert body.speed == pytest.approx(6.0, rel=0.01)
        assert body.accel == pytest.approx(-2.0, rel=0.02)
        assert body.yaw_rate == pytest.approx(0.3, rel=0.02)

    def test_it_ends_at_a_collision_and_far_off_the_route(self, town: Scene):
        wall = straight(town, tracks(("vehicle.truck", line(60.0, 0.0, 0.0))))
        assert drive(wall, drivers.make("constant_velocity"), "log").ended == "collision"
        astray = replace(straight(town, tracks(FAR)))
        simulation = Simulation(astray)
        while not simulation.over:
            simulation.advance(np.stack([np.arange(1, 7) * 4.0, np.arange(1, 7) * 2.0], -1))
        assert simulation.ended == "off_route"
        told = score(simulation, 100.0)
        assert (told["cut"], told["off_route"], told["blameless"]) == (1.0, 1.0, 0.0)
        behind = straight(town, tracks(("vehicle.car", line(-30.0, 0.0, 14.0))), speed=4.0)
        stood = drive(behind, drivers.make("stop"), "log")
        assert stood.ended == "time"
        told = score(stood, 100.0)
        assert (told["cut"], told["off_route"]) == (0.0, 0.0)

    def test_a_cone_that_is_hit_ends_the_drive_and_costs_half(self, town: Scene):
        cone = ("movable_object.trafficcone", line(60.0, 0.0, 0.0))
        scene = straight(town, tracks(cone, size=(0.4, 0.4, 0.7)))
        simulation = drive(scene, drivers.make("constant_velocity"), "log")
        assert simulation.ended == "collision"
        assert score(simulation, 100.0)["nc"] == 0.5

    def test_the_driver_who_stops_does_so_in_comfort(self, town: Scene):
        stood = drive(straight(town, tracks(FAR)), drivers.make("stop"), "log")
        assert score(stood, 100.0)["comfort"] == 1.0

    def test_who_stands_and_is_walked_into_drives_no_better_for_it(self, town: Scene):
        scene = straight(town, tracks(FAR))
        stood = drive(scene, drivers.make("stop"), "log").record.bodies[-1].pose[:2]
        walk = line(stood[0] + 1.0, -14.0, 1.4, np.pi / 2)  # there after 10 s
        met = straight(town, tracks(("human.pedestrian.adult", walk), size=(0.6, 0.6, 1.7)))
        simulation = drive(met, drivers.make("stop"), "log")
        touched = [
            touching(b, o, met.tracks.size)
            for b, o in zip(simulation.record.bodies, simulation.record.others, strict=True)
        ]
        assert np.any(touched)
        assert simulation.ended == "time"
        assert not blameless(simulation)

    def test_who_was_met_before_and_is_run_over_later_clears_nobody(self, town: Scene):
        scene = straight(town, tracks(FAR))
        stood = drive(scene, drivers.make("stop"), "log").record.bodies[-1].pose[:2]
        front = stood[0] + EGO_CENTRE + EGO_LENGTH / 2
        stand = line(front + 0.1, stood[1], 0.0)
        stand[: PRIMED + 50, 0] = stand[PRIMED + 55 :, 0] = front + 5.0  # there, here, there
        met = straight(town, tracks(("human.pedestrian.adult", stand), size=(0.6, 0.6, 1.7)))
        simulation, stop = Simulation(met, "log"), drivers.make("stop")
        while simulation.step_index < PRIMED + 70:
            simulation.advance(stop.plan(simulation.situation()), 5)
        assert not simulation.over
        while not simulation.over:
            simulation.advance(np.stack([np.arange(1, 7) * 4.0, np.zeros(6)], -1))
        assert simulation.ended == "collision"
        assert not blameless(simulation)

    def test_nobody_drove_into_what_is_touched_at_the_hand_over(self, town: Scene):
        side = line(8.0 + 2.0, 0.5, 0.0)
        scene = straight(town, tracks(("movable_object.barrier", side), size=(0.5, 0.5, 1.0)))
        assert len(drive(scene, drivers.make("log_expert"), "log").record.bodies) > PRIMED + 5

    def test_who_is_run_into_is_measured_by_what_could_be_done_until_then(self, town: Scene):
        # In its lane at 8 m/s, rammed in the side by somebody who follows a log.
        there = town.ego[PRIMED + 30, :2]
        lane = replace(town, tracks=tracks(FAR))
        gone = drive(lane, drivers.make("log_expert"), "log")
        side = town.ego[PRIMED + 30, 2] + np.pi / 2
        away = 9.0 * STEP_S * (np.arange(STEPS) - PRIMED - 30)
        rams = np.stack(
            [there[0] + away * np.cos(side), there[1] + away * np.sin(side), 0 * away + side], -1
        )
        scene = replace(lane, tracks=tracks(("vehicle.car", rams)))
        struck = drive(scene, drivers.make("log_expert"), "log")
        assert struck.ended == "collision"
        assert not blameless(gone)
        parts = score(struck, feasible_m(gone, struck.step_index))
        assert blameless(struck) == (parts["nc"] == 1.0)
        assert blameless(struck)
        assert (parts["cut"], parts["blameless"]) == (1.0, 1.0)
        assert parts["ep"] > 0.9
        assert score(struck, feasible_m(gone))["ep"] < 0.5

    def test_the_same_scene_is_driven_the_same_way(self, town: Scene):
        once, again = (drive(town, drivers.make("rule_expert")) for _ in range(2))
        for a, b in zip(once.record.bodies, again.record.bodies, strict=True):
            np.testing.assert_array_equal(a.pose, b.pose)

    def test_the_reference_drivers_rank(self):
        means = {name: [] for name in ("rule_expert", "constant_velocity", "stop")}
        for seed in range(6):
            scene = make_scene(seed)
            feasible = feasible_m(drive(scene, drivers.make("rule_expert")))
            for name, scores in means.items():
                scores.append(score(drive(scene, drivers.make(name)), feasible)["score"])
        assert np.mean(means["rule_expert"]) > 0.75
        assert np.mean(means["constant_velocity"]) < 0.5
        assert np.mean(means["stop"]) < 0.5
