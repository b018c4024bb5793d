"""Launch files, parameter files and layouts name only what exists."""

from __future__ import annotations

import ast
import json
import xml.etree.ElementTree as ET

import pytest
from omegaconf import OmegaConf
from vla_prune_ros import params

from .conftest import WORKSPACE

BRINGUP = WORKSPACE / "vla_prune_bringup"
LAUNCH = sorted(BRINGUP.glob("launch/*.launch.py"))
PARAMETERS = sorted(BRINGUP.glob("config/*.yaml"))
README = (BRINGUP / "README.md").read_text(encoding="utf-8")
EXECUTABLES = {"fused", *params.PARAMETERS}
# Launch arguments that all launch files have; the rest each declares.
COMMON = {"contract", "policy", "recipe", "params", "namespace", "timeout", "rviz"}


@pytest.mark.parametrize("path", PARAMETERS, ids=lambda p: p.name)
def test_a_parameter_file_sets_what_nodes_take(path) -> None:
    for node, entry in OmegaConf.to_container(OmegaConf.load(path)).items():
        name = node.removeprefix("/**/")
        for key, value in entry["ros__parameters"].items():
            params.check(name, key, value)
            if params.table(name)[key].type == "double":
                assert isinstance(value, float), f"{key}: ROS takes no integer for a double"


@pytest.mark.parametrize("path", LAUNCH, ids=lambda p: p.name)
def test_a_launch_file_starts_what_exists(path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert any(
        isinstance(n, ast.FunctionDef) and n.name == "generate_launch_description"
        for n in tree.body
    )
    strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    strings = {s for s in strings if isinstance(s, str)}
    assert strings & EXECUTABLES
    nodes = {s for s in strings if s.endswith("_node")}
    assert nodes <= set(params.PARAMETERS)
    for name in strings:
        if name.endswith(".yaml"):
            assert (BRINGUP / "config" / name).is_file()
    assert f"`{path.name}`" in README


def test_launch_files_time_out_and_say_so() -> None:
    source = WORKSPACE / "vla_prune_ros" / "vla_prune_ros" / "launching.py"
    text = source.read_text(encoding="utf-8")
    assert "OnProcessExit" in text
    assert "Shutdown" in text
    assert '"timeout"' in text
    for path in LAUNCH:
        assert "graph(" in path.read_text(encoding="utf-8")


def test_layouts_and_the_middlewares_file_are_well_formed() -> None:
    layout = json.loads((BRINGUP / "layouts" / "foxglove.json").read_text(encoding="utf-8"))
    for panel in ("Image!kept", "Plot!age", "DiagnosticSummary!all"):
        assert panel in layout["configById"]
    rviz = OmegaConf.load(BRINGUP / "layouts" / "vla_prune.rviz")
    shown = {d.get("Topic", {}).get("Value") for d in rviz["Visualization Manager"]["Displays"]}
    assert {"overlay/image_raw", "plan"} <= shown


def test_the_middleware_starts_where_the_kernel_allows_a_smaller_buffer() -> None:
    """Cyclone ends with an error if it does not get ``min``."""
    tree = ET.parse(BRINGUP / "config" / "cyclonedds.xml")
    (size,) = tree.iter("{https://cdds.io/config}SocketReceiveBufferSize")
    assert set(size.attrib) == {"max"}
    assert "rmem_max" in README


@pytest.mark.parametrize(
    ("package", "needed"),
    [("vla_prune_ros", {"launch", "launch_ros", "ament_index_python"}), (BRINGUP.name, {"rviz2"})],
)
def test_a_package_names_what_it_starts_with(package: str, needed: set) -> None:
    tree = ET.parse(WORKSPACE / package / "package.xml")
    assert needed <= {found.text for found in tree.iter("exec_depend")}


def test_every_node_is_in_the_readme() -> None:
    for name in params.PARAMETERS:
        assert f"### {name}" in README
