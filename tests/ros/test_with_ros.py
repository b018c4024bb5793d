"""What needs rclpy and the built workspace: source its setup.bash, then ``pytest -m ros``."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy is missing: source a ROS 2 installation")
pytest.importorskip("vla_prune_msgs", reason="vla_prune_msgs is missing: build and source ros2_ws")

from vla_prune_ros import wire  # noqa: E402
from vla_prune_ros.convert import image_fields, to_rgb  # noqa: E402

from .live import WAIT_S, environment, live, until  # noqa: E402
from .scene import CHUNK, IMAGE, chunk  # noqa: E402

pytestmark = pytest.mark.ros


@pytest.fixture
def ros():
    rclpy.init()
    yield
    rclpy.try_shutdown()


def test_fields_become_the_bytes_that_rosbags_writes() -> None:
    from rclpy.serialization import serialize_message
    from vla_prune_ros.ros_messages import message

    pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    for kind, fields in (
        (IMAGE, image_fields(pixels, 1.5, "front")),
        (CHUNK, {"names": ["a"], "horizon": 2, "dt": 0.1, "values": np.float32([1, 2])}),
    ):
        ours = message(kind, fields)
        assert bytes(serialize_message(ours)) == bytes(wire.encode(wire.make(kind, fields), kind))
    np.testing.assert_array_equal(to_rgb(message(IMAGE, image_fields(pixels, 1.5))), pixels)


def test_type_hashes_are_those_of_ros(ros: None) -> None:
    node = rclpy.create_node("asks")
    from vla_prune_ros.ros_messages import get_message

    publisher = node.create_publisher(get_message(CHUNK), "chunk", 1)
    [told] = until(lambda: node.get_publishers_info_by_topic("/chunk"), "its own publisher")
    assert str(told.topic_type_hash) == wire.type_hash(CHUNK)
    node.destroy_publisher(publisher)
    node.destroy_node()


def test_a_command_node_goes_through_all_states_and_moves_nothing_without_a_chunk(
    ros: None,
) -> None:
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.lifecycle import TransitionCallbackReturn
    from vla_prune_ros.command_node import CommandNode
    from vla_prune_ros.ros_messages import get_message, message

    node, watcher = CommandNode(), rclpy.create_node("watcher")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    executor.add_node(watcher)
    heard: list = []
    kind = get_message("trajectory_msgs/msg/JointTrajectory")
    watcher.create_subscription(
        kind, "joint_trajectory_controller/joint_trajectory", heard.append, 1
    )
    done = TransitionCallbackReturn.SUCCESS
    for _ in range(2):
        assert node.trigger_configure() == done
        assert node.trigger_activate() == done
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            executor.spin_once(0.05)
        assert heard == []
        names = tuple(f"joint{i}" for i in range(1, 8))
        sent = chunk(time.time(), np.zeros((10, 7)), names=names)
        fields = {k: getattr(sent, k) for k in ("names", "horizon", "dt", "values", "episode_id")}
        stamp = {"sec": sent.header.stamp.sec, "nanosec": sent.header.stamp.nanosec}
        node.loop.put_chunk(message(CHUNK, fields | {"header": {"stamp": stamp}}))
        joints = {"name": list(names), "position": [0.0] * 7, "header": {"stamp": stamp}}
        node.loop.put_state(message("sensor_msgs/msg/JointState", joints))
        end = time.monotonic() + 5.0
        while not heard and time.monotonic() < end:
            executor.spin_once(0.05)
        assert list(heard[0].joint_names) == list(names)
        assert node.trigger_deactivate() == done
        assert node.trigger_cleanup() == done
        end = time.monotonic() + 0.5
        while time.monotonic() < end:  # the last word, the hold, is still under way
            executor.spin_once(0.05)
        heard.clear()
    node.destroy_node()
    watcher.destroy_node()


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_once_or_twice_ends_what_ros2_run_started(times: int) -> None:
    with live() as (robot, _):
        process = subprocess.Popen(
            ["ros2", "run", "vla_prune_ros", "command_node"],
            env=environment(),
            start_new_session=True,
        )
        try:
            assert robot.state("command_node") == "unconfigured"
            for _ in range(times):
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            assert process.wait(WAIT_S) == 0
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
