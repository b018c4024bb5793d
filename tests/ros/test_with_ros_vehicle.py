"""A vehicle whose state is odometry, on a real graph. ``-m ros``."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

pytest.importorskip("rclpy", reason="rclpy is missing: source a ROS 2 installation")
pytest.importorskip("vla_prune_msgs", reason="vla_prune_msgs is missing: build and source ros2_ws")

from .conftest import WORKSPACE
from .live import STATUS, live, until
from .test_nodes_besides import TINY

pytestmark = pytest.mark.ros

NAMES = [
    *(f"pose.pose.position.{axis}" for axis in "xyz"),
    *(f"pose.pose.orientation.{axis}" for axis in "xyzw"),
    *(f"twist.twist.{name}" for name in ("linear.x", "linear.y", "angular.z")),
]


def with_odometry(folder: Path) -> str:
    """The vehicle's contract, its state out of ``/odom``."""
    path = WORKSPACE.parents[1] / "configs" / "ros" / "vehicle.yaml"
    contract = yaml.safe_load(path.read_text(encoding="utf-8"))
    for source in contract["observations"]:
        if source["key"] == "observation.state":
            source |= {"topic": "odom", "type": "nav_msgs/msg/Odometry"}
            source |= {
                "selector": {"names": NAMES},
                "align": {"stamp": "header", "max_age_ms": 300},
            }
    (folder / "odometry.yaml").write_text(yaml.safe_dump(contract), encoding="utf-8")
    return str(folder / "odometry.yaml")


def test_stale_odometry_brakes_the_vehicle_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    contract = with_odometry(tmp_path)
    with live(contract, rate_hz=10.0, size=48) as (robot, start):
        told = robot.hear(STATUS, "command_node/status")
        plans = robot.hear("nav_msgs/msg/Path", "plan")
        policy = {"policy": str(tmp_path / "tiny.yaml"), "recipe": "divprune", "warmup_calls": 1}
        start("policy_node", contract=contract, **policy)
        start("command_node", contract=contract, execute=6)
        robot.start()
        robot.bring_up("policy_node", "command_node")
        until(lambda: robot.state_of("command_node") == "running" and plans, "plans")
        told.clear()
        robot.skip.add("state")
        until(lambda: robot.state_of("command_node") == "holding", "the hold")
        assert any("odom" in m.reason and "stale" in m.reason for _, m in told)
        robot.skip.clear()
        until(lambda: robot.state_of("command_node") == "running", "recovery")
