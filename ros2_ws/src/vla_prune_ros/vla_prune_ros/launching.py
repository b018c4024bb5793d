"""What the launch files of vla_prune_bringup share. Imports launch and launch_ros, no rclpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, LogInfo, RegisterEventHandler
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

COMMON = {
    "contract": ("arm", "Topic map: a file, or a name in configs/ros."),
    "policy": ("", "Policy config: a file, or a name in configs/policy."),
    "recipe": ("dual_level", "Recipe: a file, or a name in configs/recipe."),
    "params": ("", "Parameter file; the arguments above win over it."),
    "namespace": ("", "Of all nodes and relative topics."),
    "timeout": ("180.0", "Seconds for each life-cycle transition; a large model needs more."),
    "rviz": ("false", "Also open RViz."),
}


def share(*parts: str) -> str:
    """A file of vla_prune_bringup."""
    return str(Path(get_package_share_directory("vla_prune_bringup")).joinpath(*parts))


def graph(
    executables: Sequence[tuple[str, str, Mapping[str, Any]]],
    nodes: Sequence[str],
    arguments: Mapping[str, tuple[str, str]] | None = None,
    sim_time: bool = False,
) -> LaunchDescription:
    """A launch description: processes, then a bring-up that says who hangs and stops all.

    Args:
        executables: package, executable, parameters (launch arguments by ``LaunchConfiguration``).
        nodes: life-cycle nodes in the order in which they become active.
        arguments: name -> default and description, over those that all have.
        sim_time: whether the nodes follow ``/clock``.
    """
    known = {**COMMON, **(arguments or {})}
    namespace = LaunchConfiguration("namespace")
    actions: list[Any] = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in known.items()
    ]
    for package, executable, given in executables:
        actions.append(
            Node(
                package=package,
                executable=executable,
                namespace=namespace,
                parameters=[
                    LaunchConfiguration("params"),
                    {"use_sim_time": sim_time, **given},
                ],
                output="screen",
                # A process that dies takes nobody with it; its supervisor may start it again.
                respawn=False,
            )
        )
    timeout = ParameterValue(LaunchConfiguration("timeout"), value_type=float)
    manager = Node(
        package="vla_prune_ros",
        executable="bring_up",
        namespace=namespace,
        parameters=[{"nodes": list(nodes), "timeout": timeout}],
        output="screen",
    )
    actions += [
        manager,
        RegisterEventHandler(OnProcessExit(target_action=manager, on_exit=_ended)),
    ]
    actions.append(
        Node(
            package="rviz2",
            executable="rviz2",
            arguments=["-d", share("layouts", "vla_prune.rviz")],
            condition=IfCondition(LaunchConfiguration("rviz")),
        )
    )
    return LaunchDescription(actions)


def _ended(event: Any, context: Any) -> list[Any]:
    """All nodes are active; or one is not, the bring-up said which, and nothing goes on."""
    if event.returncode == 0:
        return [LogInfo(msg="all nodes are active.")]
    reason = "a node did not become active (see bring_up above); everything is stopped."
    return [LogInfo(msg=reason), EmitEvent(event=Shutdown(reason=reason))]


def arguments(*names: str) -> dict[str, Any]:
    """Parameters that are launch arguments of the same name."""
    return {name: LaunchConfiguration(name) for name in names}
