"""The overlay node without ROS: a camera picture with kept patches, budget and age burnt in."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vla_prune.draw import kept_patches
from vla_prune.errors import VlaPruneError
from vla_prune.runtime.clock import Clock
from vla_prune_ros.convert import image_fields, picture
from vla_prune_ros.pace import Pace
from vla_prune_ros.stamps import seconds


class Overlay:
    """Draws at most ``max_rate_hz`` pictures a second.

    Args:
        camera: whose picture.
        clock: of the node.
        max_rate_hz: pictures per second.
        scale: enlargement.
    """

    def __init__(
        self, camera: str, clock: Clock, max_rate_hz: float = 5.0, scale: int = 1
    ) -> None:
        self.camera, self.clock = camera, clock
        self.pace, self.scale = Pace(max_rate_hz), scale
        self.refused = ""
        self._chunk: Any = None

    def put_chunk(self, message: Any) -> None:
        """The newest ``ActionChunk``."""
        self._chunk = message

    def draw(self, message: Any) -> dict[str, Any] | None:
        """The fields of an ``Image`` for a camera message; None if it is too soon or broken."""
        steady = self.clock.steady()
        if not self.pace.ready(steady):
            return None
        self.pace.count(steady)
        try:
            pixels = picture(message, f"camera {self.camera}")
        except VlaPruneError as error:
            self.refused = str(error)
            return None
        stamp = seconds(message.header.stamp)
        chunk, lines = self._chunk, ["no chunk yet"]
        if chunk is not None:
            age = self.clock.now() - seconds(chunk.header.stamp)
            lines = [f"{chunk.recipe or 'dense'}  age {1e3 * age:.0f} ms"]
            found = _patches(chunk, self.camera)
            if found is None:
                lines.append(f"the policy does not see {self.camera}")
            else:
                rows, cols, kept = found
                pixels = kept_patches(pixels, rows, cols, kept, self.scale)
                total = len(chunk.kept_index)
                lines.append(f"kept {len(kept)}/{rows * cols} here, {total}/{chunk.tokens} in all")
        return image_fields(_written(pixels, lines), stamp, message.header.frame_id)


def _patches(chunk: Any, camera: str) -> tuple[int, int, np.ndarray] | None:
    """Rows, columns and kept patches of one camera of a chunk."""
    start, index = 0, np.asarray(chunk.kept_index, np.int64)
    for grid in chunk.cameras:
        size = int(grid.rows * grid.cols)
        if grid.name == camera:
            inside = index[(index >= start) & (index < start + size)] - start
            return int(grid.rows), int(grid.cols), inside
        start += size
    return None


def _written(pixels: np.ndarray, lines: list[str]) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    pen = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        pen.text((4, 3 + 12 * number), line, fill="white", stroke_width=1, stroke_fill="black")
    return np.asarray(image)
