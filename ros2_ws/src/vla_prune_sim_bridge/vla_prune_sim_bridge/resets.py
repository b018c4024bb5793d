"""Nodes that remember are told to forget before the next episode shows itself. No rclpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

AGAIN_S = 2.0  # without an answer: requests and replies get lost (ROS2.md)


class Peer(Protocol):
    """A node's ``Reset``, asked without waiting."""

    name: str

    def there(self) -> bool:
        """Whether somebody offers it."""
        ...

    def ask(self) -> None:
        """Send a request; an answer to one before counts no more."""
        ...

    def answered(self) -> bool:
        """Whether the last request was done."""
        ...


class Resets:
    """Has all nodes forget an episode, one after the other.

    A node that is not there remembers nothing. One that is there and does not answer is asked
    again, for as long as it takes.

    Args:
        peers: in the way of the data, so that none gets anything more of the episode from a node
            that still remembers it.
    """

    def __init__(self, peers: Sequence[Peer] = ()) -> None:
        self.peers = tuple(peers)
        self.begin()

    def begin(self) -> None:
        """All have to forget anew."""
        self._left = list(self.peers)
        self._asked_s: float | None = None

    def waits_for(self, steady_s: float) -> str:
        """The node that has yet to forget, which is asked; empty once all that are there have.

        Args:
            steady_s: steady time.
        """
        while self._left:
            peer = self._left[0]
            if peer.there() and not self._answered(peer, steady_s):
                return peer.name
            self._left.pop(0)
            self._asked_s = None
        return ""

    def _answered(self, peer: Peer, steady_s: float) -> bool:
        if self._asked_s is not None and peer.answered():
            return True
        if self._asked_s is None or steady_s - self._asked_s >= AGAIN_S:
            peer.ask()
            self._asked_s = steady_s
        return peer.answered()
