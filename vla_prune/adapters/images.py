"""One camera's image out of an observation, in the size that a model takes."""

from __future__ import annotations

import numpy as np
from PIL import Image

from vla_prune.errors import ShapeError
from vla_prune.types import Observation


def camera_image(who: str, observation: Observation, camera: str) -> np.ndarray:
    """``[H, W, 3]`` uint8 RGB.

    Args:
        who: needs it, for the message.
        observation: what was seen.
        camera: name of the image.

    Raises:
        ShapeError: no such camera, or no RGB image of bytes.
    """
    if camera not in observation.images:
        known = ", ".join(sorted(observation.images)) or "none"
        raise ShapeError(f"{who} needs camera {camera!r}; the observation has {known}.")
    image = np.asarray(observation.images[camera])
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ShapeError(
            f"camera {camera!r}: image has shape {image.shape}; give [height, width, 3] RGB."
        )
    if image.dtype != np.uint8:
        raise ShapeError(
            f"camera {camera!r}: image has dtype {image.dtype}; give uint8 with values 0 to 255."
        )
    return image


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """``[height, width, 3]`` uint8: bicubic where the size differs, aspect not kept."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
