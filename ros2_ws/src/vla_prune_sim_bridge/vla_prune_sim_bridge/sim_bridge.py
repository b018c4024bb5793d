"""A simulated robot or vehicle as topics, with simulated time; or its replay by a driver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_prune_msgs.srv import Reset
from vla_prune_ros.contract import load_contract
from vla_prune_ros.node import ManagedNode, run
from vla_prune_ros.qos import LATCHED, OUT

from vla_prune.errors import ConfigError
from vla_prune_sim_bridge.bridge import Bridge, Shown, read_options

PEERS = ("pruner_node", "policy_node", "command_node")  # in the way of the data
COMMANDS = {"nav_msgs/msg/Path": "put_path", "vla_prune_msgs/msg/ActionChunk": "put_action"}


class ResetPeer:
    """A node's ``~/reset``."""

    def __init__(self, node: ManagedNode, name: str) -> None:
        self.name, self._future = name, None
        # From configure on, so that at the first episode it is known who is there.
        self._client = node.create_client(Reset, f"{name}/reset", callback_group=node.inputs)
        node.stack.callback(node.destroy_client, self._client)

    def there(self) -> bool:
        """Whether its service was found."""
        return self._client.service_is_ready()

    def ask(self) -> None:
        """Send a request."""
        if self._future is not None:
            self._client.remove_pending_request(self._future)
        request = Reset.Request(reason="the simulator begins another episode.", moved=True)
        self._future = self._client.call_async(request)

    def answered(self) -> bool:
        """Whether it has forgotten."""
        return self._future.done() and self._future.result().success


class SimBridge(ManagedNode):
    """A thin shell over ``Bridge``. Topics are those of the contract that the policy reads."""

    def __init__(self, **options: Any) -> None:
        super().__init__("sim_bridge", **options)

    def configure(self, values: Mapping[str, Any]) -> None:
        """Open the world."""
        self.contract = load_contract(values["contract"])
        self.sinks = [s for s in self.contract.sinks if s.type in COMMANDS]
        if not self.sinks:
            raise ConfigError(
                f"sim_bridge: {self.contract.where} commands by "
                f"{', '.join(s.type for s in self.contract.sinks)}; the simulators take "
                f"{' or '.join(COMMANDS)}."
            )
        self.loop = Bridge(
            values["world"],
            read_options(values["options"]),
            values["suite"],
            values["task"],
            values["state"],
            values["seed"],
            values["driver"],
            peers=[ResetPeer(self, name) for name in PEERS],
            again=values["loop"],
        )
        self.stack.callback(self.loop.close)
        self.loop.check(self.contract)

    def activate(self, values: Mapping[str, Any]) -> None:
        """Open the topics of the contract, and let time begin."""
        self.time = self.speak("rosgraph_msgs/msg/Clock", "/clock")
        self.cameras = {s.camera: self.speak(s.type, s.topic, OUT) for s in self.contract.cameras}
        self.states = [self.speak(s.type, s.topic, OUT) for s in self.contract.states]
        task = self.contract.task
        self.task = None if task is None else self.speak(task.type, task.topic, LATCHED)
        for sink in self.sinks[:1]:
            self.listen(sink.type, sink.topic, OUT, getattr(self.loop, COMMANDS[sink.type]))
        self.loop.begin()
        self.step()
        self.every(self.loop.step_s / values["rate"], self.step)

    def step(self) -> None:
        """One step of the world."""
        shown = self.loop.turn(self.clock.steady())
        if shown is not None:
            self.show(shown)
        elif self.loop.waits_for:
            self.health.waits(f"{self.loop.waits_for} has yet to forget the episode before.")
        else:
            self.health.waits("the episode is over.")
        self.tell_if_new()

    def show(self, shown: Shown) -> None:
        """Publish what is seen; the clock first, so that no stamp lies in the future."""
        self.time(shown.clock)
        for camera, fields in shown.images.items():
            if camera in self.cameras:
                self.cameras[camera](fields)
        for say in self.states:
            say(shown.state)
        if self.task is not None:
            self.task({"data": shown.task})
        self.health.rate.count(self.clock.steady())
        self.health.runs()
        if self.loop.refused:
            self.health.refuses(self.loop.refused)
            self.loop.refused = ""
        if shown.over:
            self.health.notes.append(f"the episode is over: {shown.told}")


def main(args: list[str] | None = None) -> None:
    """Run the node."""
    run(lambda: [SimBridge()], args)
