"""ROS 2 topics without ROS: the cyclonedds wheel, with CDR bytes from rosbags.

Topics alone: no services, actions, parameters or ROS time. Tested with itself here and with
rmw_cyclonedds (ROS2.md); large images into Fast DDS get lost, so do not use it there. Stays on the
loopback interface unless told otherwise.

Wire facts (ROS2.md): topic ``rt/NAME``, type ``PKG::msg::dds_::TYPE_``, XCDR1 little endian, the
type's hash in the endpoint's user data, and one sample of ``ros_discovery_info`` so that
``ros2 node list`` shows a name.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from vla_prune.errors import ConfigError, MissingError
from vla_prune_ros import wire
from vla_prune_ros.qos import OUT, SENSOR_IN, Qos

try:
    from cyclonedds.core import (
        InstanceState,
        Policy,
        ReadCondition,
        SampleState,
        ViewState,
        WaitSet,
    )
    from cyclonedds.core import Qos as CycloneQos
    from cyclonedds.domain import Domain, DomainParticipant
    from cyclonedds.idl import make_idl_struct
    from cyclonedds.idl import types as idl
    from cyclonedds.pub import DataWriter
    from cyclonedds.sub import DataReader
    from cyclonedds.topic import Topic
    from cyclonedds.util import duration
except ImportError as error:
    raise MissingError("cyclonedds is missing; pip install 'vla-prune[dds]'.") from error

DISCOVERY = "rmw_dds_common/msg/ParticipantEntitiesInfo"
LATE = Qos("reliable", 1, "transient_local")
# A frame above about 1 MB needs the larger buffer (ROS2.md); ``max`` takes what the kernel allows.
BUFFERS = """
    <Internal><SocketReceiveBufferSize max="4MB"/></Internal>
    <General>{where}
    <MaxMessageSize>65500B</MaxMessageSize><FragmentSize>65000B</FragmentSize></General>"""
LOOPBACK = """
    <Interfaces><NetworkInterface address="127.0.0.1"/></Interfaces>
    <AllowMulticast>false</AllowMulticast>"""
PEERS = """
    <Discovery><ParticipantIndex>auto</ParticipantIndex>
    <MaxAutoParticipantIndex>120</MaxAutoParticipantIndex>
    <Peers><Peer address="127.0.0.1"/></Peers></Discovery>"""
_DOMAINS: dict[int, Any] = {}


class Node:
    """One participant that ROS 2 sees as a node.

    Args:
        name: of the node.
        namespace: of the node; relative topics are put into it.
        domain: ``ROS_DOMAIN_ID`` where not given.
        loopback: stay on this machine. The environment's ``CYCLONEDDS_URI`` wins over it.
    """

    def __init__(
        self, name: str, namespace: str = "/", domain: int | None = None, loopback: bool = True
    ) -> None:
        if domain is None:
            domain = int(os.environ.get("ROS_DOMAIN_ID", "0"))
        if not 0 <= domain <= 232:
            raise ConfigError(f"dds: domain {domain} is none; give 0 to 232.")
        _open_domain(domain, loopback)
        self.name, self.namespace, self.domain = name, "/" + namespace.strip("/"), domain
        self.participant = DomainParticipant(domain, qos=_enclave())
        self._readers: list[Any] = []
        self._writers: list[Any] = []
        topic = Topic(self.participant, "ros_discovery_info", _carrier(DISCOVERY))
        qos = _cyclone(LATE, DISCOVERY)
        self._info = DataWriter(self.participant, topic, qos=qos)
        self._announce()

    def publisher(self, topic: str, kind: str, qos: Qos = OUT) -> Publisher:
        """For messages of type ``pkg/msg/Name``."""
        made = DataWriter(self.participant, self._topic(topic, kind), qos=_cyclone(qos, kind))
        self._writers.append(made)
        self._announce()
        return Publisher(made, kind)

    def subscription(
        self, topic: str, kind: str, qos: Qos = SENSOR_IN, raw: bool = False
    ) -> Subscription:
        """For messages of type ``pkg/msg/Name``; ``raw`` for a DDS topic that is no ROS 2 one."""
        name = Topic(self.participant, topic.strip("/"), _carrier(kind)) if raw else None
        about = name or self._topic(topic, kind)
        made = DataReader(self.participant, about, qos=_cyclone(qos, kind))
        self._readers.append(made)
        self._announce()
        return Subscription(made, kind, self.participant)

    def full(self, topic: str) -> str:
        """A topic's absolute name."""
        if topic.startswith("/"):
            return topic
        return f"{self.namespace.rstrip('/')}/{topic}"

    def close(self) -> None:
        """Leave the graph."""
        self._readers.clear()
        self._writers.clear()
        self._info = self.participant = None

    def _topic(self, name: str, kind: str) -> Any:
        return Topic(self.participant, f"rt{self.full(name)}", _carrier(kind))

    def _announce(self) -> None:
        """Say which endpoints are this node's."""
        info = {
            "node_namespace": self.namespace,
            "node_name": self.name,
            "reader_gid_seq": [_gid(reader) for reader in self._readers],
            "writer_gid_seq": [_gid(writer) for writer in self._writers],
        }
        fields = {"gid": _gid(self.participant), "node_entities_info_seq": [info]}
        Publisher(self._info, DISCOVERY).publish(fields)


class Publisher:
    """Sends messages of one topic."""

    def __init__(self, writer: Any, kind: str) -> None:
        self._writer, self.kind = writer, kind

    def publish(self, fields: Any) -> None:
        """Send fields, or a message that :func:`vla_prune_ros.wire.make` made."""
        message = wire.make(self.kind, fields) if isinstance(fields, dict) else fields
        self.send(wire.encode(message, self.kind))

    def send(self, data: bytes | memoryview) -> None:
        """Send CDR bytes as they are."""
        self._writer.write(self._writer.topic.data_type(bytes(data)))

    def matched(self) -> int:
        """How many readers there are."""
        return len(self._writer.get_matched_subscriptions())


class Subscription:
    """Receives messages of one topic."""

    def __init__(self, reader: Any, kind: str, participant: Any) -> None:
        self._reader, self.kind = reader, kind
        self._fresh = ReadCondition(
            reader, SampleState.NotRead | ViewState.Any | InstanceState.Any
        )
        self._waits = WaitSet(participant)
        self._waits.attach(self._fresh)

    def take(self, most: int = 16) -> list[bytes]:
        """The CDR bytes of what came since."""
        samples = self._reader.take(most)
        return [s.cdr for s in samples if getattr(s, "cdr", None) is not None]

    def messages(self, most: int = 16) -> list[Any]:
        """What came since, decoded."""
        return [wire.decode(data, self.kind) for data in self.take(most)]

    def wait(self, timeout_s: float) -> bool:
        """Until something comes; False if nothing did."""
        return self._waits.wait(duration(milliseconds=max(1, round(1e3 * timeout_s)))) > 0

    def matched(self) -> int:
        """How many writers there are."""
        return len(self._reader.get_matched_publications())


@contextmanager
def node(name: str, namespace: str = "/", **options: Any) -> Iterator[Node]:
    """A :class:`Node` that leaves at the end."""
    made = Node(name, namespace, **options)
    try:
        yield made
    finally:
        made.close()


class _Ready:
    """What makes an idl type carry ready CDR bytes instead of fields."""

    def __init__(self, cdr: bytes | None) -> None:
        self.cdr = cdr

    def serialize(self, buffer=None, endianness=None, use_version_2=None) -> bytes:
        """As they are."""
        return self.cdr

    @classmethod
    def deserialize(cls, data, has_header=True, use_version_2=None) -> Any:
        """As they came."""
        return cls(data)

    @classmethod
    def deserialize_key(cls, data, has_header=True, use_version_2=None) -> Any:
        """A writer that left: an invalid sample without contents."""
        return cls(None)


@cache
def _carrier(kind: str) -> type:
    """A DDS type whose samples are ready bytes; described field by field, so that it matches."""
    made = _described(kind)
    for name in ("__init__", "serialize", "deserialize", "deserialize_key"):
        setattr(made, name, vars(_Ready)[name])
    return made


@cache
def _described(kind: str) -> type:
    """The idl type of a message, from its definition."""
    fields = {name: _idl(d) for name, d in wire.types().fielddefs[kind][1]}
    package, _, name = kind.split("/")
    fields = fields or {"structure_needs_at_least_one_member": idl.uint8}
    return make_idl_struct(
        f"{package}_{name}", f"{package}.msg.dds_.{name}_", fields, dataclassify=False
    )


def _idl(described: Any) -> Any:
    nature, detail = described[0].name, described[1]
    if nature == "NAME":
        return _described(detail)
    if nature == "BASE":
        base, bound = detail
        if base == "string":
            return idl.bounded_str[bound] if bound else str
        if base == "bool":
            return bool
        return getattr(idl, {"byte": "uint8", "char": "uint8", "octet": "uint8"}.get(base, base))
    element, length = detail
    if nature == "ARRAY":
        return idl.array[_idl(element), length]
    return idl.sequence[_idl(element), length] if length else idl.sequence[_idl(element)]


def _cyclone(qos: Qos, kind: str) -> Any:
    """Our quality of service as Cyclone's, with the type's hash."""
    reliable = Policy.Reliability.Reliable(duration(milliseconds=100))
    kept = Policy.Durability.TransientLocal, Policy.Durability.Volatile
    policies = [
        reliable if qos.reliability == "reliable" else Policy.Reliability.BestEffort,
        kept[0] if qos.durability == "transient_local" else kept[1],
        Policy.History.KeepLast(qos.depth),
        Policy.DataRepresentation(use_cdrv0_representation=True),
        Policy.Userdata(f"typehash={wire.type_hash(kind)};".encode()),
    ]
    if qos.deadline_ms:
        policies.append(Policy.Deadline(duration(milliseconds=qos.deadline_ms)))
    if qos.lifespan_ms:
        policies.append(Policy.Lifespan(duration(milliseconds=qos.lifespan_ms)))
    return CycloneQos(*policies)


def _enclave() -> Any:
    return CycloneQos(Policy.Userdata(b"enclave=/;"))


def _gid(entity: Any) -> dict[str, Any]:
    guid: uuid.UUID = entity.guid
    return {"data": guid.bytes}


def _open_domain(domain: int, loopback: bool) -> None:
    """Configure a domain once in this process, unless the environment does."""
    if domain in _DOMAINS or os.environ.get("CYCLONEDDS_URI"):
        return
    where, peers = (LOOPBACK, PEERS) if loopback else ("", "")
    inside = f"{BUFFERS.format(where=where)}{peers}"
    _DOMAINS[domain] = Domain(
        domain, f'<CycloneDDS><Domain Id="{domain}">{inside}</Domain></CycloneDDS>'
    )
