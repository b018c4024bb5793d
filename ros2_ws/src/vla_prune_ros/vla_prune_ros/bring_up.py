"""Life-cycle nodes configured and activated in order, or one sentence about the one that hangs.

No rclpy: :mod:`vla_prune_ros.bring_up_node` asks the nodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

STEPS = ("configure", "activate")
# transition -> the state before it, the one while it runs, and the one that it ends in
TRANSITIONS = {
    "configure": ("unconfigured", "configuring", "inactive"),
    "activate": ("inactive", "activating", "active"),
    "deactivate": ("active", "deactivating", "inactive"),
    "cleanup": ("inactive", "cleaningup", "unconfigured"),
}
ASK_S, POLL_S = 5.0, 0.2  # for a reply; between two looks at a node that works


class Peer(Protocol):
    """A life-cycle node, seen from outside."""

    name: str

    def change(self, transition: str, timeout_s: float) -> bool | None:
        """Ask for a transition; whether it succeeded, None without a reply."""
        ...

    def state(self, timeout_s: float) -> str | None:
        """The label of its state, None without a reply."""
        ...


class SteadyTime:
    """This computer's."""

    def now(self) -> float:
        """Seconds."""
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)


def bring_up(
    peers: Sequence[Peer],
    timeout_s: float,
    say: Callable[[str], None] = lambda text: None,
    clock: SteadyTime | None = None,
) -> str:
    """Bring nodes to active; returns why it failed, empty if all are active.

    Args:
        peers: the nodes, in order.
        timeout_s: for each transition.
        say: told of every step.
        clock: where times come from.
    """
    for transition in STEPS:
        for peer in peers:
            failed = change(peer, transition, timeout_s, clock)
            if failed:
                return failed
            say(f"{peer.name} is {TRANSITIONS[transition][-1]}.")
    return ""


def change(peer: Peer, transition: str, timeout_s: float, clock: SteadyTime | None = None) -> str:
    """One transition; returns why it failed, empty if the node is where it should be.

    Requests and replies get lost: after a crash the request may go to the dead process, which the
    middleware forgets some seconds later only; one reply of 33 never came (ROS2.md). So no reply
    is waited for long, the node's state is what counts, and a request that left no trace is sent
    again.
    """
    clock = clock or SteadyTime()
    _, during, wanted = TRANSITIONS[transition]
    end, state = clock.now() + timeout_s, None
    while (left := end - clock.now()) > 0:
        done = None if state == during else peer.change(transition, min(ASK_S, left))
        state = wanted if done else peer.state(min(ASK_S, left))
        if state == wanted:
            return ""
        if done is False and state != during:
            return f"{peer.name} refused '{transition}' and is {state}; its log says why."
        if state == during:
            clock.wait(min(POLL_S, left))
    if state is None:
        return (
            f"{peer.name} did not answer '{transition}' within {timeout_s:g} s and tells no "
            "state; it hangs or never started. Look at its log."
        )
    return (
        f"{peer.name} did not finish '{transition}' within {timeout_s:g} s and is still {state}; "
        "a model may take longer to load: raise timeout, or look at its log."
    )
