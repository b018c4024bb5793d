"""Picture files of a nuScenes root: their names, and what is drawn into them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
from vla_prune_sim.drive.scene import STEP_S, Scene

from vla_prune.errors import ShapeError

JPEG_QUALITY = 92

# Pictures of a scene: (scene, step) -> channel -> [H, W, 3] uint8 RGB at the size of the root. The
# step is whole at keyframes and falls between two where pictures of sweeps are asked for.
Draw = Callable[[Scene, float], Mapping[str, np.ndarray]]


class Pictures:
    """Writes the pictures of all cameras.

    Args:
        out: the root.
        draw: makes them; None writes the same flat one everywhere.
        size: width and height, pixels.
        go_on: leave steps alone of which all pictures are there.
    """

    def __init__(
        self, out: Path, draw: Draw | None, size: tuple[int, int], go_on: bool = False
    ) -> None:
        self.out, self.draw, self.size, self.go_on = out, draw, size, go_on
        self._flat = _jpeg(_flat(*size))

    def write(self, scene: Scene, step: float, folder: str) -> None:
        """All cameras at one step."""
        paths = {c: self.out / picture_name(scene, step, c, folder) for c in scene.cameras}
        if self.go_on and all(path.exists() for path in paths.values()):
            return
        views = self.draw(scene, step) if self.draw else {}
        for channel, path in paths.items():
            data = self._encode(views.get(channel), channel) if self.draw else self._flat
            path.parent.mkdir(parents=True, exist_ok=True)
            half = path.with_suffix(".half")
            half.write_bytes(data)
            half.replace(path)

    def _encode(self, view: np.ndarray | None, channel: str) -> bytes:
        shape = (self.size[1], self.size[0], 3)
        if view is None or view.shape != shape or view.dtype != np.uint8:
            given = "nothing" if view is None else f"{view.dtype} {view.shape}"
            raise ShapeError(
                f"write_root: draw gave {given} for {channel}; it must give uint8 {shape}."
            )
        return _jpeg(view)


def picture_folder(key: bool) -> str:
    """Where nuScenes keeps pictures of keyframes, and those between."""
    return "samples" if key else "sweeps"


def picture_name(scene: Scene, step: float, channel: str, folder: str) -> str:
    """Path below the root."""
    return f"{folder}/{channel}/{scene.name}__{channel}__{time_stamp(scene, step)}.jpg"


def time_stamp(scene: Scene, step: float) -> int:
    """Microseconds."""
    return scene.start_us + round(step * STEP_S * 1e6)


def _flat(width: int, height: int) -> np.ndarray:
    view = np.full((height, width, 3), (90, 90, 90), np.uint8)
    view[: height // 2] = (150, 185, 220)
    return view


def _jpeg(view: np.ndarray) -> bytes:
    bgr = cv2.cvtColor(view, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
