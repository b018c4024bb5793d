"""Who imports rclpy and the simulators in ros2_ws: nodes alone, and the bridge alone."""

import ast
import subprocess
import sys

import pytest

from .conftest import WORKSPACE

NODES = {
    "pruner_node", "policy_node", "command_node", "overlay_node", "replay_node", "fused", "node",
    "bring_up_node", "graph_ros", "sim_bridge", "measure", "measure_nodes",
}  # fmt: skip
FILES = sorted(
    path
    for name in ("vla_prune_ros", "vla_prune_sim_bridge")
    for path in (WORKSPACE / name / name).glob("*.py")
)
ROS = {"rclpy", "rcl_interfaces", "lifecycle_msgs", "vla_prune_msgs"}


def imports(path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_only_node_files_know_rclpy(path) -> None:
    assert path.stem in NODES or not imports(path) & ROS


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_only_the_bridge_knows_the_simulators(path) -> None:
    assert "sim_bridge" in str(path) or "vla_prune_sim" not in imports(path)


def test_the_robot_side_loads_no_torch() -> None:
    modules = ("command_loop", "contract", "convert", "graph", "replay", "tokens")
    names = ", ".join(f"vla_prune_ros.{module}" for module in modules)
    folder = str(WORKSPACE / "vla_prune_ros")
    code = f"import sys; sys.path[:0] = [{folder!r}]; import {names}"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_readme_names_every_file() -> None:
    readme = (WORKSPACE / "vla_prune_ros" / "README.md").read_text(encoding="utf-8")
    for path in FILES:
        if path.parent.name == "vla_prune_ros" and path.stem != "__init__":
            assert f"`{path.stem}`" in readme, path.stem
