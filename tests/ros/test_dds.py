"""Real ROS 2 bytes on the loopback wire, between two processes and no ROS."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="pip install 'vla-prune[dds]'")
pytest.importorskip("cyclonedds", reason="pip install 'vla-prune[dds]'")

from vla_prune_ros import dds, graph_dds, wire
from vla_prune_ros.contract import load_contract
from vla_prune_ros.convert import image_fields, to_rgb
from vla_prune_ros.graph import judge, topics
from vla_prune_ros.qos import LATCHED, OUT, SENSOR_IN

from vla_prune.errors import ConfigError

from .conftest import WORKSPACE
from .scene import CHUNK, IMAGE, chunk

DOMAIN = 1 + os.getpid() % 95  # of its own; below the ephemeral ports
RELAY = """
import sys
sys.path[:0] = [{folder!r}]
from vla_prune_ros import dds
from vla_prune_ros.qos import OUT
with dds.node("relay", domain={domain}) as node:
    ways = []
    for name, kind in (("image", {image!r}), ("chunk", {chunk!r})):
        ways.append((node.subscription(name, kind, OUT), node.publisher(f"{{name}}_back", kind)))
    sys.stdout.write("ready\\n")
    sys.stdout.flush()
    while True:
        for ear, mouth in ways:
            if ear.wait(0.02):
                for data in ear.take():
                    mouth.send(data)
"""


def until(done: Callable[[], bool], what: str) -> None:
    """Wait for it; a generous limit, since machines are busy."""
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end, what
        time.sleep(0.01)


@pytest.fixture(scope="module")
def relay():
    text = RELAY.format(
        folder=str(WORKSPACE / "vla_prune_ros"), domain=DOMAIN, image=IMAGE, chunk=CHUNK
    )
    process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    yield
    process.kill()
    process.wait()


def there_and_back(name: str, kind: str) -> tuple:
    node = dds.Node("tester", domain=DOMAIN)
    mouth, ear = node.publisher(name, kind), node.subscription(f"{name}_back", kind, OUT)
    until(lambda: mouth.matched() and ear.matched(), f"no relay for {name}")
    return node, mouth, ear


def test_images_come_back_byte_for_byte(relay: None) -> None:
    node, mouth, ear = there_and_back("image", IMAGE)
    for seed, shape in enumerate([(480, 640, 3), (1, 1, 3), (720, 1280, 3)]):
        pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
        mouth.publish(image_fields(pixels, 12.5 + seed, "front"))
        until(lambda: ear.wait(0.1), f"image {shape} was lost")
        [message] = ear.messages()
        np.testing.assert_array_equal(to_rgb(message), pixels)
        assert (message.header.stamp.sec, message.header.frame_id) == (12 + seed, "front")
    node.close()


def test_chunks_come_back_equal(relay: None) -> None:
    node, mouth, ear = there_and_back("chunk", CHUNK)
    sent = chunk(7.25, np.arange(6).reshape(3, 2), episode="e", tick=4)
    mouth.publish(sent)
    until(lambda: ear.wait(0.1), "the chunk was lost")
    [message] = ear.messages()
    assert bytes(wire.encode(message, CHUNK)) == bytes(wire.encode(sent, CHUNK))
    np.testing.assert_array_equal(message.values, np.arange(6))
    node.close()


def test_a_late_reader_gets_what_is_latched() -> None:
    with dds.node("writer", domain=DOMAIN) as writer, dds.node("reader", domain=DOMAIN) as reader:
        writer.publisher("task", "std_msgs/msg/String", LATCHED).publish({"data": "pick it up"})
        ear = reader.subscription("task", "std_msgs/msg/String", LATCHED)
        until(lambda: ear.wait(0.1), "nothing was latched")
        assert ear.messages()[0].data == "pick it up"


def test_the_graph_is_seen_as_ros_2_shows_it() -> None:
    contract = load_contract("vehicle")
    with dds.node("camera_driver", "/rig", domain=DOMAIN) as node:
        front = node.publisher("/camera/CAM_FRONT/image_raw", IMAGE, OUT)
        node.subscription("/plan", "nav_msgs/msg/Path", OUT)
        node.publisher("/state", "std_msgs/msg/Float64MultiArray", SENSOR_IN)
        front.publish(image_fields(np.zeros((2, 2, 3), np.uint8), time.time()))
        graph = graph_dds.read(topics(contract), 1.5, DOMAIN)
    ends = {(e.topic, e.writes): e for e in graph.endpoints}
    seen = ends["/camera/CAM_FRONT/image_raw", True]
    assert (seen.type, seen.node) == (IMAGE, "/rig/camera_driver")
    assert (seen.qos.reliability, seen.qos.durability) == ("reliable", "volatile")
    assert ends["/state", True].qos.reliability == "best_effort"
    assert not ends["/plan", False].writes
    found = judge(contract, graph)
    missing = [f.text for f in found if f.topic == "/camera/CAM_FRONT_LEFT/image_raw"]
    assert "nobody publishes it; topics of this type: /camera/CAM_FRONT/image_raw" in missing[0]
    assert [f.level for f in found if f.topic == "/plan"] == ["ok"]


def test_the_type_hash_is_in_the_endpoints_user_data() -> None:
    qos = dds._cyclone(OUT, IMAGE)
    told = qos[dds.Policy.Userdata].data.decode()
    assert told == f"typehash={wire.type_hash(IMAGE)};"


def test_a_domain_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 to 232"):
        dds.Node("x", domain=400)
