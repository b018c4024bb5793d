"""The whole graph on the synthetic driving world, no robot; ``driver:=rule_expert`` replays."""

from launch import LaunchDescription
from launch.substitutions import LaunchConfiguration
from launch_ros.parameter_descriptions import ParameterValue
from vla_prune_ros.launching import arguments, graph, share


def generate_launch_description() -> LaunchDescription:
    """World, policy, command and overlay, in simulated time."""
    rate = ParameterValue(LaunchConfiguration("rate"), value_type=float)
    typed = {
        "task": ParameterValue(LaunchConfiguration("task"), value_type=int),
        "rate": rate,
        "options": ParameterValue(LaunchConfiguration("options"), value_type=str),
    }
    return graph(
        [
            (
                "vla_prune_ros",
                "fused",
                arguments("contract", "policy", "recipe") | {"clock_rate": rate},
            ),
            (
                "vla_prune_sim_bridge",
                "sim_bridge",
                arguments("contract", "world", "suite", "driver") | typed,
            ),
        ],
        ["policy_node", "command_node", "overlay_node", "sim_bridge"],
        {
            "contract": ("vehicle", "Topic map of the simulated robot."),
            "policy": ("pocket_drive", "Policy config: a file, or a name."),
            "params": (share("config", "pocket_drive.yaml"), "Parameter file."),
            "world": ("vla_prune_sim.drive.world:DriveWorld", "module:Class of a world."),
            "options": (
                "{image_size: [256, 144], square: 144, plan_steps: 1}",
                "Its arguments, as YAML.",
            ),
            "suite": ("drive", "Suite of tasks."),
            "task": ("0", "Task, or scene."),
            "driver": ("", "A reference driver moves the world; commands do not."),
            "rate": ("1.0", "Simulated seconds per second."),
        },
        sim_time=True,
    )
