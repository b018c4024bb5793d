"""The interface files are what ROS 2 would accept, and the packages what colcon would build."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags")

from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from vla_prune_ros import wire

from .conftest import WORKSPACE

MESSAGES = sorted((WORKSPACE / "vla_prune_msgs").glob("msg/*.msg"))
SERVICES = sorted((WORKSPACE / "vla_prune_msgs").glob("srv/*.srv"))
PACKAGES = sorted(p.parent for p in WORKSPACE.glob("*/package.xml"))
HASHES = {"encoder_hash", "reconstructor_hash", "recipe_hash", "episode_id"}


@pytest.mark.parametrize("path", MESSAGES, ids=lambda p: p.stem)
def test_a_message_survives_its_own_bytes(path: Path) -> None:
    kind = f"vla_prune_msgs/msg/{path.stem}"
    data = wire.encode(wire.make(kind), kind)
    assert bytes(wire.encode(wire.decode(data, kind), kind)) == bytes(data)
    assert re.fullmatch(r"RIHS01_[0-9a-f]{64}", wire.type_hash(kind))


@pytest.mark.parametrize("path", SERVICES, ids=lambda p: p.stem)
def test_both_halves_of_a_service_parse(path: Path) -> None:
    halves = path.read_text(encoding="utf-8").split("\n---\n")
    assert len(halves) == 2
    store = get_typestore(Stores.ROS2_JAZZY)
    for half, text in zip(("Request", "Response"), halves, strict=True):
        kind = f"vla_prune_msgs/msg/{path.stem}{half}"
        store.register(get_types_from_msg(text, kind))
    fields = dict(store.fielddefs[f"vla_prune_msgs/msg/{path.stem}Response"][1])
    assert {"success", "message"} <= set(fields)


@pytest.mark.parametrize("name", ["VisualTokens", "TokenScores"])
def test_the_pruned_stream_names_what_it_was_made_with(name: str) -> None:
    fields = dict(wire.types().fielddefs[f"vla_prune_msgs/msg/{name}"][1])
    assert HASHES | {"header"} <= set(fields)


def test_every_interface_is_generated() -> None:
    listed = (WORKSPACE / "vla_prune_msgs" / "CMakeLists.txt").read_text(encoding="utf-8")
    for path in (*MESSAGES, *SERVICES):
        assert f'"{path.parent.name}/{path.name}"' in listed


def test_an_unknown_field_or_type_is_named() -> None:
    with pytest.raises(Exception, match="did you mean 'horizon'"):
        wire.make("vla_prune_msgs/msg/ActionChunk", {"horizn": 3})
    with pytest.raises(Exception, match="did you mean 'vla_prune_msgs/msg/ActionChunk'"):
        wire.make("vla_prune_msgs/msg/ActionChunks")


def test_fields_arrive_as_they_were_given() -> None:
    kind = "vla_prune_msgs/msg/ActionChunk"
    given = {"names": ["a", "b"], "horizon": 2, "dt": 0.05, "values": [1, 2, 3, 4]}
    given |= {"cameras": [{"name": "front", "rows": 12, "cols": 12, "kept": 3}]}
    back = wire.decode(wire.encode(wire.make(kind, given), kind), kind)
    assert list(back.names) == ["a", "b"]
    assert back.values.dtype == np.float32
    np.testing.assert_array_equal(back.values, [1, 2, 3, 4])
    assert (back.cameras[0].name, back.cameras[0].kept) == ("front", 3)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.name)
def test_a_package_is_what_colcon_wants(package: Path) -> None:
    about = ET.parse(package / "package.xml").getroot()
    assert about.findtext("name") == package.name
    # A malformed address makes colcon treat an ament_python package as plain Python (ROS2.md).
    address = about.find("maintainer").get("email")
    assert re.fullmatch(r"[\w.+-]+@[\w-]+(\.[\w-]+)+", address)
    assert about.findtext("license") == "Apache-2.0"
    build = about.find("export").findtext("build_type")
    if build == "ament_python":
        assert (package / "resource" / package.name).is_file()
        assert f"$base/lib/{package.name}" in (package / "setup.cfg").read_text(encoding="utf-8")
        assert (package / package.name / "__init__.py").is_file()
    else:
        assert build == "ament_cmake"
        assert (package / "CMakeLists.txt").is_file()


def test_packages_have_the_librarys_version() -> None:
    text = (WORKSPACE.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+)"', text, re.MULTILINE).group(1)
    for package in PACKAGES:
        assert ET.parse(package / "package.xml").getroot().findtext("version") == version


@pytest.mark.parametrize("package", ["vla_prune_ros", "vla_prune_sim_bridge"])
def test_every_entry_point_exists(package: str) -> None:
    setup = (WORKSPACE / package / "setup.py").read_text(encoding="utf-8")
    nodes = re.search(r"NODES = \((.*?)\)", setup, re.DOTALL)
    names = re.findall(r'"(\w+)"', nodes.group(1)) if nodes else ["sim_bridge"]
    for name in names:
        source = (WORKSPACE / package / package / f"{name}.py").read_text(encoding="utf-8")
        assert "\ndef main(" in source
