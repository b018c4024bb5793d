"""What a frozen image tower makes of frames, worked out once for each. Knows no simulator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from vla_prune_sim.train.frames import Batch, FrameSet

GONE = np.zeros((0, 0, 0, 3), np.uint8)  # a frame whose pictures were let go


class FeatureCache:
    """Batches of a frame set whose visual features are remembered, as float16.

    Memory: two bytes for each of a frame's ``M * E`` features, about 0.1 MB of a pocket policy.
    The pictures, nearly twice that, are let go: nobody asks for them again.

    Args:
        frames: pictures as they are, without jitter.
        tower: images ``[B, V, 3, H, W]`` in [0, 1] -> features ``[B, M, E]``.
    """

    def __init__(self, frames: FrameSet, tower: Callable[[Tensor], Tensor]) -> None:
        self.frames, self.tower = frames, tower
        self._known: dict[int, Tensor] = {}

    def batch(self, index: np.ndarray) -> tuple[Batch, Tensor]:
        """Frames at ``index`` without their pictures, and their features ``[B, M, E]`` float32."""
        new = np.array([i for i in dict.fromkeys(index.tolist()) if i not in self._known])
        if len(new):
            with torch.no_grad():
                made = self.tower(self.frames.batch(new).images).half()
            self._known |= dict(zip(new.tolist(), made, strict=True))
            for row in new:
                self.frames.images[row] = GONE
        features = torch.stack([self._known[i] for i in index.tolist()]).float()
        return self.frames.batch(index, images=False), features
