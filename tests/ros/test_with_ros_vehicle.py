"""A vehicle whose state is odometry, on a real graph. ``-m ros``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from vla_prune import config

pytest.importorskip("rclpy", reason="rclpy is missing: source a ROS 2 installation")
pytest.importorskip("vla_prune_msgs", reason="vla_prune_msgs is missing: build and source ros2_ws")

from .live import STATUS, live, until
from .test_nodes_besides import TINY

pytestmark = pytest.mark.ros

NAMES = [
    *(f"pose.pose.position.{axis}" for axis in "xyz"),
    *(f"pose.pose.orientation.{axis}" for axis in "xyzw"),
    *(f"twist.twist.{name}" for name in ("linear.x", "linear.y", "angular.z")),
]


def with_odometry(folder: Path, name: str = "vehicle") -> str:
    """The vehicle's contract, its state out of ``/odom``."""
    contract = config.load(name, kind="ros")
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


def test_autowares_trajectory_follower_gets_places_with_speeds(tmp_path: Path) -> None:
    pytest.importorskip("autoware_planning_msgs", reason="autoware_planning_msgs is missing")
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    contract = with_odometry(tmp_path, "autoware")
    with live(contract, rate_hz=10.0, size=48) as (robot, start):
        plans = robot.hear("autoware_planning_msgs/msg/Trajectory", "planning/trajectory")
        robot.hear(STATUS, "command_node/status")
        policy = {"policy": str(tmp_path / "tiny.yaml"), "recipe": "divprune", "warmup_calls": 1}
        start("policy_node", contract=contract, **policy)
        start("command_node", contract=contract, execute=6)
        robot.start()
        robot.bring_up("policy_node", "command_node")
        until(lambda: robot.state_of("command_node") == "running" and plans, "plans")
        [plan] = [m for _, m in plans[-1:]]
        assert plan.header.frame_id == "base_link"
        times = [p.time_from_start.sec + p.time_from_start.nanosec / 1e9 for p in plan.points]
        assert 2 <= len(times) <= 6
        assert np.allclose(np.diff(times), 0.5)
        assert np.isfinite([p.longitudinal_velocity_mps for p in plan.points]).all()
        robot.skip.add("state")
        until(lambda: robot.state_of("command_node") == "holding", "the hold")
        plans.clear()
        until(lambda: plans, "the braking plan")
        assert plans[-1][1].points[-1].longitudinal_velocity_mps == 0.0
