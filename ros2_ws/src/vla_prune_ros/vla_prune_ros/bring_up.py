"""Life-cycle nodes configured and activated in order, or one sentence about the one that hangs.

No rclpy: :mod:`vla_prune_ros.bring_up_node` asks the nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

STEPS = (("configure", "inactive"), ("activate", "active"))


class Peer(Protocol):
    """A life-cycle node, seen from outside."""

    name: str

    def change(self, transition: str, timeout_s: float) -> bool | None:
        """Ask for a transition; whether it succeeded, None without a reply."""
        ...

    def state(self, timeout_s: float) -> str | None:
        """The label of its state, None without a reply."""
        ...


def bring_up(
    peers: Sequence[Peer], timeout_s: float, say: Callable[[str], None] = lambda text: None
) -> str:
    """Bring nodes to active; returns why it failed, empty if all are active.

    A lost reply is no failure (1 of 33 launches, ROS2.md): the node's state is asked, and is what
    counts.

    Args:
        peers: the nodes, in order.
        timeout_s: for each transition.
        say: told of every step.
    """
    for transition, wanted in STEPS:
        for peer in peers:
            done = peer.change(transition, timeout_s)
            state = wanted if done else peer.state(min(5.0, timeout_s))
            if state != wanted:
                if done is None and state is None:
                    return (
                        f"{peer.name} did not answer '{transition}' within {timeout_s:g} s and "
                        "tells no state; it hangs or never started. Look at its log."
                    )
                if done is None:
                    return (
                        f"{peer.name} did not finish '{transition}' within {timeout_s:g} s and is "
                        f"still {state}; a model may take longer to load: raise timeout, or look "
                        "at its log."
                    )
                return f"{peer.name} refused '{transition}' and is {state}; its log says why."
            say(f"{peer.name} is {wanted}.")
    return ""
