"""A rosbag2 recording into the fused policy: ``bag:=FOLDER``, of which no command is played."""

from launch import LaunchDescription
from launch.substitutions import LaunchConfiguration
from launch_ros.parameter_descriptions import ParameterValue
from vla_prune_ros.launching import arguments, graph, share


def generate_launch_description() -> LaunchDescription:
    """Replay, policy, command and overlay, in the recording's time."""
    rate = ParameterValue(LaunchConfiguration("rate"), value_type=float)
    typed = {
        "rate": rate,
        "loop": ParameterValue(LaunchConfiguration("loop"), value_type=bool),
    }
    return graph(
        [
            (
                "vla_prune_ros",
                "fused",
                arguments("contract", "policy", "recipe") | {"clock_rate": rate},
            ),
            ("vla_prune_ros", "replay_node", arguments("contract", "bag") | typed),
        ],
        ["policy_node", "command_node", "overlay_node", "replay_node"],
        {
            "bag": ("", "Folder of the recording."),
            "rate": ("1.0", "Recorded seconds per second."),
            "loop": ("false", "Begin again at the end."),
            "contract": ("libero", "Topic map: a file, or a name in configs/ros."),
            "policy": ("pocket_libero_object", "Policy config: a file, or a name."),
            "params": (share("config", "pocket_libero.yaml"), "Parameter file."),
        },
        sim_time=True,
    )
