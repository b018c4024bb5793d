"""Policy, command and overlay in one process on one executor: images in, commands out.

Each node keeps its own callback groups, so a long inference does not delay the command's tick.
"""

from __future__ import annotations

from vla_prune_ros.command_node import CommandNode
from vla_prune_ros.node import run
from vla_prune_ros.overlay_node import OverlayNode
from vla_prune_ros.policy_node import PolicyNode


def main(args: list[str] | None = None) -> None:
    """Run the three nodes."""
    run(lambda: [PolicyNode(), OverlayNode(), CommandNode()], args)
