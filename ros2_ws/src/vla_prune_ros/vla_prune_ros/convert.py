"""Camera messages to arrays and back, without touching single elements.

Messages are duck-typed: what rclpy gives and what rosbags gives both fit. Reading a raw image is a
view of the message's bytes; writing copies once, into the ``array.array('B')`` that rclpy takes as
it is (a numpy array it would walk through element by element: ROS2.md, 46 ms for 640x480).
"""

from __future__ import annotations

import io
from array import array
from typing import Any

import numpy as np
from PIL import Image

from vla_prune.errors import ShapeError
from vla_prune_ros.stamps import header_fields

CHANNELS = {"rgb8": 3, "bgr8": 3, "mono8": 1, "rgba8": 4, "bgra8": 4}
CODECS = ("jpeg", "png")
MOST_PIXELS = 50_000_000  # of a compressed picture: a few bytes can ask for gigabytes


def to_rgb(message: Any, camera: str = "camera") -> np.ndarray:
    """``[H, W, 3]`` uint8 RGB, a read-only view of the bytes of a ``sensor_msgs/Image``.

    Byte order (``is_bigendian``) means nothing for one byte a channel; rows may be padded
    (``step``).

    Args:
        message: has encoding, height, width, step and data.
        camera: for the sentence of an error.

    Raises:
        ShapeError: another encoding, or not as many bytes as height and step say.
    """
    encoding, height, width, step = message.encoding, message.height, message.width, message.step
    channels = CHANNELS.get(encoding)
    if channels is None:
        raise ShapeError(
            f"{camera}: encoding {encoding!r} cannot be read; publish one of "
            f"{', '.join(CHANNELS)}, or compressed JPEG or PNG."
        )
    data = np.frombuffer(message.data, np.uint8)
    if height == 0 or width == 0 or step < width * channels or data.size != height * step:
        raise ShapeError(
            f"{camera}: {width}x{height} {encoding} with step {step} takes {height * step} bytes, "
            f"at least {width * channels} a row, and {data.size} came; look at the camera driver."
        )
    pixels = data.reshape(height, step)[:, : width * channels].reshape(height, width, channels)
    pixels.flags.writeable = False
    if encoding == "mono8":
        return np.broadcast_to(pixels, (height, width, 3))
    return pixels[..., 2::-1] if encoding.startswith("bgr") else pixels[..., :3]


def decode(message: Any, camera: str = "camera") -> np.ndarray:
    """``[H, W, 3]`` uint8 RGB out of a ``sensor_msgs/CompressedImage`` (JPEG or PNG).

    Raises:
        ShapeError: another codec, more than 8 bits a channel, too many pixels, or broken data.
    """
    described = message.format.lower().replace("jpg", "jpeg")
    if described and ("depth" in described or not any(codec in described for codec in CODECS)):
        raise ShapeError(
            f"{camera}: compressed format {message.format!r} cannot be read; publish JPEG or PNG."
        )
    try:
        image = Image.open(io.BytesIO(message.data), formats=[c.upper() for c in CODECS])
        if image.mode.startswith(("I", "F")):
            raise ShapeError(
                f"{camera}: the picture has more than 8 bits a channel ({image.mode}); publish "
                "8-bit colour."
            )
        width, height = image.size
        if width * height > MOST_PIXELS:
            raise ShapeError(
                f"{camera}: the picture has {width}x{height} pixels, {MOST_PIXELS} are the most; "
                "the frame is dropped."
            )
        return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ShapeError(
            f"{camera}: {len(message.data)} compressed bytes are no JPEG or PNG ({error}); the "
            "frame is dropped."
        ) from error


def picture(message: Any, camera: str = "camera") -> np.ndarray:
    """:func:`to_rgb` or :func:`decode`, by what the message has."""
    return decode(message, camera) if hasattr(message, "format") else to_rgb(message, camera)


def byte_array(pixels: np.ndarray) -> array:
    """The bytes of an array in one copy, in the type that rclpy assigns without looking inside."""
    data = array("B")
    data.frombytes(np.ascontiguousarray(pixels).reshape(-1).data)
    return data


def image_fields(
    pixels: np.ndarray, stamp_s: float, frame_id: str = "", encoding: str = "rgb8"
) -> dict[str, Any]:
    """The fields of a ``sensor_msgs/Image``.

    Args:
        pixels: ``[H, W, channels]`` uint8 in the order of ``encoding``; ``[H, W]`` for mono8.
        stamp_s: capture time.
        frame_id: of the camera.
        encoding: rgb8, bgr8, mono8, rgba8 or bgra8.

    Raises:
        ShapeError: the array does not fit the encoding.
    """
    channels = CHANNELS.get(encoding)
    shape = pixels.shape if pixels.ndim == 3 else (*pixels.shape, 1)
    if channels is None or len(shape) != 3 or shape[2] != channels or pixels.dtype != np.uint8:
        raise ShapeError(
            f"image: an array {pixels.dtype} {pixels.shape} cannot be sent as {encoding!r}; give "
            f"uint8 with the channels of one of {', '.join(CHANNELS)}."
        )
    return {
        "header": header_fields(stamp_s, frame_id),
        "height": shape[0],
        "width": shape[1],
        "encoding": encoding,
        "is_bigendian": 0,
        "step": shape[1] * channels,
        "data": byte_array(pixels),
    }
