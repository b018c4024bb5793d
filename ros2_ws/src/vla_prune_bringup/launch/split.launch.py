"""The pruner beside the cameras, the policy elsewhere: ``side:=pruner``, ``side:=policy``."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from vla_prune_ros.launching import arguments, graph, share

SIDES = {
    "pruner": (["pruner_node"], ["pruner_node"]),
    "policy": (["policy_node", "command_node"], ["policy_node", "command_node"]),
    "both": (
        ["pruner_node", "policy_node", "command_node"],
        ["pruner_node", "policy_node", "command_node"],
    ),
}


def generate_launch_description() -> LaunchDescription:
    """One side, or both for a try on one machine."""
    return LaunchDescription(
        [
            DeclareLaunchArgument("side", default_value="both", choices=list(SIDES)),
            OpaqueFunction(function=_side),
        ]
    )


def _side(context: object) -> list[LaunchDescription]:
    executables, nodes = SIDES[context.launch_configurations["side"]]
    processes = []
    for name in executables:
        given = ("contract",) if name == "command_node" else ("contract", "policy", "recipe")
        values = arguments(*given) | ({"input": "tokens"} if name == "policy_node" else {})
        processes.append(("vla_prune_ros", name, values))
    defaults = {
        "contract": ("libero", "Topic map: a file, or a name in configs/ros."),
        "policy": ("pocket_libero_object", "Policy config: a file, or a name."),
        "recipe": ("divprune", "One that cuts at the projector, or all tokens cross the wire."),
        "params": (share("config", "pocket_libero.yaml"), "Parameter file."),
    }
    return [graph(processes, nodes, defaults)]
