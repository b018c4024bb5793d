"""``ros2 run vla_prune_ros bring_up``: configures and activates the ``nodes``, in order."""

from __future__ import annotations

import sys
import time
from typing import Any

import rclpy
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.node import Node

from vla_prune_ros.bring_up import bring_up


class RosPeer:
    """A life-cycle node over its services."""

    def __init__(self, node: Node, name: str) -> None:
        self.name, self._node = name, node
        self._change = node.create_client(ChangeState, f"{name}/change_state")
        self._state = node.create_client(GetState, f"{name}/get_state")

    def change(self, transition: str, timeout_s: float) -> bool | None:
        """Ask for a transition."""
        request = ChangeState.Request()
        request.transition.label = transition
        reply = self._ask(self._change, request, timeout_s)
        return None if reply is None else reply.success

    def state(self, timeout_s: float) -> str | None:
        """Ask for the state."""
        reply = self._ask(self._state, GetState.Request(), timeout_s)
        return None if reply is None else reply.current_state.label

    def _ask(self, client: Any, request: Any, timeout_s: float) -> Any:
        end = time.monotonic() + timeout_s
        if not client.wait_for_service(timeout_sec=timeout_s):
            return None
        future = client.call_async(request)
        rclpy.spin_until_future_complete(
            self._node, future, timeout_sec=max(0.1, end - time.monotonic())
        )
        if future.done():
            return future.result()
        client.remove_pending_request(future)
        return None


def main(args: list[str] | None = None) -> None:
    """Exit 0 when all are active, 1 with a sentence when one is not."""
    rclpy.init(args=args)
    node = Node("bring_up")
    try:
        names = node.declare_parameter("nodes", ["policy_node", "command_node"]).value
        timeout = node.declare_parameter("timeout", 120.0).value
        failed = bring_up([RosPeer(node, name) for name in names], timeout, node.get_logger().info)
        if failed:
            node.get_logger().fatal(failed)
        sys.exit(1 if failed else 0)
    except KeyboardInterrupt:
        sys.exit(1)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
