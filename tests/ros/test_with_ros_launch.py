"""Launch files, ``ros check``, recordings and the measuring script on a real graph. ``-m ros``."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: source a ROS 2 installation")
pytest.importorskip("vla_prune_msgs", reason="vla_prune_msgs is missing: build and source ros2_ws")

from rosbags.rosbag2 import StoragePlugin, Writer
from vla_prune_ros import wire
from vla_prune_ros.replay import Recording

from .live import CHUNK, COMMANDS, POLICY, STATUS, Robot, environment, live, model, until
from .test_nodes_besides import TINY

pytestmark = pytest.mark.ros

needs_launch = pytest.mark.skipif(
    shutil.which("ros2") is None, reason="ros2 launch is missing: source a ROS 2 installation"
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A policy file for the vehicle's contract, with weights by chance."""
    path = tmp_path_factory.mktemp("driver") / "driver.yaml"
    path.write_text(TINY, encoding="utf-8")
    return str(path)


@contextmanager
def launched(file: str, folder: Path, *arguments: str) -> Iterator[subprocess.Popen]:
    """``ros2 launch`` until the end of the test; its output is in ``folder/launch.log``."""
    command = ["ros2", "launch", "vla_prune_bringup", file, *arguments]
    with (folder / "launch.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment(), stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            yield process
        except BaseException:
            sys.stderr.write(said(folder))
            raise
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def active(folder: Path) -> bool:
    """Whether the bring-up succeeded; fails at once when it did not."""
    assert "everything is stopped" not in said(folder)
    return "all nodes are active." in said(folder)


def said(folder: Path) -> str:
    """All output of the launch."""
    return (folder / "launch.log").read_text(encoding="utf-8")


def ended(process: subprocess.Popen, folder: Path) -> None:
    """Ctrl-C as a terminal sends it: every process gets it, and launch passes it on."""
    os.killpg(process.pid, signal.SIGINT)
    process.wait(60.0)
    codes = re.findall(r"exit code (-?\d+)", said(folder))
    assert [code for code in codes if code != "0"] == []
    assert "Traceback" not in said(folder)


@needs_launch
def test_the_world_drives_with_nothing_but_a_launch_file(driver: str, tmp_path: Path) -> None:
    options = "options:={scenes: 1, square: 48}"
    with (
        live("vehicle") as (robot, _),
        launched(
            "world.launch.py", tmp_path, f"policy:={driver}", "recipe:=divprune", options
        ) as process,
    ):
        commands = robot.hear("nav_msgs/msg/Path", "plan")
        robot.hear(STATUS, "command_node/status")
        pictures = robot.hear("sensor_msgs/msg/Image", "overlay/image_raw")
        chunks = robot.hear(CHUNK, "action_chunk")
        until(lambda: active(tmp_path), "active nodes", 240.0)
        until(lambda: len(commands) > 5, "plans")
        until(lambda: robot.state_of("command_node") == "running", "commands")
        until(lambda: pictures, "an overlay")
        until(lambda: len({m.episode_id for _, m in chunks}) > 1, "the next episode")
        assert "the episode is over: score" in said(tmp_path)
        ended(process, tmp_path)


@needs_launch
@pytest.mark.parametrize("sides", [("both",), ("pruner",), ("pruner", "policy")])
def test_the_split_launch_file_starts_its_side(sides: tuple[str, ...], tmp_path: Path) -> None:
    with live() as (robot, _), ExitStack() as stack:
        tokens = robot.hear("vla_prune_msgs/msg/VisualTokens", "visual_tokens")
        chunks = robot.hear(CHUNK, "action_chunk")
        robot.start()
        processes = {}
        for side in sides:
            (folder := tmp_path / side).mkdir()
            given = f"side:={side}", "contract:=arm", f"policy:={POLICY}"
            processes[folder] = stack.enter_context(launched("split.launch.py", folder, *given))
        for folder in processes:
            until(lambda folder=folder: active(folder), "active nodes", 240.0)
        until(lambda: tokens, "tokens")
        if sides != ("pruner",):
            until(lambda: chunks, "chunks")
            assert list(chunks[-1][1].kept) == [72]  # the default recipe cuts before the wire
        for folder, process in processes.items():
            ended(process, folder)


@needs_launch
def test_a_recording_becomes_commands(tmp_path: Path) -> None:
    with live() as (robot, _):
        stamps = record(tmp_path / "bag", robot, 20.0)
        chunks = robot.hear(CHUNK, "action_chunk")
        commands = robot.hear("trajectory_msgs/msg/JointTrajectory", COMMANDS)
        bag = f"bag:={tmp_path / 'bag'}"
        given = bag, "contract:=arm", f"policy:={POLICY}", "loop:=true"
        with launched("replay.launch.py", tmp_path, *given) as process:
            until(lambda: active(tmp_path), "active nodes", 240.0)
            robot.hear(STATUS, "command_node/status")
            until(lambda: robot.state_of("command_node") == "running", "commands")
            commands.clear()
            until(lambda: len(chunks) > 20 and len(commands) > 20, "chunks and commands")
            ended(process, tmp_path)
        told = {(m.header.stamp.sec, m.header.stamp.nanosec) for _, m in chunks}
        assert told <= stamps
        assert chunks[-1][1].instruction == "pick up the black bowl"


def record(folder: Path, robot: Robot, seconds: float) -> set[tuple[int, int]]:
    """Write what a robot's sensors would say as a recording; the stamps in it."""
    stamps = set()
    with Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {
            source: writer.add_connection(f"/{source.topic}", source.type, typestore=wire.types())
            for source in robot.contract.sources
        }
        for tick in range(int(seconds * robot.rate_hz)):
            at = 10**18 + int(1e9 * tick / robot.rate_hz)
            sec, nanosec = divmod(at, 10**9)
            stamps.add((sec, nanosec))
            for source, connection in connections.items():
                fields = robot.fields(source, {"stamp": {"sec": sec, "nanosec": nanosec}})
                if source.key != "task" or not tick:
                    data = wire.encode(wire.make(source.type, fields), source.type)
                    writer.write(connection, at, data)
    return stamps


@needs_launch
def test_an_arm_and_a_vehicle_are_launched(driver: str, tmp_path: Path) -> None:
    for file, policy in (("arm.launch.py", POLICY), ("vehicle.launch.py", driver)):
        with (
            live(),
            launched(
                file, tmp_path, f"policy:={policy}", "recipe:=divprune", "namespace:=one"
            ) as process,
        ):
            until(lambda: active(tmp_path), "active nodes", 240.0)
            ended(process, tmp_path)


@needs_launch
def test_a_launch_whose_node_refuses_says_so_and_stops(tmp_path: Path) -> None:
    with launched("arm.launch.py", tmp_path, "policy:=nowhere") as process:
        assert process.wait(240.0) is not None
        told = said(tmp_path)
    assert "policy_node refused 'configure'" in told
    assert "everything is stopped" in told
    assert "'nowhere'" in told


def test_ros_check_reads_the_graph_through_rclpy() -> None:
    with live() as (robot, start):
        start("command_node", contract="arm")
        robot.start()
        robot.bring_up("command_node")
        command = [sys.executable, "-c", "from vla_prune.cli import main; main()"]
        command += ["ros", "check", "arm", "--json", "--seconds", "3", "--via", "rclpy"]
        told = subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=120
        )
        found = json.loads(told.stdout.splitlines()[-1])
        levels = {f["topic"]: f["level"] for f in found["findings"]}
        assert found["source"] == "rclpy"
        assert levels["/camera/front/image_raw"] in ("ok", "warning"), told.stdout
        assert levels["/joint_states"] == "ok"
        assert levels["/task"] == "ok"
        size = found["traffic"]["/camera/front/image_raw"]["size"]
        assert size > 144 * 144 * 3
        robot.skip.add("images.wrist")
        time.sleep(0.2)
        told = subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=120
        )
        assert told.returncode == 1
        errors = [
            f for f in json.loads(told.stdout.splitlines()[-1])["findings"]
            if f["level"] == "error"
        ]  # fmt: skip
        assert any("nothing came" in f["text"] for f in errors)


@pytest.mark.parametrize("plugin", list(StoragePlugin), ids=lambda p: p.name)
def test_a_recording_of_the_graph_reads_and_replays_equal(
    plugin: StoragePlugin, tmp_path: Path
) -> None:
    topics = {
        f"/{topic}": kind
        for topic, kind in (
            ("camera/front/image_raw", "sensor_msgs/msg/Image"),
            ("joint_states", "sensor_msgs/msg/JointState"),
            ("action_chunk", CHUNK),
            ("policy_node/status", STATUS),
        )
    }
    with live() as (robot, start):
        start("policy_node", **model())
        heard = {topic: robot.hear(kind, topic, raw=True) for topic, kind in topics.items()}
        robot.start()
        robot.bring_up("policy_node")
        until(lambda: all(len(h) > 5 for h in heard.values()), "all topics")
    with Writer(tmp_path / "bag", version=9, storage_plugin=plugin) as writer:
        for topic, kind in topics.items():
            connection = writer.add_connection(topic, kind, typestore=wire.types())
            for at, data in heard[topic]:
                writer.write(connection, int(1e9 * at), data)
    read: dict[str, list[bytes]] = {topic: [] for topic in topics}
    for message in Recording(tmp_path / "bag").messages():
        read[message.topic].append(bytes(message.data))
    assert read == {topic: [data for _, data in h] for topic, h in heard.items()}
    with live() as (robot, start):
        again = {topic: robot.hear(kind, topic, 500, raw=True) for topic, kind in topics.items()}
        start("replay_node", bag=str(tmp_path / "bag"), rate=0.5, topics="all")
        robot.bring_up("replay_node")
        until(lambda: all(again.values()), "the replay")
        last = {topic: data[-1] for topic, data in read.items()}
        until(lambda: all(again[t][-1][1] == last[t] for t in topics), "its end")
        for topic, sent in read.items():
            came = [data for _, data in again[topic]]
            assert came == sent[len(sent) - len(came) :], (
                topic
            )  # what came before the match is lost
            assert len(came) >= len(sent) / 2


def test_the_measuring_script_fills_its_table_and_both_forms_agree(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vla_prune_ros.measure", "--seconds", "4", "--rate", "10"]
    command += [
        "--recipe",
        "divprune",
        "--frames-in-lockstep",
        "4",
        "--out",
        str(tmp_path / "ros.json"),
    ]
    with live():
        pass  # sets the environment
    subprocess.run(command, env=environment(), check=True, timeout=500)
    document = json.loads((tmp_path / "ros.json").read_text(encoding="utf-8"))
    rows = {row["case"]: row for row in document["rows"]}
    assert set(rows) == {"conversion", "fused", "split"}
    for name in ("fused", "split"):
        assert rows[name]["frames"] > 0
        assert rows[name]["added_median_ms"] > 0
        assert rows[name]["rmw"] == "rmw_cyclonedds_cpp"
        assert rows[name]["oldest_acted_on_ms"] <= 160  # from the look to the call
        assert rows[name]["oldest_played_ms"] <= 500
    split = rows["split"]
    assert split["identical_to_fused"] == split["compared_with_fused"] == 4
    assert split["dense_bytes_per_frame"] >= 3 * split["bytes_per_frame"]
