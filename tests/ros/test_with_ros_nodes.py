"""Every node as a process on a real graph: life cycle, parameters, signals. ``pytest -m ros``."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: source a ROS 2 installation")
pytest.importorskip("vla_prune_msgs", reason="vla_prune_msgs is missing: build and source ros2_ws")

from rosbags.rosbag2 import StoragePlugin

from vla_prune import config

from .live import CHUNK, STATUS, live, model, until
from .test_nodes_besides import belt_contract, record

pytestmark = pytest.mark.ros

BELT = {"world": "tests.ros.test_nodes_besides:Belt", "suite": "belt"}
NODES = {
    "policy_node": model(),
    "pruner_node": model(),
    "command_node": {"contract": "arm"},
    "overlay_node": {"contract": "arm"},
    "replay_node": {"loop": True},
    "sim_bridge": BELT,
}


@pytest.mark.parametrize("name", NODES)
def test_a_node_goes_through_all_states_twice_and_ends_cleanly(name: str, tmp_path: Path) -> None:
    parameters = dict(NODES[name])
    if name == "replay_node":
        record(tmp_path / "bag", StoragePlugin.SQLITE3)
        parameters["bag"] = str(tmp_path / "bag")
    if name == "sim_bridge":
        config.save(belt_contract(), tmp_path / "belt.yaml")
        parameters["contract"] = str(tmp_path / "belt.yaml")
    with live() as (robot, start):
        process = start(name, **parameters)
        heard = robot.hear(STATUS, f"{name}/status")
        assert robot.state(name) == "unconfigured"
        for _ in range(2):
            for transition, state in (
                ("configure", "inactive"),
                ("activate", "active"),
                ("deactivate", "inactive"),
                ("activate", "active"),
                ("deactivate", "inactive"),
                ("cleanup", "unconfigured"),
            ):
                heard.clear()
                assert robot.change(name, transition), transition
                assert robot.state(name) == state
                if state == "active":
                    assert until(lambda: heard, "a status")[-1][1].node == name
        robot.bring_up(name)
        assert robot.change(name, "shutdown")
        assert robot.state(name) == "finalized"
        assert process.kill(signal.SIGTERM) == 0


def test_a_configure_that_fails_says_why_and_can_be_mended() -> None:
    with live() as (robot, start):
        process = start("overlay_node", contract="arm", camera="rear")
        assert not robot.change("overlay_node", "configure")
        assert robot.state("overlay_node") == "unconfigured"
        assert "'rear' is unknown" in process.log()
        assert robot.set("overlay_node", "camera", "wrist").successful
        robot.bring_up("overlay_node")
        refused = robot.set("overlay_node", "camera", "agentview")
        assert not refused.successful
        assert "clean the node up first" in refused.reason


def test_a_parameter_set_while_a_node_configures_is_refused_and_harms_nothing() -> None:
    with live() as (robot, start):
        process = start("policy_node", **model(warmup_calls=50))
        done: list[bool] = []
        asks = threading.Thread(
            target=lambda: done.append(robot.change("policy_node", "configure"))
        )
        asks.start()
        until(lambda: robot.state("policy_node") == "configuring", "configuring")
        told = robot.set("policy_node", "keep_ratio", 1.0)
        assert not told.successful
        assert "configuring; try again" in told.reason
        asks.join()
        assert done == [True]
        assert robot.set("policy_node", "keep_ratio", 1.0).successful
        assert process.process.poll() is None


def test_a_node_can_be_deactivated_at_any_moment_of_its_work() -> None:
    with live() as (robot, start):
        process = start("policy_node", **model())
        chunks = robot.hear(CHUNK, "action_chunk")
        assert robot.change("policy_node", "configure")
        robot.start()
        episodes = set()
        for pause in (0.0, 0.003, 0.007, 0.011, 0.017, 0.023, 0.029):
            assert robot.change("policy_node", "activate")
            chunks.clear()
            until(lambda: chunks, "a chunk")
            assert chunks[0][1].episode_id not in episodes, "each activation is an episode"
            episodes.add(chunks[0][1].episode_id)
            time.sleep(pause)
            assert robot.change("policy_node", "deactivate")
            assert robot.state("policy_node") == "inactive"
        chunks.clear()
        time.sleep(0.3)
        assert chunks == []
        assert process.process.poll() is None
        assert "Traceback" not in process.log()


LADDER = """
controller:
  buckets: [1.0, 0.25]
  latency_s: [0.002, 0.001]
  period_s: 1.0
"""


def test_a_controller_hands_over_when_even_its_floor_misses_and_takes_over_again(
    tmp_path: Path,
) -> None:
    (tmp_path / "tuned.yaml").write_text(LADDER, encoding="utf-8")
    with live() as (robot, start):
        start("policy_node", **model(controller=str(tmp_path / "tuned.yaml"), keep_ratio=1.0))
        start("command_node", contract="arm")
        told = robot.hear(STATUS, "policy_node/status")
        robot.hear(STATUS, "command_node/status")
        chunks = robot.hear(CHUNK, "action_chunk")
        robot.start()
        robot.bring_up("policy_node", "command_node")
        until(lambda: robot.state_of("command_node") == "running", "commands")
        assert {m.ladder_step for _, m in told if m.state == "running"} <= {0, 1}
        refused = robot.set("policy_node", "deadline_ms", 0.5)
        assert not refused.successful
        assert "controller: the period is" in refused.reason
        assert robot.set("policy_node", "deadline_ms", 1.5).successful  # no policy is that fast
        until(lambda: robot.state_of("command_node") == "holding", "the hold")
        assert "even the smallest budget, 0.25, misses" in robot.reason_of("policy_node")
        time.sleep(0.2)
        chunks.clear()
        time.sleep(0.5)
        assert chunks == []
        assert robot.set("policy_node", "deadline_ms", 0.0).successful
        until(lambda: robot.state_of("command_node") == "running", "recovery")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"keep_ratio": "much"}, "policy_node: parameter 'keep_ratio' is 'much'; give a double."),
        ({"keep_ratio": 7.5}, "policy_node: parameter 'keep_ratio' is 7.5; its range is 0.001"),
        ({"keep_ratio": 1}, "policy_node: parameter 'keep_ratio' is 1; write 1.0."),
    ],
)
def test_a_bad_parameter_file_ends_in_one_sentence(given: dict, told: str) -> None:
    with live() as (_, start):
        process = start("policy_node", **(model() | given))
        assert process.process.wait(60.0) == 2
        assert process.log().strip().startswith(told)
        assert "Traceback" not in process.log()


def test_a_parameter_that_nobody_knows_is_named() -> None:
    with live() as (robot, start):
        process = start("policy_node", **(model() | {"keep_ratoi": 0.5}))
        assert robot.state("policy_node") == "unconfigured"
        assert "did you mean 'keep_ratio'?" in process.log()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_in_the_middle_of_the_work_end_it_cleanly(number: signal.Signals) -> None:
    with live() as (robot, start):
        process = start("fused", **model())
        robot.hear(STATUS, "command_node/status")
        robot.start()
        robot.bring_up("policy_node", "command_node", "overlay_node")
        until(lambda: robot.state_of("command_node") == "running", "commands")
        process.process.send_signal(number)
        assert process.kill(number) == 0  # a launched node gets it twice
        assert "Traceback" not in process.log()
