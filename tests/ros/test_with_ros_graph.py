"""A robot, a policy node and a command node on a real graph: work, and every fault. ``-m ros``."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: source a ROS 2 installation")
pytest.importorskip("vla_prune_msgs", reason="vla_prune_msgs is missing: build and source ros2_ws")

from vla_prune_msgs.srv import Reset, SetBudget

from .live import CHUNK, COMMANDS, STATUS, Robot, live, model, states, until

pytestmark = pytest.mark.ros

DIAGNOSTICS = "/diagnostics"
PERIOD_S = 0.05


class Arm:
    """The graph under test; it goes on from test to test, and each leaves it running."""

    def __init__(self, robot: Robot, start: Any) -> None:
        self.robot, self.start = robot, start
        self.policy, self.command = start("policy_node", **model()), start("command_node")
        self.chunks, self.commands = (
            robot.hear(CHUNK, "action_chunk"),
            robot.hear("trajectory_msgs/msg/JointTrajectory", COMMANDS),
        )
        self.diagnostics = robot.hear("diagnostic_msgs/msg/DiagnosticArray", DIAGNOSTICS)
        self.told = [robot.hear(STATUS, f"{name}_node/status") for name in ("policy", "command")]

    def running(self) -> bool:
        """Whether both nodes say so."""
        return all(self.robot.state_of(f"{n}_node") == "running" for n in ("policy", "command"))

    def holds(self, *words: str) -> None:
        """Wait until the command node told of a hold with these words."""
        told = self.told[1]

        def held() -> bool:
            return any(m.state == "holding" and all(w in m.reason for w in words) for _, m in told)

        until(held, f"a hold that names {words}")

    def alarmed(self, node: str, word: str) -> bool:
        """Whether a diagnostic error of a node named something lately."""
        name = f"vla_prune: {node}"
        found = [s for _, m in self.diagnostics[-100:] for s in m.status if s.name == name]
        return any(s.level == b"\x02" and word in s.message for s in found)


@pytest.fixture(scope="module")
def graph() -> Iterator[Arm]:
    with live() as (robot, start):
        made = Arm(robot, start)
        robot.start()
        robot.bring_up("policy_node", "command_node")
        yield made


@pytest.fixture
def arm(graph: Arm) -> Iterator[Arm]:
    until(graph.running, "running")
    yield graph
    graph.robot.skip.clear()


def test_pictures_become_commands(arm: Arm) -> None:
    for heard in (arm.chunks, arm.commands):
        heard.clear()
    until(lambda: len(arm.chunks) > 20 and len(arm.commands) > 20, "chunks and commands")
    chunk, command = arm.chunks[-1][1], arm.commands[-1][1]
    assert list(chunk.names) == list(command.joint_names) == [f"joint{i}" for i in range(1, 8)]
    assert len(chunk.values) == 7 * chunk.horizon
    assert np.isfinite(chunk.values).all()
    assert list(chunk.kept) == [72]
    assert chunk.tokens == 288
    assert sum(camera.kept for camera in chunk.cameras) == len(chunk.kept_index)
    ages = [m.age for _, m in arm.told[1] if m.state == "running"]
    assert 0 <= min(ages) <= max(ages) <= 0.5
    ticks = [m.tick for _, m in arm.chunks]
    assert ticks == sorted(ticks)


def test_a_chunk_carries_the_stamp_of_the_picture_to_the_nanosecond(arm: Arm) -> None:
    told = {(m.header.stamp.sec, m.header.stamp.nanosec) for _, m in arm.chunks[-20:]}
    assert told
    assert told <= set(arm.robot.stamps)


def test_the_budget_changes_while_it_runs(arm: Arm) -> None:
    robot = arm.robot

    def kept(number: int) -> None:
        until(lambda: arm.chunks and list(arm.chunks[-1][1].kept) == [number], f"{number} kept")

    assert robot.set("policy_node", "keep_ratio", 1.0).successful
    kept(288)
    told = robot.ask(SetBudget, "policy_node/set_budget", keep_ratio=0.3)
    assert told.success
    assert told.keep_ratio == pytest.approx(0.25)
    kept(72)
    told = robot.ask(SetBudget, "policy_node/set_budget", keep_ratio=0.1)
    assert not told.success
    assert "no bucket at or below" in told.message
    refused = robot.set("policy_node", "keep_ratio", 0.1)
    assert not refused.successful
    kept(72)


def test_a_silent_camera_holds_the_arm_and_is_named(arm: Arm) -> None:
    arm.told[1].clear()
    arm.robot.skip.add("images.wrist")
    arm.holds("wrist", "silent")
    until(lambda: arm.alarmed("policy_node", "wrist"), "the diagnostic")
    time.sleep(2 * PERIOD_S)
    arm.commands.clear()
    until(lambda: len(arm.commands) > 4, "the hold")
    held_at = {tuple(m.points[0].positions) for _, m in arm.commands}
    assert len(held_at) == 1
    arm.robot.skip.clear()
    until(arm.running, "recovery")


def test_stale_joints_hold_the_arm_and_are_named(arm: Arm) -> None:
    arm.told[1].clear()
    arm.robot.skip.add("state")
    arm.holds("joint_states", "stale")
    until(lambda: arm.alarmed("policy_node", "joint_states"), "the diagnostic")
    arm.robot.skip.clear()
    until(arm.running, "recovery")


def test_another_instruction_clears_the_history_and_the_chunk_says_so(arm: Arm) -> None:
    arm.chunks.clear()
    arm.robot.say("open the drawer")
    found = until(
        lambda: [m for _, m in arm.chunks if m.instruction == "open the drawer"], "the new task"
    )
    assert any("history was cleared" in note for note in found[0].notes)


def test_a_reset_begins_a_new_episode(arm: Arm) -> None:
    told = arm.robot.ask(Reset, "policy_node/reset", episode_id="second", reason="a test")
    assert told.success
    assert told.episode_id == "second"
    until(lambda: arm.chunks[-1][1].episode_id == "second", "the episode")
    until(lambda: arm.told[1][-1][1].episode_id == "second", "the command node follows")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_a_policy_that_goes_is_noticed_and_its_successor_takes_over(
    arm: Arm, number: signal.Signals
) -> None:
    before = arm.command.process.pid
    arm.told[1].clear()
    code = arm.policy.kill(number)
    assert code == (0 if number == signal.SIGINT else -signal.SIGKILL)
    words = ("deactivated",) if number == signal.SIGINT else ("no sign of life",)
    arm.holds(*words)
    until(lambda: arm.alarmed("command_node", words[0]), "the diagnostic")
    arm.policy = arm.start("policy_node", **model())
    arm.robot.bring_up("policy_node")
    until(arm.running, "recovery")
    assert arm.command.process.pid == before
    assert arm.command.process.poll() is None


def test_commands_stop_and_start_with_the_command_node(arm: Arm) -> None:
    assert arm.robot.change("command_node", "deactivate")
    time.sleep(0.1)
    arm.commands.clear()
    time.sleep(0.3)
    assert arm.commands == []
    assert arm.robot.change("command_node", "activate")
    until(arm.running, "recovery")
    until(lambda: arm.commands, "commands")


def test_nothing_ever_acted_on_was_older_than_its_limit(arm: Arm) -> None:
    played = [m for _, m in arm.told[1] if m.state == "running"]
    assert max(m.age for m in played) <= 0.5
    assert "running" in states(arm.told[1])
    for process in (arm.policy, arm.command):
        assert "Traceback" not in process.log()
