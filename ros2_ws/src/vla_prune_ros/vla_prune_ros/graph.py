"""Whether a running graph fits a contract: the judging part of ``vla-prune ros check``.

A :class:`Graph` is a description; :mod:`vla_prune_ros.graph_ros` and
:mod:`vla_prune_ros.graph_dds` read one from a machine.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vla_prune_ros.command_loop import FUTURE_S
from vla_prune_ros.contract import Contract, Sink, Source
from vla_prune_ros.qos import Qos, command_qos, conflict

LARGE = 1_000_000  # bytes above which default buffers lose frames (ROS2.md)
BUFFER = 4_194_304  # bytes that were enough for 1280x720
FAST_LOSES = 200_000  # bytes that Fast DDS lost much of (ROS2.md)
SLACK = 0.8  # share of the expected rate that is still fine
CLOCK, CLOCK_TYPE = "/clock", "rosgraph_msgs/msg/Clock"
STAMPED = (  # their bytes begin with a time
    CLOCK_TYPE,
    "sensor_msgs/msg/Image",
    "sensor_msgs/msg/CompressedImage",
    "sensor_msgs/msg/JointState",
    "nav_msgs/msg/Odometry",
    "nav_msgs/msg/Path",
    "geometry_msgs/msg/TwistStamped",
    "geometry_msgs/msg/PoseStamped",
    "trajectory_msgs/msg/JointTrajectory",
    "autoware_planning_msgs/msg/Trajectory",
    "vla_prune_msgs/msg/ActionChunk",
)


@dataclass(frozen=True)
class Endpoint:
    """One end of a topic.

    Attributes:
        topic: absolute name.
        type: ``pkg/msg/Name``.
        node: absolute name of its node.
        writes: whether it publishes.
        qos: offered or asked.
    """

    topic: str
    type: str
    node: str
    writes: bool
    qos: Qos


@dataclass(frozen=True)
class Traffic:
    """What came on one topic while it was listened to.

    Attributes:
        messages: how many.
        hz: their rate.
        size: bytes of one, median.
        offset_s: arrival less header stamp, median; None without stamps.
    """

    messages: int
    hz: float
    size: int
    offset_s: float | None = None


@dataclass(frozen=True)
class Graph:
    """A running graph.

    Attributes:
        endpoints: of all topics.
        traffic: topic -> what came.
        rmem_max: largest receive buffer that the kernel gives, bytes; None if unknown.
        rmw: name of the middleware; empty if unknown.
        source: how it was read.
        seconds: it was listened to.
        simulated: whether ages are in the time of ``/clock``.
    """

    endpoints: Sequence[Endpoint]
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    rmem_max: int | None = None
    rmw: str = ""
    source: str = ""
    seconds: float = 0.0
    simulated: bool = False

    def ends(self, topic: str, writes: bool) -> list[Endpoint]:
        """Publishers or subscribers of a topic."""
        return [e for e in self.endpoints if e.topic == topic and e.writes == writes]


@dataclass(frozen=True)
class Finding:
    """One judgement.

    Attributes:
        level: ok, warning or error.
        topic: that it is about.
        text: one sentence.
    """

    level: str
    topic: str
    text: str


def absolute(topic: str, namespace: str = "/") -> str:
    """A topic's absolute name."""
    return (
        topic if topic.startswith("/") else f"/{namespace.strip('/')}/{topic}".replace("//", "/")
    )


def topics(contract: Contract, namespace: str = "/") -> dict[str, str]:
    """Absolute name -> type of everything that the contract names."""
    return {absolute(t.topic, namespace): t.type for t in (*contract.sources, *contract.sinks)}


def judge(contract: Contract, graph: Graph, namespace: str = "/") -> list[Finding]:
    """Everything that fits and does not, topic by topic."""
    found: list[Finding] = []
    if graph.simulated:
        text = "somebody sends simulated time: ages are in it, and nodes need use_sim_time."
        found.append(Finding("ok", CLOCK, text))
    for source in contract.sources:
        found += _source(source, graph, absolute(source.topic, namespace), graph.seconds)
    for sink in contract.sinks:
        offered = sink.qos or command_qos(1.0 / contract.rate_hz)
        found += _sink(sink, offered, graph, absolute(sink.topic, namespace))
    return found


def _source(source: Source, graph: Graph, topic: str, seconds: float) -> Iterator[Finding]:
    writers = graph.ends(topic, True)
    if not writers:
        yield Finding("error", topic, _nobody(source.key, source.type, graph))
        return
    faults = 0
    for end in writers:
        for text in _mismatch(end, source.type, conflict(end.qos, source.qos)):
            faults += 1
            yield Finding("error", topic, text)
    if len(writers) > 1:
        names = ", ".join(end.node for end in writers)
        yield Finding("warning", topic, f"{len(writers)} nodes publish it: {names}.")
    traffic = graph.traffic.get(topic)
    size = traffic.size if traffic and traffic.messages else _raw_size(source)
    yield from _sizes(source, graph, topic, size)
    if traffic is None or source.key == "task":
        if not faults:
            yield Finding("ok", topic, f"{source.key}: {writers[0].node} publishes it.")
        return
    if traffic.messages == 0:
        yield Finding(
            "error",
            topic,
            f"{source.key}: {writers[0].node} offers it, but nothing came in {seconds:g} s; is "
            "its device running, and do large messages get through?",
        )
        return
    if source.rate_hz and traffic.hz < SLACK * source.rate_hz:
        yield Finding(
            "warning",
            topic,
            f"{source.key}: {traffic.hz:.1f} Hz come, {source.rate_hz:g} Hz are expected.",
        )
    late = _clock(source, topic, traffic)
    if late is not None:
        yield late
    elif not faults:
        age = "" if traffic.offset_s is None else f", {1e3 * traffic.offset_s:.0f} ms old"
        told = f"{source.key}: {traffic.hz:.1f} Hz, {traffic.size} bytes{age}."
        yield Finding("ok", topic, told)


def _sink(sink: Sink, offered: Qos, graph: Graph, topic: str) -> Iterator[Finding]:
    readers, faults = graph.ends(topic, False), 0
    if not readers:
        yield Finding("warning", topic, f"nobody listens to the commands ({sink.type}).")
    for end in readers:
        for text in _mismatch(end, sink.type, conflict(offered, end.qos)):
            faults += 1
            yield Finding("error", topic, text)
    others = [
        e.node for e in graph.ends(topic, True) if not e.node.endswith(("command_node", "fused"))
    ]
    if others:
        yield Finding("error", topic, f"{', '.join(others)} commands it too; only one node may.")
    elif readers and not faults:
        yield Finding("ok", topic, f"{', '.join(e.node for e in readers)} listens.")


def _mismatch(end: Endpoint, kind: str, clash: str) -> Iterator[str]:
    if end.type != kind:
        yield f"{end.node} has type {end.type}, the contract says {kind}."
    elif clash:
        yield (
            f"{end.node}: no message gets through: {clash}; change 'qos' in the contract, or "
            "override it by parameters."
        )


def _nobody(key: str, kind: str, graph: Graph) -> str:
    same = sorted({e.topic for e in graph.endpoints if e.writes and e.type == kind})
    text = f"{key}: nobody publishes it"
    if not same:
        return f"{text}, nor any other {kind}."
    return f"{text}; topics of this type: {', '.join(same)}. Remap, or mend the contract."


def _raw_size(source: Source) -> int:
    if source.type != "sensor_msgs/msg/Image" or source.shape is None:
        return 0
    return 3 * source.shape[0] * source.shape[1]


def _sizes(source: Source, graph: Graph, topic: str, size: int) -> Iterator[Finding]:
    if size > LARGE and graph.rmem_max is not None and graph.rmem_max < BUFFER:
        yield Finding(
            "warning",
            topic,
            f"{source.key}: messages of {size} bytes, and the kernel's largest receive buffer is "
            f"{graph.rmem_max} bytes, so frames get lost; set net.core.rmem_max to {BUFFER} and "
            "raise the middleware's buffer, or publish compressed.",
        )
    elif size > LARGE and "cyclone" in graph.rmw:
        yield Finding(
            "warning",
            topic,
            f"{source.key}: messages of {size} bytes get lost with Cyclone's default buffer; set "
            "SocketReceiveBufferSize to 4MB in CYCLONEDDS_URI (README of vla_prune_bringup).",
        )
    if size > FAST_LOSES and "fastrtps" in graph.rmw and graph.source == "dds":
        yield Finding(
            "warning",
            topic,
            f"{source.key}: messages of {size} bytes between Fast DDS and Cyclone get lost; use "
            "rmw_cyclonedds_cpp on both sides, or compressed images.",
        )


def _clock(source: Source, topic: str, traffic: Traffic) -> Finding | None:
    if traffic.offset_s is None or source.stamp != "header":
        return None
    if traffic.offset_s < -FUTURE_S:
        return Finding(
            "error",
            topic,
            f"{source.key}: stamps are {-traffic.offset_s:.2f} s ahead of this clock; synchronise "
            "the clocks (chrony or PTP), or set use_sim_time.",
        )
    if traffic.offset_s > source.max_age_s:
        return Finding(
            "error",
            topic,
            f"{source.key}: messages are {traffic.offset_s:.2f} s old on arrival, the limit is "
            f"{source.max_age_s:g} s, so none is acted on; clocks differ, or the way is too slow.",
        )
    return None


def rmem_max(path: Path = Path("/proc/sys/net/core/rmem_max")) -> int | None:
    """The largest receive buffer that this kernel gives."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def stamp_of(data: bytes, kind: str) -> float | None:
    """The header stamp in the CDR bytes of a stamped message; None for others, or a zero stamp."""
    if kind not in STAMPED or len(data) < 12:
        return None
    order = "<" if data[1] & 1 else ">"
    sec, nanosec = struct.unpack_from(f"{order}iI", data, 4)
    return sec + nanosec / 1e9 if sec or nanosec else None


class Meter:
    """Counts what comes on one topic.

    Args:
        kind: type of its messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._seen: list[tuple[float, int, float | None]] = []
        self._simulated = False

    def count(self, data: bytes, now: float, simulated: float | None = None) -> None:
        """One message.

        Args:
            data: its bytes.
            now: this computer's time, seconds.
            simulated: the last that ``/clock`` said, seconds; None if it said nothing yet.
        """
        if simulated is not None and not self._simulated:
            self._simulated = True  # ages by this computer's clock mean nothing then
            self._seen = [(at, size, None) for at, size, _ in self._seen]
        stamp = stamp_of(data, self.kind)
        clock = now if simulated is None else simulated
        self._seen.append((now, len(data), None if stamp is None else clock - stamp))

    def traffic(self) -> Traffic:
        """Everything so far."""
        if not self._seen:
            return Traffic(0, 0.0, 0)
        times, sizes, offsets = zip(*self._seen, strict=True)
        span = times[-1] - times[0]
        stamped = [o for o in offsets if o is not None]
        return Traffic(
            len(times),
            (len(times) - 1) / span if span > 0 else 0.0,
            int(np.median(sizes)),
            float(np.median(stamped)) if stamped else None,
        )
