"""A camera's picture with kept patches, budget and age burnt in, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_prune.errors import did_you_mean
from vla_prune_ros.contract import load_contract
from vla_prune_ros.node import ManagedNode, run
from vla_prune_ros.overlay import Overlay
from vla_prune_ros.qos import OUT


class OverlayNode(ManagedNode):
    """A thin shell over ``Overlay``."""

    def __init__(self, **options: Any) -> None:
        super().__init__("overlay_node", **options)

    def configure(self, values: Mapping[str, Any]) -> None:
        """Choose the camera."""
        cameras = {s.camera: s for s in load_contract(values["contract"]).cameras}
        name = values["camera"] or next(iter(cameras))
        if name not in cameras:
            raise did_you_mean("overlay_node", "camera", name, cameras)
        self.source = cameras[name]
        self.loop = Overlay(name, self.clock, values["max_rate_hz"], values["scale"])

    def activate(self, values: Mapping[str, Any]) -> None:
        """Open the topics."""
        self.pictures = self.speak("sensor_msgs/msg/Image", "overlay/image_raw")
        self.listen("vla_prune_msgs/msg/ActionChunk", "action_chunk", OUT, self.loop.put_chunk)
        self.listen(self.source.type, self.source.topic, self.source.qos, self.on_image)

    def changed(self, name: str, value: Any) -> None:
        """Live parameters."""
        if name == "max_rate_hz":
            self.loop.pace.rate_hz = value
        elif name == "scale":
            self.loop.scale = value

    def on_image(self, message: Any) -> None:
        """Draw, if it is time."""
        made = self.loop.draw(message)
        if made is not None:
            self.pictures(made)
            self.health.rate.count(self.clock.steady())
            self.health.runs()
        elif self.loop.refused:
            self.health.refuses(self.loop.refused)
            self.loop.refused = ""
        self.tell_if_new()


def main(args: list[str] | None = None) -> None:
    """Run the node."""
    run(lambda: [OverlayNode()], args)
