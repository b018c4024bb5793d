"""The running graph through DDS discovery, where rclpy is not installed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from cyclonedds.builtin import (
    BuiltinDataReader,
    BuiltinTopicDcpsPublication,
    BuiltinTopicDcpsSubscription,
)
from cyclonedds.core import Policy

from vla_prune_ros import dds, wire
from vla_prune_ros.graph import CLOCK, CLOCK_TYPE, Endpoint, Graph, Meter, rmem_max, stamp_of
from vla_prune_ros.qos import Qos

EVERYONE = Qos("reliable", 1000, "transient_local")  # all nodes write into one instance
FOREVER_MS = 1e12  # DDS has an infinite duration where ROS 2 has none


def read(
    wanted: Mapping[str, str],
    seconds: float,
    domain: int | None = None,
    namespace: str = "/",
    loopback: bool = True,
) -> Graph:
    """Listen for some seconds.

    Args:
        wanted: absolute topic -> type of what is measured.
        seconds: how long.
        domain: ``ROS_DOMAIN_ID`` where not given.
        namespace: of the node that listens.
        loopback: this machine alone.
    """
    with dds.node("vla_prune_check", domain=domain, loopback=loopback) as node:
        known = set(wire.types().types)
        meters = {t: Meter(kind) for t, kind in wanted.items() if kind in known}
        ears = {t: node.subscription(t, m.kind, Qos("best_effort", 50)) for t, m in meters.items()}
        clock, simulated = node.subscription(CLOCK, CLOCK_TYPE, Qos("best_effort", 50)), None
        info = node.subscription("/ros_discovery_info", dds.DISCOVERY, EVERYONE, raw=True)
        ends = {
            True: BuiltinDataReader(node.participant, BuiltinTopicDcpsPublication),
            False: BuiltinDataReader(node.participant, BuiltinTopicDcpsSubscription),
        }
        own, found, names = node.participant.guid, {}, {}
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for writes, reader in ends.items():
                for sample in reader.take(100):
                    if sample.sample_info.valid_data and sample.participant_key != own:
                        found[sample.key.bytes] = (writes, sample)
            for told in info.messages(100):
                names |= _names(told)
            for data in clock.take(50):
                simulated = stamp_of(data, CLOCK_TYPE) or 0.0
            for topic, ear in ears.items():
                for data in ear.take(50):
                    meters[topic].count(data, time.time(), simulated)
            time.sleep(0.005)
    endpoints = [_endpoint(w, s, names.get(key, "")) for key, (w, s) in found.items()]
    return Graph(
        [e for e in endpoints if e is not None],
        {t: m.traffic() for t, m in meters.items()},
        rmem_max(),
        "",
        "dds",
        seconds,
        simulated is not None,
    )


def _names(info: Any) -> dict[bytes, str]:
    """Endpoint -> absolute name of its node, from one ``ros_discovery_info``."""
    found = {}
    for node in info.node_entities_info_seq:
        name = f"{node.node_namespace.rstrip('/')}/{node.node_name}"
        for gid in (*node.reader_gid_seq, *node.writer_gid_seq):
            found[bytes(gid.data)] = name
    return found


def _endpoint(writes: bool, sample: Any, node: str) -> Endpoint | None:
    """A ROS 2 topic's end; None for what is none (services, parameters, plain DDS)."""
    topic, parts = sample.topic_name, sample.type_name.split("::")
    if not topic.startswith("rt/") or len(parts) != 4:
        return None
    kind = f"{parts[0]}/{parts[1]}/{parts[3].removesuffix('_')}"
    return Endpoint(topic[2:], kind, node or "a node without a name", writes, _qos(sample.qos))


def _qos(given: Any) -> Qos:
    def has(policy: Any) -> bool:
        return policy in given

    reliable = (
        has(Policy.Reliability) and given[Policy.Reliability] != Policy.Reliability.BestEffort
    )
    late = has(Policy.Durability) and given[Policy.Durability] != Policy.Durability.Volatile
    depth = 1
    if has(Policy.History) and isinstance(given[Policy.History], Policy.History.KeepLast):
        depth = max(1, given[Policy.History].depth)
    deadline = given[Policy.Deadline].deadline / 1e6 if has(Policy.Deadline) else 0.0
    lifespan = given[Policy.Lifespan].lifespan / 1e6 if has(Policy.Lifespan) else 0.0
    return Qos(
        "reliable" if reliable else "best_effort",
        depth,
        "transient_local" if late else "volatile",
        deadline if deadline < FOREVER_MS else 0.0,
        lifespan if lifespan < FOREVER_MS else 0.0,
    )
