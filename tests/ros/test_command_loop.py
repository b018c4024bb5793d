"""The command node's logic on a clock that the test moves: fresh, limited, or held."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rosbags")

from vla_prune_ros import wire
from vla_prune_ros.command_loop import CommandLoop
from vla_prune_ros.status import Health

from vla_prune.runtime.clock import ManualClock

from .scene import START_S, STATUS, chunk, contract, joints

PERIOD_S = 0.05
RAMP = np.stack([np.linspace(0.1, 0.55, 10), np.zeros(10)], axis=1)


def ready(**changes) -> tuple[CommandLoop, ManualClock]:
    clock = ManualClock(START_S)
    options = {k: changes.pop(k) for k in ("execute", "join", "align") if k in changes}
    loop = CommandLoop(contract(**changes), clock, Health("command_node"), **options)
    if loop.measured is not None:
        loop.put_state(joints(clock.now(), 0.0))
    return loop, clock


def run(loop: CommandLoop, clock: ManualClock, ticks: int) -> list:
    made = []
    for _ in range(ticks):
        clock.advance(PERIOD_S)
        made.append(loop.tick())
    return made


def test_a_chunk_is_played_row_by_row() -> None:
    loop, clock = ready(limits={})
    assert loop.put_chunk(chunk(clock.now(), RAMP)) == ""
    made = run(loop, clock, 5)
    np.testing.assert_allclose([m.action[0] for m in made], RAMP[1:6, 0], atol=1e-6)
    assert {m.source for m in made} == {"chunk"}
    message = wire.make(
        "trajectory_msgs/msg/JointTrajectory", made[0].messages["joint_trajectory"]
    )
    np.testing.assert_allclose(message.points[0].positions, RAMP[1], atol=1e-6)
    assert loop.health.state == "running"


def test_before_a_chunk_nothing_is_sent() -> None:
    loop, clock = ready()
    made = run(loop, clock, 3)
    assert all(m.action is None and not m.messages for m in made)
    assert loop.health.state == "waiting"


def test_no_action_is_older_than_the_limit_and_the_hold_comes_within_a_period() -> None:
    loop, clock = ready(limits={}, max_action_age_ms=300)
    loop.put_chunk(chunk(clock.now(), RAMP))
    made = run(loop, clock, 12)
    fresh = [m for m in made if m.source == "chunk"]
    assert max(m.age_s for m in fresh) <= 0.3 + 1e-6
    assert len(fresh) == 6  # 50 ms to 300 ms
    held = made[6:]
    assert all(m.source == "hold" for m in held)
    np.testing.assert_allclose([m.action for m in held], [fresh[-1].action] * 6)
    assert loop.health.state == "holding"
    assert "old" in loop.health.reason
    loop.put_chunk(chunk(clock.now(), RAMP, tick=1))
    assert run(loop, clock, 1)[0].source == "chunk"
    assert loop.health.state == "running"


def test_a_chunk_that_ages_is_one_piece_of_news() -> None:
    loop, clock = ready(max_action_age_ms=100)
    loop.put_chunk(chunk(clock.now(), RAMP))
    run(loop, clock, 3)
    told = set()
    for _ in range(30):
        run(loop, clock, 1)
        told.add(loop.health.news)
    assert len(told) == 1


def test_after_a_halt_the_same_episode_goes_on_with_its_next_chunk() -> None:
    loop, clock = ready(limits={})
    loop.put_chunk(chunk(clock.now(), RAMP))
    before = run(loop, clock, 2)[-1]
    loop.halt("the node was deactivated.")
    held = run(loop, clock, 2)
    assert [m.source for m in held] == ["hold", "hold"]
    np.testing.assert_allclose(held[-1].action, before.action)
    assert "deactivated" in loop.health.reason
    assert loop.put_chunk(chunk(clock.now(), RAMP, tick=1)) == ""
    assert run(loop, clock, 1)[0].source == "chunk"


def test_after_a_pause_nothing_is_sent_before_a_chunk() -> None:
    """Somebody may have moved the machine."""
    loop, clock = ready()
    loop.put_chunk(chunk(clock.now(), RAMP))
    run(loop, clock, 2)
    loop.halt("the command node was deactivated.")
    loop.begin()
    clock.advance(600.0)
    made = run(loop, clock, 2)
    assert all(m.action is None and not m.messages for m in made)
    assert loop.health.state == "waiting"
    assert loop.put_chunk(chunk(clock.now(), RAMP, tick=1)) == ""
    loop.put_state(joints(clock.now(), 0.1))
    assert run(loop, clock, 1)[0].source == "chunk"


def test_after_a_pause_the_clock_runs_at_the_rate_it_ran_at() -> None:
    loop, _ = ready()
    loop.watch.rate = 10.0
    loop.begin()
    assert loop.watch.rate == 10.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_chunk_that_is_not_finite_is_refused_and_the_machine_holds(bad: float) -> None:
    loop, clock = ready(limits={})
    loop.put_chunk(chunk(clock.now(), RAMP))
    before = run(loop, clock, 2)[-1]
    rows = RAMP.copy()
    rows[7, 1] = bad
    assert "NaN" in loop.put_chunk(chunk(clock.now(), rows, tick=1))
    after = run(loop, clock, 1)[0]
    assert after.source == "hold"
    np.testing.assert_array_equal(after.action, before.action)
    assert loop.health.state == "holding"
    assert loop.health.refused == 1


def test_limits_hold_for_chunk_and_hold_alike() -> None:
    loop, clock = ready()  # rate 2 a second: 0.1 a tick; magnitude 1
    loop.put_chunk(chunk(clock.now(), np.full((10, 2), 0.0)))
    run(loop, clock, 1)
    loop.put_chunk(chunk(clock.now(), np.full((10, 2), 5.0), tick=1))
    made = [*run(loop, clock, 4), *run(loop, clock, 20)]
    sent = np.array([m.action[0] for m in made])
    assert np.abs(np.diff(sent, prepend=0.0)).max() <= 0.1 + 1e-6
    assert sent.max() <= 1.0
    assert made[0].limited


def test_a_hold_stands_where_the_rate_limit_has_left_the_machine() -> None:
    loop, clock = ready()
    loop.put_chunk(chunk(clock.now(), np.zeros((10, 2))))
    run(loop, clock, 1)
    loop.put_chunk(chunk(clock.now(), np.ones((10, 2)), tick=1))
    np.testing.assert_allclose(run(loop, clock, 1)[0].action, 0.1, atol=1e-6)
    loop.put_status(status("holding", "camera wrist silent for 0.17 s"))
    held = run(loop, clock, 10)
    np.testing.assert_allclose([m.action for m in held], np.full((10, 2), 0.1), atol=1e-6)


def test_the_first_command_starts_where_the_machine_stands() -> None:
    loop, clock = ready()
    loop.begin()
    assert loop.put_chunk(chunk(clock.now(), np.ones((10, 2)))) == ""
    assert run(loop, clock, 1)[0].action is None
    assert "before 'joint_states' says where the machine stands" in loop.health.reason
    loop.put_state(joints(clock.now(), -0.5))
    np.testing.assert_allclose(run(loop, clock, 1)[0].action, -0.4, atol=1e-6)


def test_a_late_tick_takes_no_larger_step() -> None:
    loop, clock = ready()
    loop.put_chunk(chunk(clock.now(), np.zeros((10, 2))))
    run(loop, clock, 1)
    clock.advance(0.45)
    loop.put_chunk(chunk(clock.now(), np.ones((10, 2)), tick=1))
    np.testing.assert_allclose(run(loop, clock, 1)[0].action, 0.1, atol=1e-6)


def test_the_rate_limit_can_be_tightened_live() -> None:
    loop, clock = ready()
    loop.set_limit_scale(0.5)
    loop.put_chunk(chunk(clock.now(), np.zeros((10, 2))))
    run(loop, clock, 1)
    loop.put_chunk(chunk(clock.now(), np.ones((10, 2)), tick=1))
    np.testing.assert_allclose([m.action[0] for m in run(loop, clock, 2)], [0.05, 0.1], atol=1e-6)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"names": ("a", "b")}, "this node drives j0, j1"),
        ({"stamp_s": START_S + 5}, "ahead of this clock; synchronise the clocks"),
        ({"stamp_s": START_S - 5}, "too late"),
        ({"dt_s": 0.0}, "a time above 0"),
        ({"dt_s": np.inf}, "a time above 0 between them, 0.001 to 60 s"),
        ({"dt_s": 1e300}, "a time above 0 between them"),
        ({"rows": np.zeros((10_001, 2))}, "at most 10000 rows"),
    ],
)
def test_chunks_that_do_not_belong_are_refused(message: dict, reason: str) -> None:
    loop, clock = ready()
    assert reason in loop.put_chunk(chunk(**{"stamp_s": clock.now()} | message))
    assert run(loop, clock, 1)[0].source == "hold"
    assert reason in loop.health.last_refused


def test_values_that_are_too_few_are_refused() -> None:
    loop, clock = ready()
    message = chunk(clock.now())
    message.values = message.values[:-1]
    assert "19 values came for 10 rows of 2" in loop.put_chunk(message)


def test_a_clock_that_jumps_back_means_hold_until_a_chunk_of_the_new_round() -> None:
    loop, clock = ready(limits={})
    loop.put_chunk(chunk(clock.now(), RAMP))
    last = run(loop, clock, 2)[-1]
    clock.jump(10.0)
    held = run(loop, clock, 1)[0]
    assert held.source == "hold"
    np.testing.assert_array_equal(held.action, last.action)
    assert "the clock jumped back" in loop.health.reason
    late = loop.put_chunk(chunk(START_S + 0.1, RAMP, tick=1))  # of the round before
    assert "ahead of this clock" in late
    assert loop.put_chunk(chunk(clock.now(), RAMP, episode="e2")) == ""
    assert run(loop, clock, 1)[0].source == "chunk"


def test_chunks_of_an_episode_that_is_over_are_refused() -> None:
    loop, clock = ready()
    loop.put_chunk(chunk(clock.now(), RAMP, "e1"))
    clock.advance(0.01)
    loop.put_chunk(chunk(clock.now(), RAMP, "e2"))
    clock.advance(0.01)
    assert "the episode 'e1', which is over" in loop.put_chunk(chunk(clock.now(), RAMP, "e1"))
    assert loop.health.episode_id == "e2"


def test_a_reset_holds_at_once() -> None:
    loop, clock = ready(limits={})
    loop.put_chunk(chunk(clock.now(), RAMP))
    last = run(loop, clock, 2)[-1]
    loop.reset()
    held = run(loop, clock, 1)[0]
    assert held.source == "hold"
    np.testing.assert_array_equal(held.action, last.action)
    assert "which is over" in loop.put_chunk(chunk(clock.now(), RAMP, "e1", 1))


def test_a_machine_that_was_moved_has_nothing_to_go_on_from() -> None:
    loop, clock = ready()
    loop.put_chunk(chunk(clock.now(), RAMP))
    run(loop, clock, 2)
    loop.reset(moved=True)
    assert all(m.action is None and not m.messages for m in run(loop, clock, 2))
    assert "which is over" in loop.put_chunk(chunk(clock.now(), RAMP, "e1", 1))
    loop.put_state(joints(clock.now(), -0.5))
    assert loop.put_chunk(chunk(clock.now(), RAMP, "e2")) == ""
    assert run(loop, clock, 1)[0].action[0] == pytest.approx(-0.5 + 2.0 * PERIOD_S)


def status(state: str, reason: str = "") -> object:
    return wire.make(STATUS, {"node": "policy_node", "state": state, "reason": reason})


def test_the_policys_own_fault_holds_within_a_period_and_is_named() -> None:
    loop, clock = ready(limits={})
    loop.put_chunk(chunk(clock.now(), RAMP))
    loop.put_status(status("running"))
    assert run(loop, clock, 1)[0].source == "chunk"
    loop.put_status(status("holding", "camera wrist silent for 0.17 s"))
    assert run(loop, clock, 1)[0].source == "hold"
    assert loop.health.reason == "policy_node: camera wrist silent for 0.17 s"
    loop.put_status(status("running"))
    loop.put_chunk(chunk(clock.now(), RAMP, tick=1))
    assert run(loop, clock, 1)[0].source == "chunk"


def test_a_policy_that_shows_no_sign_of_life_is_not_trusted() -> None:
    loop, clock = ready(limits={}, max_action_age_ms=60000, execute=1000)
    loop.put_chunk(chunk(clock.now(), np.tile(RAMP, (20, 1))))
    loop.put_status(status("running"))
    made = run(loop, clock, 25)
    assert [m.source for m in made].index("hold") in (20, 21)  # a second of silence
    assert "no sign of life of the policy" in loop.health.reason
    loop.put_status(status("running"))
    loop.put_chunk(chunk(clock.now(), RAMP, episode="restarted"))
    assert run(loop, clock, 1)[0].source == "chunk"


def test_a_vehicle_gets_its_whole_plan_and_brakes_along_it() -> None:
    sink = {
        "publish": {"topic": "plan", "type": "nav_msgs/msg/Path"},
        "selector": {"names": ["dx", "dy"]},
    }
    rows = np.tile([[2.0, 0.0]], (6, 1))
    loop, clock = ready(
        actions=[sink], limits={}, hold={"name": "brake", "deceleration": 4.0}, execute=6,
        max_action_age_ms=1000,
    )  # fmt: skip
    loop.put_chunk(chunk(clock.now(), rows, dt_s=0.5, names=("dx", "dy")))
    made = run(loop, clock, 2)[-1].messages["plan"]
    path = wire.make("nav_msgs/msg/Path", made)
    x = [p.pose.position.x for p in path.poses]
    assert x[:3] == [2.0, 4.0, 6.0]  # from where the vehicle was when the picture was taken
    assert path.header.stamp.sec == int(START_S)
    assert path.header.stamp.nanosec == 0
    gaps = np.diff(x)
    assert (np.diff(gaps) <= 1e-6).all()
    assert gaps[-1] == 0.0  # it ends standing


def test_a_long_silence_of_the_policy_is_one_hold() -> None:
    """Its plan neither grows nor moves, and brakes as the rule says."""
    sink = {
        "publish": {"topic": "plan", "type": "nav_msgs/msg/Path"},
        "selector": {"names": ["dx", "dy"]},
    }
    loop, clock = ready(
        actions=[sink], limits={}, hold={"name": "brake", "deceleration": 3.0}, execute=6,
        max_action_age_ms=60000,
    )  # fmt: skip
    rows = np.tile([[5.0, 0.0]], (60, 1))
    loop.put_chunk(chunk(clock.now(), rows, dt_s=0.5, names=("dx", "dy")))
    loop.put_status(status("running"))
    plans = [m.messages["plan"] for m in run(loop, clock, 600)]
    stamps = [p["header"]["stamp"]["sec"] for p in plans]
    assert stamps == sorted(stamps)
    assert max(len(p["poses"]) for p in plans) < 20
    x = [pose["pose"]["position"]["x"] for pose in plans[-1]["poses"]]
    lengths = np.diff(x, prepend=0.0)
    assert np.diff(lengths).min() >= -3.0 * 0.5**2 - 1e-4
    assert lengths[-1] == 0.0


def test_every_tick_is_counted_against_its_period() -> None:
    loop, clock = ready()
    loop.put_chunk(chunk(clock.now()))
    for late in (0.0, 0.01, 0.07):
        release = clock.steady()
        clock.advance(late)
        loop.tick(release)
    assert loop.health.deadline.misses == 1
    assert loop.health.slack_s == pytest.approx(-0.02)
