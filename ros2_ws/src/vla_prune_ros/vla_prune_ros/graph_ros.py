"""The running graph through rclpy."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import partial

import rclpy
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosidl_runtime_py.utilities import get_message

from vla_prune_ros.graph import CLOCK, CLOCK_TYPE, Endpoint, Graph, Meter, rmem_max, stamp_of
from vla_prune_ros.qos import Qos

FOREVER_NS = 9_000_000_000 * 1_000_000_000


def read(
    wanted: Mapping[str, str],
    seconds: float,
    domain: int | None = None,
    namespace: str = "/",
    loopback: bool = True,
) -> Graph:
    """Listen for some seconds; see :func:`vla_prune_ros.graph_dds.read`."""
    rclpy.init(domain_id=domain)
    node = Node("vla_prune_check", namespace=namespace)
    try:
        meters = {topic: Meter(kind) for topic, kind in wanted.items()}
        ear = QoSProfile(
            depth=50,
            reliability=ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.VOLATILE,
        )
        time_ = _Simulated()
        node.create_subscription(get_message(CLOCK_TYPE), CLOCK, time_.hear, ear, raw=True)
        for topic, meter in meters.items():
            try:
                kind = get_message(meter.kind)
            except (ModuleNotFoundError, AttributeError, ValueError):
                continue  # its package is not installed here: only its ends can be judged
            count = partial(_count, node, meter, time_)
            node.create_subscription(kind, topic, count, ear, raw=True)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            rclpy.spin_once(node, timeout_sec=0.05)
        endpoints = []
        for topic, _ in node.get_topic_names_and_types():
            for told in node.get_publishers_info_by_topic(topic):
                endpoints.append(_endpoint(topic, told, True))
            for told in node.get_subscriptions_info_by_topic(topic):
                if told.node_name != node.get_name():
                    endpoints.append(_endpoint(topic, told, False))
        traffic = {topic: meter.traffic() for topic, meter in meters.items()}
        rmw = rclpy.get_rmw_implementation_identifier()
        return Graph(
            endpoints,
            traffic,
            rmem_max(),
            "" if os.environ.get("CYCLONEDDS_URI") else rmw,  # tuned: no warning of defaults
            "rclpy",
            seconds,
            time_.now_s is not None,
        )
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


class _Simulated:
    """The last time that ``/clock`` said, seconds; None without one."""

    def __init__(self) -> None:
        self.now_s: float | None = None

    def hear(self, data: bytes) -> None:
        self.now_s = stamp_of(data, CLOCK_TYPE) or 0.0


def _count(node: Node, meter: Meter, simulated: _Simulated, data: bytes) -> None:
    meter.count(data, node.get_clock().now().nanoseconds / 1e9, simulated.now_s)


def _endpoint(topic: str, told: object, writes: bool) -> Endpoint:
    qos = told.qos_profile
    durations = [
        0.0 if d.nanoseconds >= FOREVER_NS else d.nanoseconds / 1e6
        for d in (qos.deadline, qos.lifespan)
    ]
    return Endpoint(
        topic,
        told.topic_type,
        f"{told.node_namespace.rstrip('/')}/{told.node_name}",
        writes,
        Qos(
            "best_effort" if qos.reliability == ReliabilityPolicy.BEST_EFFORT else "reliable",
            max(1, qos.depth),
            "transient_local"
            if qos.durability == DurabilityPolicy.TRANSIENT_LOCAL
            else "volatile",
            *durations,
        ),
    )
