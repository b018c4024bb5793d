"""A real ROS 2 graph for the tests marked ``ros``: node processes, and a robot that feeds them.

Imports rclpy. Everything stays on the loopback interface, in a domain of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import yaml
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import Parameter
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from vla_prune_ros.bring_up import change
from vla_prune_ros.bring_up_node import RosPeer
from vla_prune_ros.contract import Source, load_contract
from vla_prune_ros.convert import image_fields
from vla_prune_ros.ros_messages import get_message, message

from .conftest import WORKSPACE

DOMAIN = 100 + os.getpid() % 100
WAIT_S = 90.0  # generous: machines are busy
POLICY = "pocket_arm_timing"  # no arm moves here
PATHS = [
    *(str(WORKSPACE / name) for name in ("vla_prune_ros", "vla_prune_sim_bridge")),
    str(WORKSPACE.parents[1]),
]
LOOPBACK = """<CycloneDDS><Domain Id="any"><General><Interfaces>
<NetworkInterface address="127.0.0.1" multicast="false"/></Interfaces>
<AllowMulticast>false</AllowMulticast></General>
<Discovery><ParticipantIndex>auto</ParticipantIndex>
<MaxAutoParticipantIndex>60</MaxAutoParticipantIndex>
<Peers><Peer address="127.0.0.1"/></Peers></Discovery></Domain></CycloneDDS>"""
CHUNK, STATUS = "vla_prune_msgs/msg/ActionChunk", "vla_prune_msgs/msg/PruneStatus"
COMMANDS = "joint_trajectory_controller/joint_trajectory"
JOINTS = [*(f"joint{i}" for i in range(1, 8)), "gripper"]
MODULES = {"sim_bridge": "vla_prune_sim_bridge.sim_bridge"}


def environment() -> dict[str, str]:
    """Of every process: this checkout's nodes, the loopback interface, our own domain."""
    path = os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")])
    return os.environ | {
        "PYTHONPATH": path,
        "ROS_DOMAIN_ID": str(DOMAIN),
        "RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp",
        "CYCLONEDDS_URI": LOOPBACK,
        "PYTHONUNBUFFERED": "1",
    }


def until(done: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    """Wait for something true, and return it."""
    end = time.monotonic() + timeout_s
    while not (found := done()):
        assert time.monotonic() < end, f"{what} did not happen within {timeout_s:g} s"
        time.sleep(0.005)
    return found


class Process:
    """A node's process, with its parameters and what it prints."""

    def __init__(self, name: str, parameters: Mapping[str, Any], *arguments: str) -> None:
        self.name, self._log = name, tempfile.TemporaryFile("w+")  # noqa: SIM115 closed with the process object
        module = MODULES.get(name, f"vla_prune_ros.{name}")
        self._file = tempfile.NamedTemporaryFile("w", suffix=".yaml")  # noqa: SIM115
        yaml.safe_dump({"/**": {"ros__parameters": dict(parameters)}}, self._file)
        self._file.flush()
        command = [sys.executable, "-c", f"from {module} import main; main()"]
        command += ["--ros-args", "--params-file", self._file.name, *arguments]
        self.process = subprocess.Popen(
            command, env=environment(), stdout=self._log, stderr=subprocess.STDOUT
        )

    def log(self) -> str:
        """All that it printed."""
        self._log.flush()
        return Path(f"/proc/self/fd/{self._log.fileno()}").read_text(encoding="utf-8")

    def kill(self, number: int = signal.SIGKILL, timeout_s: float = 20.0) -> int:
        """Send a signal and wait; the exit code."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)
        return self.process.wait(timeout_s)


class Robot:
    """Cameras, joints and an operator: publishes on one thread, listens on another."""

    def __init__(self, contract: str = "arm", rate_hz: float = 30.0, size: int = 144) -> None:
        self.contract, self.rate_hz = load_contract(contract), rate_hz
        self.skip: set[str] = set()  # keys of sources that are silent
        self.heard: dict[str, list[tuple[float, Any]]] = {}
        self.sent = 0
        self.stamps: list[tuple[int, int]] = []
        self.node, self._operator = Node("robot"), Node("operator")
        self._peers: dict[str, RosPeer] = {}
        self._mouths = {
            s.key: self.node.create_publisher(get_message(s.type), s.topic, self._qos(s.qos))
            for s in self.contract.sources
        }
        draw = np.random.default_rng(0)
        self._frames = {
            s.key: draw.integers(0, 256, (size, size, 3), np.uint8) for s in self.contract.cameras
        }
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._executor.spin, daemon=True)]
        self._threads[0].start()

    @staticmethod
    def _qos(qos: Any) -> QoSProfile:
        latched = qos.durability == "transient_local"
        durability = DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE
        return QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=durability)

    def start(self) -> None:
        """Publish at the rate until closed."""
        if len(self._threads) == 1:
            self._threads.append(threading.Thread(target=self._feed, daemon=True))
            self._threads[-1].start()

    def hear(
        self, kind: str, topic: str, depth: int = 50, raw: bool = False
    ) -> list[tuple[float, Any]]:
        """Everything that comes on a topic: steady time and message, or its bytes."""
        heard = self.heard.setdefault(topic, [])
        self.node.create_subscription(
            get_message(kind),
            topic,
            lambda m: heard.append((time.monotonic(), m)),
            depth,
            raw=raw,
        )
        return heard

    def state_of(self, node: str) -> str:
        """What a node's last status says; empty before one."""
        heard = self.heard[f"{node}/status"]
        return heard[-1][1].state if heard else ""

    def reason_of(self, node: str) -> str:
        """Why, after that."""
        heard = self.heard[f"{node}/status"]
        return heard[-1][1].reason if heard else ""

    def ask(self, kind: type, name: str, timeout_s: float = WAIT_S, **fields: Any) -> Any:
        """Call a service."""
        client = self.node.create_client(kind, name)
        try:
            assert client.wait_for_service(timeout_s), f"no service {name}"
            request = kind.Request()
            for field, value in fields.items():
                setattr(request, field, value)
            future = client.call_async(request)
            until(future.done, f"the answer of {name}", timeout_s)
            return future.result()
        finally:
            self.node.destroy_client(client)

    def change(self, node: str, transition: str, timeout_s: float = WAIT_S) -> bool:
        """Ask a node for a transition; whether it is where it leads."""
        if transition == "shutdown":
            asked = ChangeState.Request().transition
            asked.label = transition
            return self.ask(
                ChangeState, f"{node}/change_state", timeout_s, transition=asked
            ).success
        if node not in self._peers:
            self._peers[node] = RosPeer(self._operator, node)
        return change(self._peers[node], transition, timeout_s) == ""

    def state(self, node: str) -> str:
        """A node's life-cycle state."""
        return self.ask(GetState, f"{node}/get_state").current_state.label

    def bring_up(self, *nodes: str) -> None:
        """Configure and activate."""
        for node in nodes:
            assert self.change(node, "configure"), f"{node} refused to configure"
            assert self.change(node, "activate"), f"{node} refused to activate"

    def set(self, node: str, name: str, value: Any) -> Any:
        """Set a parameter as ``ros2 param set`` does."""
        from rclpy.parameter import Parameter as Local

        made: Parameter = Local(name, value=value).to_parameter_msg()
        assert parameter_value_to_python(made.value) == value
        return self.ask(SetParameters, f"{node}/set_parameters", parameters=[made]).results[0]

    def publish(self) -> None:
        """One message of every source that is not silent."""
        sec, nanosec = divmod(time.time_ns(), 1_000_000_000)
        self.stamps.append((sec, nanosec))
        for source in self.contract.sources:
            if source.key in self.skip or (source.key == "task" and self.sent):
                continue
            fields = self.fields(source, {"stamp": {"sec": sec, "nanosec": nanosec}})
            self._mouths[source.key].publish(message(source.type, fields))
        self.sent += 1

    def fields(self, source: Source, header: Mapping[str, Any]) -> Mapping[str, Any]:
        """Of a source's message."""
        if source.camera:
            return image_fields(self._frames[source.key], 0.0) | {"header": header}
        if source.key == "task":
            return {"data": "pick up the black bowl"}
        if source.type == "nav_msgs/msg/Odometry":
            return {"header": header}
        return {"header": header, "name": JOINTS, "position": np.full(8, 0.1)}

    def say(self, text: str) -> None:
        """Another task."""
        self._mouths["task"].publish(message("std_msgs/msg/String", {"data": text}))

    def close(self) -> None:
        """Stop both threads."""
        self._stop.set()
        self._executor.shutdown(timeout_sec=2.0)
        for thread in self._threads:
            thread.join(timeout=2.0)
        self.node.destroy_node()
        self._operator.destroy_node()

    def _feed(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            self.publish()
            due = max(due + 1.0 / self.rate_hz, time.monotonic() - 1.0)
            self._stop.wait(max(0.0, due - time.monotonic()))


@contextmanager
def live(contract: str = "arm", **options: Any) -> Iterator[tuple[Robot, Callable[..., Process]]]:
    """A robot, and what starts node processes that end with the test."""
    os.environ.update(
        {k: environment()[k] for k in ("CYCLONEDDS_URI", "RMW_IMPLEMENTATION", "ROS_DOMAIN_ID")}
    )
    rclpy.init()
    robot = Robot(contract, **options)
    started: list[Process] = []

    def start(name: str, *arguments: str, **parameters: Any) -> Process:
        started.append(Process(name, parameters, *arguments))
        return started[-1]

    try:
        yield robot, start
    except BaseException:
        for process in started:
            sys.stderr.write(f"--- {process.name}\n{process.log()}\n")
        raise
    finally:
        for process in started:
            if process.process.poll() is None:
                process.kill()
        robot.close()
        rclpy.try_shutdown()


def model(**more: Any) -> dict[str, Any]:
    """Parameters of a node with a policy, warmed up no longer than a test needs."""
    return {
        "policy": POLICY, "recipe": "dual_level", "buckets": [1.0, 0.25], "warmup_calls": 1,
        "contract": "arm", **more,
    }  # fmt: skip


def states(heard: Sequence[tuple[float, Any]]) -> list[str]:
    """The states that were told, repeats left out."""
    told = [m.state for _, m in heard]
    return [s for i, s in enumerate(told) if i == 0 or told[i - 1] != s]
