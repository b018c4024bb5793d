"""States into numbers, actions into commands."""

from __future__ import annotations

import numpy as np
import pytest
from vla_prune_ros import wire
from vla_prune_ros.commands import (
    check_installed,
    command_fields,
    joint_trajectory,
    places,
    trajectory,
)
from vla_prune_ros.states import pick

from vla_prune.errors import ConfigError, MissingError, ShapeError

from .scene import joints

ODOMETRY = "nav_msgs/msg/Odometry"


def test_joints_are_found_by_name_whatever_their_order() -> None:
    message = joints(1.0)
    message.position = np.array([4.0, 3.0, 2.0, 1.0, 0.0])  # j4 ... j0
    np.testing.assert_array_equal(pick(message, ["position.j1", "position.j4"]), [1, 4])


def test_odometry_gives_speed_place_and_heading() -> None:
    turned = {"x": 0.0, "y": 0.0, "z": np.sin(0.6), "w": np.cos(0.6)}
    fields = {
        "twist": {"twist": {"linear": {"x": 7.5}}},
        "pose": {"pose": {"position": {"y": -2.0}, "orientation": turned}},
    }
    names = ["twist.twist.linear.x", "pose.pose.position.y", "pose.pose.orientation.yaw"]
    np.testing.assert_allclose(pick(wire.make(ODOMETRY, fields), names), [7.5, -2.0, 1.2], 1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("position.j9", "its joints are j4, j3, j2, j1, j0"),
        ("velocity.j1", "no 'velocity.j1'"),  # the list is shorter than the names
        ("pos.j1", "no field 'pos'"),
    ],
)
def test_what_a_state_lacks_is_named(name: str, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        pick(joints(1.0), [name], "joint_states")


@pytest.mark.parametrize(
    "name", ["pose.pose.position", "pose.pose.position.yaw", "header.frame_id", "pose.0"]
)
def test_a_name_that_leads_to_no_number_is_told(name: str) -> None:
    with pytest.raises(ShapeError, match=f"odom: '{name}' leads to no number"):
        pick(wire.make(ODOMETRY, {}), [name], "odom")


def test_a_state_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"position.j1 is nan; the message is not used"):
        pick(joints(1.0, float("nan")), ["position.j1"])


def test_an_array_is_asked_by_number() -> None:
    message = wire.make("std_msgs/msg/Float64MultiArray", {"data": [3.0, 4.0]})
    np.testing.assert_array_equal(pick(message, ["data.1"]), [4])
    with pytest.raises(ShapeError, match="beyond the 2 numbers"):
        pick(message, ["data.2"])


def test_a_joint_trajectory_has_positions_alone() -> None:
    fields = joint_trajectory(np.array([[1, 2], [3, 4.0]]), ["a", "b"], 0.05, 9.0)
    message = wire.make("trajectory_msgs/msg/JointTrajectory", fields)
    assert message.joint_names == ["a", "b"]
    assert [list(p.positions) for p in message.points] == [[1, 2], [3, 4]]
    assert [p.time_from_start.nanosec for p in message.points] == [50_000_000, 100_000_000]
    assert all(len(p.velocities) == len(p.accelerations) == 0 for p in message.points)
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (0, 0)  # begin at once


def test_a_twist_takes_its_dimensions_by_name() -> None:
    row = np.array([[1.5, -0.25]])
    fields = command_fields(
        "geometry_msgs/msg/TwistStamped", row, ["linear.x", "angular.z"], 0.1, 2.5
    )
    message = wire.make("geometry_msgs/msg/TwistStamped", fields)
    assert (message.twist.linear.x, message.twist.angular.z, message.twist.linear.y) == (
        1.5,
        -0.25,
        0,
    )
    assert message.header.stamp.nanosec == 500_000_000
    with pytest.raises(ConfigError, match="a twist has no 'gripper'"):
        command_fields("geometry_msgs/msg/TwistStamped", row, ["linear.x", "gripper"], 0.1, 0.0)


def test_steps_and_places_are_the_same_plan() -> None:
    steps = np.array([[1.0, 0.0], [1.0, 0.5], [0.0, 0.0]])
    np.testing.assert_array_equal(
        places(steps, ["dx", "dy"]), places(np.cumsum(steps, 0), ["x", "y"])
    )
    with pytest.raises(ConfigError, match="cannot be made of a, b"):
        places(steps, ["a", "b"])


def test_a_trajectory_brakes_where_its_steps_end() -> None:
    steps = np.array([[4.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    points = trajectory(steps, ["dx", "dy"], 0.5, 1.0)["points"]
    assert [p["longitudinal_velocity_mps"] for p in points] == [8.0, 4.0, 0.0]
    assert points[1]["acceleration_mps2"] == -8.0
    heading = [
        2 * np.arctan2(p["pose"]["orientation"]["z"], p["pose"]["orientation"]["w"])
        for p in points
    ]
    np.testing.assert_allclose(heading, [0, np.pi / 2, np.pi / 2])  # standing keeps its heading
    assert points[2]["pose"]["position"] == {"x": 4.0, "y": 2.0, "z": 0.0}
    assert points[1]["time_from_start"] == {"sec": 1, "nanosec": 0}


def test_a_path_is_one_that_ros_2_knows() -> None:
    fields = command_fields("nav_msgs/msg/Path", np.ones((3, 2)), ["dx", "dy"], 0.5, 4.0)
    message = wire.make("nav_msgs/msg/Path", fields)
    assert message.header.frame_id == "base_link"
    assert [p.pose.position.x for p in message.poses] == [1, 2, 3]
    assert [p.header.stamp.sec for p in message.poses] == [4, 5, 5]


@pytest.mark.parametrize("kind", ["trajectory_msgs/msg/JointTrajectory", "nav_msgs/msg/Path"])
def test_no_command_is_made_of_nan(kind: str) -> None:
    with pytest.raises(ShapeError, match="not finite"):
        command_fields(kind, np.array([[np.nan, 0.0]]), ["dx", "dy"], 0.1, 0.0)


def test_rows_must_fit_their_names() -> None:
    with pytest.raises(ShapeError, match="do not fit the 3 names"):
        joint_trajectory(np.ones((2, 2)), ["a", "b", "c"], 0.1, 0.0)


def test_a_package_of_messages_that_is_not_installed_is_named() -> None:
    with pytest.raises(MissingError, match="apt install ros-jazzy-no-such-msgs, or take") as error:
        check_installed("no_such_msgs/msg/Trajectory", "autoware")
    assert "autoware: a command is a no_such_msgs/msg/Trajectory" in str(error.value)
    check_installed("json/msg/Any")
