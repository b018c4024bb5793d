"""Action chunks in, one limited command per tick out; the hold when there is no fresh one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_prune_msgs.srv import Reset

from vla_prune_ros import assemble
from vla_prune_ros.commands import check_installed
from vla_prune_ros.node import STATUS, ManagedNode, run
from vla_prune_ros.qos import OUT, command_qos


class CommandNode(ManagedNode):
    """A thin shell over ``CommandLoop``."""

    def __init__(self, **options: Any) -> None:
        super().__init__("command_node", **options)

    def configure(self, values: Mapping[str, Any]) -> None:
        """Read the contract; its types of messages have to be installed."""
        self.loop = assemble.command_loop(values, self.clock)
        for sink in self.loop.contract.sinks:
            check_installed(sink.type, self.loop.contract.where)
        self.health = self.loop.health

    def activate(self, values: Mapping[str, Any]) -> None:
        """Open the topics of the contract."""
        contract, period = self.loop.contract, self.loop.period_s
        self.loop.begin()
        self.sinks = {
            sink.topic: self.speak(sink.type, sink.topic, sink.qos or command_qos(period))
            for sink in contract.sinks
        }
        self.listen("vla_prune_msgs/msg/ActionChunk", "action_chunk", OUT, self.loop.put_chunk)
        self.listen(STATUS, "policy_node/status", OUT, self.loop.put_status)
        measured = self.loop.measured
        if measured is not None:
            self.listen(measured.type, measured.topic, measured.qos, self.loop.put_state)
        self.serve(Reset, "~/reset", self.on_reset)
        self.release = self.clock.steady() + period
        self.every(period, self.tick)

    def deactivate(self) -> None:
        """A last hold: the tick after a halt plays nothing of the chunk."""
        self.loop.halt("the command node was deactivated.")
        self.tick()

    def changed(self, name: str, value: Any) -> None:
        """Live parameters."""
        if name == "max_action_age_ms":
            self.loop.player.max_age_s = value / 1e3 or self.loop.contract.max_action_age_s
        elif name == "deadline_ms":
            self.health.deadline.period_s = value / 1e3 or self.loop.period_s
        elif name == "limit_scale":
            self.loop.set_limit_scale(value)
        elif name == "heartbeat_timeout_ms":
            self.loop.heartbeat_timeout_s = value / 1e3

    def tick(self) -> None:
        """One command on every topic of the contract."""
        made = self.loop.tick(self.release)
        self.release = max(self.release + self.loop.period_s, self.clock.steady())
        for topic, fields in made.messages.items():
            self.sinks[topic](fields)
        self.tell_if_new()

    def on_reset(self, request: Any, response: Any) -> Any:
        """Hold, and forget the chunk."""
        self.loop.reset(request.moved)
        response.success, response.episode_id = True, request.episode_id
        return response


def main(args: list[str] | None = None) -> None:
    """Run the node."""
    run(lambda: [CommandNode()], args)
