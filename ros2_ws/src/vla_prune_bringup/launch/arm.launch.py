"""An arm: cameras and joint states in, joint trajectories out; everything in one process.

``policy:=NAME`` is one that says joint positions; none is shipped.
"""

from launch import LaunchDescription
from vla_prune_ros.launching import arguments, graph, share


def generate_launch_description() -> LaunchDescription:
    """Policy, command and overlay, fused."""
    return graph(
        [("vla_prune_ros", "fused", arguments("contract", "policy", "recipe"))],
        ["policy_node", "command_node", "overlay_node"],
        {
            "params": (share("config", "pocket_libero.yaml"), "Parameter file."),
        },
    )
