"""A rosbag2 recording as topics, in real time or at another rate, with ``/clock``.

Plays what the contract observes and nothing else, unless it is told to play all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_prune_ros.contract import load_contract
from vla_prune_ros.node import ManagedNode, run
from vla_prune_ros.qos import LATCHED, OUT
from vla_prune_ros.replay import Recording, Replay
from vla_prune_ros.stamps import time_fields

PERIOD_S = 0.002


class ReplayNode(ManagedNode):
    """A thin shell over ``Replay``. Messages go out as the bytes that were recorded."""

    def __init__(self, **options: Any) -> None:
        super().__init__("replay_node", **options)

    def configure(self, values: Mapping[str, Any]) -> None:
        """Open the recording."""
        only = None
        if values["topics"] == "contract":
            sources = load_contract(values["contract"]).sources
            only = [self.resolve_topic_name(source.topic) for source in sources]
        self.recording = Recording(values["bag"], values["rate"], values["loop"], only)
        self.topics = self.recording.topics()

    def activate(self, values: Mapping[str, Any]) -> None:
        """Publish what was recorded, from the beginning."""
        self.replay = Replay(self.recording)
        self.raw = {}
        for topic, kind in self.topics.items():
            qos = LATCHED if kind == "std_msgs/msg/String" else OUT  # a task is read late, too
            try:
                self.raw[topic] = self.speak(kind, topic, qos)
            except (ModuleNotFoundError, AttributeError, ValueError):
                self.health.notes.append(f"{topic} is not played: {kind} is not installed here.")
        clock = values["publish_clock"] and "/clock" not in self.topics
        self.time = self.speak("rosgraph_msgs/msg/Clock", "/clock") if clock else None
        self.begun = self.clock.steady()
        self.every(PERIOD_S, self.step)

    def step(self) -> None:
        """Send what is due."""
        for recorded in self.replay.due(self.clock.steady() - self.begun):
            if self.time is not None:
                self.time({"clock": time_fields(recorded.time_s)})
            if recorded.topic in self.raw:
                self.raw[recorded.topic](bytes(recorded.data))
            self.health.rate.count(self.clock.steady())
            self.health.runs()
        if self.replay.over:
            self.health.waits("the recording is over.")
        self.tell_if_new()


def main(args: list[str] | None = None) -> None:
    """Run the node."""
    run(lambda: [ReplayNode()], args)
