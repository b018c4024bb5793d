"""The policy node's logic on a clock that the test moves: what it acts on, and what it refuses."""

from __future__ import annotations

from threading import Thread

import numpy as np
import pytest

pytest.importorskip("rosbags")

from vla_prune_ros import wire
from vla_prune_ros.chunks import unpack_chunk

from vla_prune.errors import ConfigError
from vla_prune.pruner import ACTION
from vla_prune.tune.controller import Controller, ControllerConfig
from vla_prune.tune.pilot import Pilot

from .scene import CHUNK, fused, image

PERIOD_S = 1 / 30


def test_fresh_frames_become_a_chunk_with_the_oldest_stamp() -> None:
    with fused() as (loop, robot, clock):
        loop.senses.put_image("image", image(clock.now() - 0.015))
        robot.sense(skip=("image",))
        message = wire.make(CHUNK, loop.turn())
        chunk = unpack_chunk(message, ["j0", "j1"])
        assert chunk.stamp_s == pytest.approx(clock.now() - 0.015)
        assert chunk.actions.shape == (3, 2)
        assert np.isfinite(chunk.actions).all()
        assert [g.name for g in message.cameras] == ["image", "wrist"]
        assert sum(g.kept for g in message.cameras) == len(message.kept_index) == message.kept[-1]
        assert loop.health.state == "running"
        assert loop.turn() is None  # the same frames are not acted on twice


@pytest.mark.parametrize("nanosec", [1, 123_456_789, 999_999_999])
def test_a_chunk_carries_the_very_stamp_of_its_picture(nanosec: int) -> None:
    today = 1_763_000_000  # where a float resolves no more than 0.2 us
    with fused(keep=(0.25,)) as (loop, robot, clock):
        clock.advance(today + nanosec / 1e9 - clock.now())
        assert loop.turn() is None  # the clock jumped
        frame = image(0.0)
        frame.header.stamp.sec, frame.header.stamp.nanosec = today, nanosec
        for camera in ("image", "wrist"):
            loop.senses.put_image(camera, frame)
        robot.sense(skip=("image", "wrist"))
        made = wire.make(CHUNK, loop.turn())
    for stamp in (made.header.stamp, made.cameras[0].stamp):
        assert (stamp.sec, stamp.nanosec) == (today, nanosec)


def test_no_frame_older_than_the_limit_is_ever_acted_on() -> None:
    rng = np.random.default_rng(3)
    acted = 0
    with fused(keep=(0.25,)) as (loop, robot, clock):
        for _ in range(60):
            clock.advance(PERIOD_S)
            robot.sense(late_s=float(rng.choice([0.0, 0.1, 0.149, 0.151, 0.3, 2.0])))
            robot.sense(skip=("image", "wrist"))
            made = loop.turn()
            if made is not None:
                acted += 1
                stamp = made["header"]["stamp"]
                assert clock.now() - (stamp["sec"] + stamp["nanosec"] / 1e9) <= 0.15 + 1e-6
    assert acted > 5


@pytest.mark.parametrize("topic", ["image", "wrist", "joint_states"])
def test_a_silent_topic_is_named_within_a_period_of_its_limit_and_mended(topic: str) -> None:
    with fused(keep=(0.25,)) as (loop, robot, clock):
        robot.sense()
        assert loop.turn() is not None
        silent = 0.0
        while loop.health.state == "running":
            clock.advance(PERIOD_S)
            silent += PERIOD_S
            robot.sense(skip=(topic,))
            assert loop.turn() is None or topic == "joint_states"
            assert silent < 0.15 + 2 * PERIOD_S
        assert topic in loop.health.reason
        assert "s" in loop.health.reason
        clock.advance(PERIOD_S)
        robot.sense()
        assert loop.turn() is not None
        assert loop.health.state == "running"


@pytest.mark.parametrize("ahead", [("image",), ("image", "wrist")])
def test_a_camera_whose_clock_is_ahead_is_named(ahead: tuple[str, ...]) -> None:
    with fused(keep=(0.25,)) as (loop, robot, clock):
        robot.sense()
        assert loop.turn() is not None
        for _ in range(10):
            clock.advance(PERIOD_S)
            robot.sense(skip=ahead)
            robot.sense(skip=tuple({"image", "wrist"} - set(ahead)), late_s=-0.5)
            robot.sense(skip=("image", "wrist"))
            assert loop.turn() is None
            assert loop.health.state == "holding"
            assert "camera image is ahead of this clock by 0.50 s" in loop.health.reason
        told = loop.health.diagnostics(clock.now(), clock.steady(), {})["status"][0]["values"]
        counts = {v["key"]: v["value"] for v in told}["dropped of image"]
        assert counts == "overwritten 0, too old 0, ahead 10, out of order 0"
        clock.advance(PERIOD_S)
        robot.sense()
        assert loop.turn() is not None
        assert loop.health.state == "running"


def test_cameras_that_never_look_together_are_named() -> None:
    with fused(keep=(0.25,)) as (loop, robot, clock):
        for i in range(10):  # 10 Hz each, 50 ms out of phase; 20 ms are tolerated
            clock.advance(0.05)
            robot.sense(skip=("wrist" if i % 2 else "image",))
            assert loop.turn() is None
        assert loop.health.state == "holding"
        assert "image, wrist belong together" in loop.health.reason
        assert "50 ms apart, tolerance_ms is 20" in loop.health.reason


def test_a_broken_frame_is_refused_and_the_next_one_taken() -> None:
    with fused(keep=(0.25,)) as (loop, robot, clock):
        robot.sense(skip=("image",))
        broken = image(clock.now())
        broken.data = broken.data[:100]
        loop.senses.put_image("image", broken)
        assert loop.turn() is None
        assert loop.health.refused == 1
        assert "camera image" in loop.health.last_refused
        clock.advance(PERIOD_S)
        robot.sense()
        assert loop.turn() is not None


def test_a_state_that_is_nan_is_not_used() -> None:
    from .scene import joints

    with fused(keep=(0.25,)) as (loop, robot, clock):
        source = loop.senses.contract.states[0]
        robot.sense(skip=("joint_states",))
        loop.senses.put_state(source, joints(clock.now(), float("nan")))
        assert loop.turn() is None
        assert "position.j0 is nan" in loop.health.last_refused
        assert loop.health.state == "holding"


def test_actions_that_are_not_finite_are_never_sent() -> None:
    with fused(keep=(1.0,), recipe="dense") as (loop, robot, clock):
        robot.sense()
        assert loop.turn() is not None
        head = [p for n, p in loop.policy.adapter.model.named_parameters() if "head" in n][-1]
        head.data.fill_(float("nan"))
        clock.advance(PERIOD_S)
        robot.sense()
        assert loop.turn() is None
        assert loop.health.state == "holding"
        assert "not finite" in loop.health.reason


def test_a_bag_that_loops_means_hold_and_a_new_episode() -> None:
    with fused() as (loop, robot, clock):
        for _ in range(3):
            clock.advance(PERIOD_S)
            robot.sense()
            loop.turn()
        first, remembered = loop.health.episode_id, loop.state
        assert remembered.history[ACTION]
        clock.jump(90.0)
        robot.sense()  # frames of the new round, already there when the jump is seen
        assert loop.turn() is None
        assert loop.health.state == "holding"
        assert "the clock jumped back by" in loop.health.reason
        assert loop.health.episode_id != first
        assert loop.state.history == {}
        clock.advance(PERIOD_S)
        robot.sense()
        assert loop.turn()["episode_id"] == loop.health.episode_id
        assert loop.health.state == "running"


def test_a_new_instruction_clears_the_history_and_says_so() -> None:
    with fused() as (loop, robot, clock):
        for _ in range(3):
            clock.advance(PERIOD_S)
            robot.sense()
            made = loop.turn()
        assert len(loop.state.history[ACTION]) == 3
        assert made["notes"] == []
        loop.senses.put_task("open the drawer")
        clock.advance(PERIOD_S)
        robot.sense()
        made = loop.turn()
        assert len(loop.state.history[ACTION]) == 1
        assert "history was cleared" in made["notes"][0]
        assert made["instruction"] == "open the drawer"
        assert made["episode_id"] == loop.health.episode_id  # not a new episode


def test_nothing_is_done_without_an_instruction() -> None:
    with fused(keep=(0.25,)) as (loop, robot, _):
        loop.senses.put_task("")
        robot.sense()
        assert loop.turn() is None
        assert loop.health.state == "waiting"
        assert "no instruction" in loop.health.reason


def test_the_budget_changes_from_the_next_call_on() -> None:
    with fused() as (loop, robot, clock):
        kept = []
        for keep in (1.0, 0.5, 0.3):
            assert loop.set_budget(keep) == {1.0: 1.0, 0.5: 0.5, 0.3: 0.25}[keep]
            clock.advance(PERIOD_S)
            robot.sense()
            kept.append(len(loop.turn()["kept_index"]))
        assert kept == [32, 16, 8]
        with pytest.raises(ConfigError, match="has no bucket at or below it"):
            loop.set_budget(0.1)
        assert loop.health.keep_ratio == 0.25


def test_a_chunk_of_the_episode_before_a_reset_is_thrown_away() -> None:
    with fused(keep=(0.25,)) as (loop, robot, clock):
        act = loop.policy.act_one

        def slow(*args):  # somebody resets while the policy thinks
            made = act(*args)
            loop.senses.reset("second")
            return made

        loop.policy.act_one = slow
        robot.sense()
        assert loop.turn() is None
        assert "before the reset" in loop.health.last_refused
        loop.policy.act_one = act
        clock.advance(PERIOD_S)
        robot.sense()
        made = loop.turn()
        assert (made["episode_id"], made["tick"]) == ("second", 0)


def test_an_activation_begins_without_what_was_remembered_before() -> None:
    with fused(keep=(0.25,)) as (loop, robot, clock):
        robot.sense()
        first = loop.turn()
        robot.sense()  # comes while the node is being deactivated
        loop.begin()
        assert (loop.state.tick, loop.state.history) == (0, {})
        clock.advance(PERIOD_S)
        assert loop.turn() is None, "pictures of before are not acted on"
        robot.sense()
        made = loop.turn()
        assert made["tick"] == 0
        assert made["episode_id"] != first["episode_id"]


def test_no_episode_has_the_name_of_one_before() -> None:
    with fused(keep=(0.25,)) as (loop, _, _):
        names = [loop.senses.reset(name) for name in ("a", "b", "a", "a", "")]
        assert len(set(names)) == 5
        assert names[:2] == ["a", "b"]
        assert names[2].startswith("a-")
        assert loop.health.episode_id == names[-1]


def test_a_reset_waits_for_the_look_that_is_under_way() -> None:
    with fused(keep=(0.25,)) as (loop, robot, _):
        stale, resets = loop.senses.states.stale, []

        def interrupted(now: float):  # somebody resets between the two questions of a look
            resets.append(Thread(target=loop.senses.reset, args=("second",)))
            resets[0].start()
            resets[0].join(0.1)
            return stale(now)

        loop.senses.states.stale = interrupted
        robot.sense()
        sight = loop.senses.look()
        assert sight is not None
        assert sight.origin.episode_id != "second"
        resets[0].join()
        assert loop.health.episode_id == "second"


def test_it_acts_no_more_often_than_it_may() -> None:
    with fused(keep=(0.25,)) as (loop, robot, clock):
        loop.pace.rate_hz = 10.0
        acted = 0
        for i in range(45):
            clock.advance(PERIOD_S + (0.003 if i % 2 else -0.003))
            robot.sense()
            acted += loop.turn() is not None
        assert 13 <= acted <= 16


def test_a_lent_camera_may_fall_silent_for_a_while() -> None:
    from .scene import contract_data

    data = contract_data()["observations"]
    data[1]["align"] = {"max_age_ms": 100, "drop": "last", "last_age_ms": 400}
    with fused(keep=(0.25,), observations=data) as (loop, robot, clock):
        robot.sense()
        first = clock.now()
        for _ in range(11):
            made = loop.turn()
            assert made is not None
            assert made["header"]["stamp"]["sec"] == int(first)  # its age is the observation's
            clock.advance(PERIOD_S)
            robot.sense(skip=("wrist",))
        clock.advance(0.1)
        robot.sense(skip=("wrist",))
        assert loop.turn() is None
        assert "wrist silent" in loop.health.reason


class Slowly:
    """The policy, on a machine that takes a while for every bucket."""

    def __init__(self, policy, clock, seconds) -> None:
        self.policy, self.clock, self.seconds, self.load = policy, clock, seconds, 1.0

    def act_one(self, observation, state, bucket=0):
        self.clock.advance(self.load * self.seconds[bucket])
        return self.policy.act_one(observation, state, bucket)


def test_the_budget_follows_the_time_there_is() -> None:
    seconds, keep = (0.07, 0.05, 0.03), (1.0, 0.5, 0.25)
    pilot = Pilot(Controller(ControllerConfig(keep, seconds, period_s=0.1)))
    with fused(keep=keep, pilot=pilot) as (loop, robot, clock):
        loop.policy = machine = Slowly(loop.policy, clock, seconds)

        def run(cycles: int) -> dict | None:
            for _ in range(cycles):
                clock.advance(PERIOD_S)
                robot.sense()
                made = loop.turn()
            return made

        assert run(20) is not None
        assert (loop.health.ladder_step, loop.health.keep_ratio) == (0, 1.0)
        assert loop.health.message(0.0, 0.0)["misses"] == 0
        assert loop.health.slack_s == pytest.approx(0.03)
        machine.load = 2.0
        assert run(20) is not None
        assert (loop.health.ladder_step, loop.health.keep_ratio) == (2, 0.25)
        assert loop.health.deadline.misses > 0
        machine.load = 5.0
        assert run(20) is None
        assert loop.health.state == "holding"
        assert "0.25, misses the deadline of 100 ms" in loop.health.reason
        assert loop.health.rate.hz(clock.steady()) == 0.0  # nothing was sent for seconds
        machine.load = 1.0
        assert run(80) is not None
        assert loop.health.ladder_step == 0
        loop.set_budget(0.5)  # the most, from now on
        assert run(5) is not None
        assert (loop.health.ladder_step, loop.health.keep_ratio) == (1, 0.5)
        loop.set_budget(1.0)
        loop.set_deadline(0.04)
        run(20)
        assert loop.health.ladder_step == 2
        with pytest.raises(ConfigError, match="the fastest bucket"):
            loop.set_deadline(0.01)
        assert loop.health.deadline.period_s == pytest.approx(0.04)


def test_a_deadline_needs_a_controller() -> None:
    with fused(keep=(0.25,)) as (loop, _, _):
        loop.set_deadline(0.0)
        with pytest.raises(ConfigError, match="there is no controller to keep it"):
            loop.set_deadline(0.1)
