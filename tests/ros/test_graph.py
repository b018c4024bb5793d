"""``vla-prune ros check``: the judgement, over graphs that are made up."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import typer
from typer.testing import CliRunner
from vla_prune_ros import cli
from vla_prune_ros.contract import Contract
from vla_prune_ros.graph import (
    CLOCK_TYPE,
    Endpoint,
    Finding,
    Graph,
    Meter,
    Traffic,
    absolute,
    judge,
    stamp_of,
)
from vla_prune_ros.qos import OUT, SENSOR_IN, Qos, conflict

from vla_prune.cli import main as vla_prune_main
from vla_prune.errors import ConfigError, MissingError

from .scene import IMAGE, JOINTS, contract, contract_data

FRONT, WRIST = "/front/image_raw", "/wrist/image_raw"
TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"


def good() -> Graph:
    ends = [
        Endpoint(FRONT, IMAGE, "/front_camera", True, SENSOR_IN),
        Endpoint(WRIST, IMAGE, "/wrist_camera", True, OUT),
        Endpoint("/joint_states", JOINTS, "/driver", True, OUT),
        Endpoint("/task", "std_msgs/msg/String", "/ui", True, OUT),
        Endpoint("/joint_trajectory", TRAJECTORY, "/controller", False, OUT),
        Endpoint("/joint_trajectory", TRAJECTORY, "/command_node", True, OUT),
    ]
    traffic = {
        FRONT: Traffic(150, 30.0, 921_700, 0.012),
        WRIST: Traffic(150, 30.0, 921_700, 0.014),
        "/joint_states": Traffic(500, 100.0, 300, 0.001),
    }
    return Graph(ends, traffic, 4_194_304, "rmw_cyclonedds_cpp", "rclpy", 5.0)


def levels(found: list[Finding]) -> set[str]:
    return {f.level for f in found}


def said(graph: Graph, topic: str, asked: Contract | None = None) -> str:
    return " ".join(f.text for f in judge(asked or contract(), graph) if f.topic == topic)


def without(graph: Graph, topic: str) -> Graph:
    return replace(graph, endpoints=[e for e in graph.endpoints if e.topic != topic])


def other(graph: Graph, topic: str, writes: bool = True, **changes) -> Graph:
    ends = [
        replace(e, **changes) if e.topic == topic and e.writes == writes else e
        for e in graph.endpoints
    ]
    return replace(graph, endpoints=ends)


def came(topic: str, **changes) -> Graph:
    graph = good()
    return replace(
        graph, traffic=graph.traffic | {topic: replace(graph.traffic[topic], **changes)}
    )


def test_a_graph_that_fits_is_all_right() -> None:
    found = judge(contract(), good())
    assert levels(found) == {"ok"}
    assert {f.topic for f in found} == {
        FRONT, WRIST, "/joint_states", "/task", "/joint_trajectory",
    }  # fmt: skip
    assert "30.0 Hz, 921700 bytes, 12 ms old" in said(good(), FRONT)


@pytest.mark.parametrize(
    ("graph", "topic", "level", "text"),
    [
        (
            without(good(), FRONT),
            FRONT,
            "error",
            f"nobody publishes it; topics of this type: {WRIST}",
        ),
        (
            other(good(), FRONT, type="sensor_msgs/msg/CompressedImage"),
            FRONT,
            "error",
            "has type sensor_msgs/msg/CompressedImage, the contract says",
        ),
        (
            other(good(), "/joint_trajectory", False, qos=replace(OUT, deadline_ms=10)),
            "/joint_trajectory",
            "error",
            "asks for a deadline of 10 ms, the writer gives 100 ms",
        ),
        (
            other(
                good(), "/joint_trajectory", False, qos=replace(OUT, durability="transient_local")
            ),
            "/joint_trajectory",
            "error",
            "asks for transient_local",
        ),
        (without(good(), "/joint_trajectory"), "/joint_trajectory", "warning", "nobody listens"),
        (
            other(good(), "/joint_trajectory", node="/teleop"),
            "/joint_trajectory",
            "error",
            "/teleop commands it too",
        ),
        (came(FRONT, messages=0), FRONT, "error", "nothing came in 5 s"),
        (came(FRONT, offset_s=-0.6), FRONT, "error", "stamps are 0.60 s ahead of this clock"),
        (came(FRONT, offset_s=0.4), FRONT, "error", "0.40 s old on arrival, the limit is 0.15 s"),
        (
            replace(came(FRONT, size=2_764_900), rmem_max=212_992),
            FRONT,
            "warning",
            "largest receive buffer is 212992 bytes, so frames get lost",
        ),
        (came(FRONT, size=2_764_900), FRONT, "warning", "Cyclone's default buffer"),
        (
            replace(good(), rmw="rmw_fastrtps_cpp", source="dds"),
            FRONT,
            "warning",
            "between Fast DDS and Cyclone get lost",
        ),
        (
            replace(
                good(), endpoints=[*good().endpoints, Endpoint(FRONT, IMAGE, "/twin", True, OUT)]
            ),
            FRONT,
            "warning",
            "2 nodes publish it: /front_camera, /twin",
        ),
    ],
)
def test_what_does_not_fit_is_told(graph: Graph, topic: str, level: str, text: str) -> None:
    found = judge(contract(), graph)
    assert text in said(graph, topic)
    assert level in {f.level for f in found if f.topic == topic}
    # A fault of one topic is none of the others.
    assert levels([f for f in found if f.topic != topic]) <= {"ok", "warning"}


def test_a_slow_camera_is_told() -> None:
    data = contract_data()["observations"]
    data[0]["rate_hz"] = 30
    asked = contract(observations=data)
    assert "12.0 Hz come, 30 Hz are expected" in said(came(FRONT, hz=12.0), FRONT, asked)
    assert "are expected" not in said(came(FRONT, hz=28.0), FRONT, asked)


def test_a_best_effort_camera_and_a_reliable_reader_do_not_meet() -> None:
    data = contract_data()["observations"]
    data[0]["qos"] = {"reliability": "reliable"}
    text = said(good(), FRONT, contract(observations=data))
    assert "no message gets through: the reader asks for reliable, the writer offers best" in text


def test_sizes_are_judged_before_a_frame_came() -> None:
    data = contract_data()["observations"]
    data[0]["image"] = {"shape": [720, 1280]}
    graph = replace(good(), traffic={}, rmem_max=212_992)
    assert "messages of 2764800 bytes" in said(graph, FRONT, contract(observations=data))


@pytest.mark.parametrize(
    ("offered", "asked", "clash"),
    [
        (Qos("reliable"), Qos("best_effort"), False),
        (Qos("best_effort"), Qos("reliable"), True),
        (Qos(durability="transient_local"), Qos(durability="volatile"), False),
        (Qos(durability="volatile"), Qos(durability="transient_local"), True),
        (Qos(deadline_ms=50), Qos(deadline_ms=100), False),
        (Qos(deadline_ms=100), Qos(deadline_ms=50), True),
        (Qos(deadline_ms=0), Qos(deadline_ms=50), True),
    ],
)
def test_quality_of_service_matches_as_dds_says(offered: Qos, asked: Qos, clash: bool) -> None:
    assert bool(conflict(offered, asked)) == clash


def test_names_are_put_into_the_namespace() -> None:
    assert absolute("camera/image", "/arm") == "/arm/camera/image"
    assert absolute("camera/image", "") == absolute("camera/image") == "/camera/image"
    assert absolute("/clock", "/arm") == "/clock"


def test_a_meter_reads_stamps_out_of_the_bytes() -> None:
    pytest.importorskip("rosbags")
    from vla_prune_ros import wire

    from .scene import image, joints

    meter = Meter(IMAGE)
    for i in range(11):
        data = bytes(wire.encode(image(50.0 + 0.1 * i, size=8), IMAGE))
        meter.count(data, 50.02 + 0.1 * i)
    traffic = meter.traffic()
    assert (traffic.messages, traffic.size) == (11, len(data))
    np.testing.assert_allclose([traffic.hz, traffic.offset_s], [10.0, 0.02], atol=1e-6)
    assert stamp_of(bytes(wire.encode(joints(3.25), JOINTS)), JOINTS) == 3.25
    assert stamp_of(b"\0\1\0\0", IMAGE) is None
    assert Meter(IMAGE).traffic() == Traffic(0, 0.0, 0)


def test_ages_are_in_simulated_time_where_there_is_one() -> None:
    pytest.importorskip("rosbags")
    from vla_prune_ros import wire

    from .scene import image

    clock = wire.make(CLOCK_TYPE, {"clock": {"sec": 3, "nanosec": 500_000_000}})
    assert stamp_of(bytes(wire.encode(clock, CLOCK_TYPE)), CLOCK_TYPE) == 3.5
    meter, today = Meter(IMAGE), 1.8e9
    for i in range(20):
        stamp = 1.0 + 0.1 * i
        data = bytes(wire.encode(image(stamp, size=8), IMAGE))
        meter.count(data, today + 0.1 * i, stamp + 0.004 if i else None)  # the first came before
    traffic = meter.traffic()
    np.testing.assert_allclose([traffic.hz, traffic.offset_s], [10.0, 0.004], atol=1e-6)
    graph = replace(came(FRONT, offset_s=traffic.offset_s), simulated=True)
    assert levels(judge(contract(), graph)) == {"ok"}
    assert "nodes need use_sim_time" in said(graph, "/clock")


# The command


def app() -> typer.Typer:
    made = typer.Typer()
    made.command()(lambda: None)
    cli.register(made)
    return made


def invoke(monkeypatch: pytest.MonkeyPatch, graph: Graph, *args: str):
    monkeypatch.setattr(cli, "reader", lambda via: "made_up")
    monkeypatch.setitem(cli.READERS, "made_up", "tests.ros.test_graph:made_up")
    monkeypatch.setattr(made_up, "graph", graph, raising=False)
    return CliRunner().invoke(app(), ["ros", "check", *args])


def made_up(*_: object) -> Graph:
    return made_up.graph


def test_the_command_tells_and_exits_by_what_it_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(contract_data()))
    result = invoke(monkeypatch, good(), str(path), "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout.strip().splitlines()[-1])
    assert levels([Finding(**f) for f in document["findings"]]) == {"ok"}
    assert document["traffic"][FRONT]["hz"] == 30.0
    assert invoke(monkeypatch, without(good(), FRONT), str(path)).exit_code == 1


def test_the_exit_code_reaches_the_shell(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(contract_data()))
    for graph, code in ((good(), None), (without(good(), FRONT), 1)):
        invoke(monkeypatch, graph, str(path))
        monkeypatch.setattr(sys, "argv", ["vla-prune", "ros", "check", str(path)])
        try:
            vla_prune_main()
            ended = None
        except SystemExit as exit_:
            ended = exit_.code
        assert ended == code


def test_without_a_way_to_read_the_graph_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"neither rclpy nor cyclonedds .* 'vla-prune\[dds\]'"):
        cli.reader("auto")
    with pytest.raises(MissingError, match="rclpy cannot be imported"):
        cli.reader("rclpy")
    with pytest.raises(ConfigError, match="did you mean 'rclpy'"):
        cli.reader("rclpi")
