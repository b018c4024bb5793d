"""An arm: cameras and joint states in, joint trajectories out; everything in one process."""

from launch import LaunchDescription
from vla_prune_ros.launching import arguments, graph, share


def generate_launch_description() -> LaunchDescription:
    """Policy, command and overlay, fused."""
    return graph(
        [("vla_prune_ros", "fused", arguments("contract", "policy", "recipe"))],
        ["policy_node", "command_node", "overlay_node"],
        {
            "policy": ("pocket_libero_object", "Policy config: a file, or a name."),
            "params": (share("config", "pocket_libero.yaml"), "Parameter file."),
        },
    )
