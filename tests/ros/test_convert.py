"""Images to arrays and back: every byte right, no element touched one by one."""

import ctypes
import io
import struct
import subprocess
import sys
import zlib
from array import array
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("rosbags")

from vla_prune_ros import wire
from vla_prune_ros.convert import CHANNELS, byte_array, decode, image_fields, picture, to_rgb

from vla_prune.errors import ShapeError

from .conftest import WORKSPACE

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
TO_RGB = {
    "rgb8": [0, 1, 2],
    "bgr8": [2, 1, 0],
    "mono8": [0, 0, 0],
    "rgba8": [0, 1, 2],
    "bgra8": [2, 1, 0],
}


def raw(encoding: str, pad: int = 0, big: int = 0) -> tuple:
    """A message with padded rows, and the pixels it should give."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (5, 7, CHANNELS[encoding]), np.uint8)
    step = 7 * CHANNELS[encoding] + pad
    rows = np.full((5, step), 255, np.uint8)
    rows[:, : step - pad] = pixels.reshape(5, -1)
    fields = {"height": 5, "width": 7, "encoding": encoding, "is_bigendian": big, "step": step}
    message = wire.make(IMAGE, fields | {"data": array("B", rows.tobytes())})
    return message, pixels[..., TO_RGB[encoding]]


@pytest.mark.parametrize("big", [0, 1])
@pytest.mark.parametrize("pad", [0, 3])
@pytest.mark.parametrize("encoding", CHANNELS)
def test_every_byte_is_where_it_belongs(encoding: str, pad: int, big: int) -> None:
    message, expected = raw(encoding, pad, big)
    np.testing.assert_array_equal(to_rgb(message), expected)


@pytest.mark.parametrize("encoding", CHANNELS)
def test_reading_copies_nothing(encoding: str) -> None:
    message, _ = raw(encoding, 2)
    message.data = array("B", bytes(message.data))  # what rclpy gives
    assert np.shares_memory(to_rgb(message), np.frombuffer(message.data, np.uint8))


def test_reading_lets_nobody_write_into_the_message() -> None:
    with pytest.raises(ValueError, match="read-only"):
        to_rgb(raw("rgb8")[0])[0, 0] = 0


@pytest.mark.parametrize("encoding", CHANNELS)
def test_writing_and_reading_gives_the_same(encoding: str) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (6, 4, CHANNELS[encoding]), np.uint8)
    fields = image_fields(pixels, 12.25, "cam", encoding)
    message = wire.decode(wire.encode(wire.make(IMAGE, fields), IMAGE), IMAGE)
    np.testing.assert_array_equal(to_rgb(message), pixels[..., TO_RGB[encoding]])
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (12, 250_000_000)
    assert message.step == 4 * CHANNELS[encoding]


def test_writing_gives_what_rclpy_takes_without_looking_inside() -> None:
    data = byte_array(np.arange(24, dtype=np.uint8).reshape(2, 4, 3)[:, ::2])
    assert isinstance(data, array)
    assert data.typecode == "B"
    assert data.tobytes() == bytes([0, 1, 2, 6, 7, 8, 12, 13, 14, 18, 19, 20])


@pytest.mark.parametrize("encoding", ["mono16", "32FC1", "bayer_rggb8", "yuv422", ""])
def test_other_encodings_are_refused_in_a_sentence(encoding: str) -> None:
    message, _ = raw("rgb8")
    message.encoding = encoding
    with pytest.raises(ShapeError, match=r"front: encoding .* publish one of rgb8"):
        to_rgb(message, "front")


@pytest.mark.parametrize(("field", "value"), [("step", 20), ("height", 6), ("width", 0)])
def test_sizes_that_do_not_fit_are_refused(field: str, value: int) -> None:
    message, _ = raw("rgb8")
    setattr(message, field, value)
    with pytest.raises(ShapeError, match="look at the camera driver"):
        to_rgb(message)


def compressed(codec: str, pixels: np.ndarray, described: str) -> object:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, codec, **({"quality": 95} if codec == "JPEG" else {}))
    return wire.make(COMPRESSED, {"format": described, "data": buffer.getvalue()})


def test_png_is_exact_and_jpeg_is_near() -> None:
    ramp = np.linspace(0, 255, 32).astype(np.uint8)
    pixels = np.stack([np.broadcast_to(ramp, (24, 32))] * 2 + [np.full((24, 32), 7)], -1)
    pixels = np.ascontiguousarray(pixels, np.uint8)
    exact = picture(compressed("PNG", pixels, "rgb8; png compressed bgr8"))
    np.testing.assert_array_equal(exact, pixels)
    near = decode(compressed("JPEG", pixels, "jpeg"))
    assert np.abs(near.astype(int) - pixels).max() < 12


def test_grey_pictures_get_three_channels() -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    np.testing.assert_array_equal(decode(compressed("PNG", grey, "png"))[..., 2], grey)


def test_broken_compressed_data_is_refused() -> None:
    message = compressed("JPEG", np.zeros((8, 8, 3), np.uint8), "jpeg")
    message.data = message.data[:40]
    with pytest.raises(ShapeError, match="are no JPEG or PNG"):
        decode(message)
    message.format = "16UC1; compressedDepth"
    with pytest.raises(ShapeError, match="publish JPEG or PNG"):
        decode(message)


def png(*parts: tuple[bytes, bytes]) -> bytes:
    """A PNG file of these chunks, each with its right checksum."""
    made = b"\x89PNG\r\n\x1a\n"
    for kind, data in parts:
        check = struct.pack(">I", zlib.crc32(kind + data))
        made += struct.pack(">I", len(data)) + kind + data + check
    return made


def header(width: int, height: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


@pytest.mark.parametrize(
    "data",
    [
        png((b"IHDR", b"\0" * 5)),
        png(header(30_000, 30_000), (b"IDAT", b"")),
        png(header(10_000, 6_000), (b"IDAT", b"")),
        png(header(4, 4), (b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000)))),
    ],
    ids=["cut", "bomb", "too large", "text bomb"],
)
def test_hostile_pictures_are_refused(data: bytes) -> None:
    message = wire.make(COMPRESSED, {"format": "png", "data": array("B", data)})
    with pytest.raises(ShapeError, match="the frame is dropped"):
        decode(message)


def test_arrays_that_do_not_fit_an_encoding_are_refused() -> None:
    with pytest.raises(ShapeError, match="cannot be sent as 'rgb8'"):
        image_fields(np.zeros((4, 4, 4), np.uint8), 0.0)
    with pytest.raises(ShapeError, match="float64"):
        image_fields(np.zeros((4, 4, 3)), 0.0)


FAULTS = """
import resource, sys
sys.path.insert(0, {folder!r})
import numpy as np
from vla_prune_ros.convert import byte_array
from vla_prune_ros.memory import keep_memory
keep = keep_memory() if {keep} else True
pixels, held = np.zeros((480, 640, 3), np.uint8), None
for _ in range(5):
    held = byte_array(pixels), pixels.tobytes()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    held = byte_array(pixels), pixels.tobytes()
print(keep, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_pictures_reuse_the_memory_of_those_before() -> None:
    def faults(keep: bool) -> int:
        code = FAULTS.format(folder=str(WORKSPACE / "vla_prune_ros"), keep=keep)
        told = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        kept, count = told.stdout.split()
        if kept == "False":
            pytest.skip("this libc has no mallopt")
        return int(count)

    assert faults(keep=True) < 50 * 5  # a picture has 225 pages
    assert faults(keep=False) > 50 * 100


ARENAS = """
import ctypes, sys, threading
sys.path.insert(0, {folder!r})
from vla_prune_ros.memory import keep_memory
keep = keep_memory() if {keep} else True
libc, together = ctypes.CDLL(None), threading.Barrier(6)
libc.fopen.restype, libc.fclose.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
def work():
    held = [bytes(10_000) for _ in range(100)]
    together.wait()
threads = [threading.Thread(target=work) for _ in range(6)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
file = libc.fopen({told!r}.encode(), b"w")
libc.malloc_info(0, file)
libc.fclose(file)
print(keep)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="no glibc")
def test_threads_share_one_arena(tmp_path: Path) -> None:
    def arenas(keep: bool) -> int:
        told = tmp_path / f"{keep}.xml"
        folder = str(WORKSPACE / "vla_prune_ros")
        code = ARENAS.format(folder=folder, keep=keep, told=str(told))
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        return told.read_text().count("<heap nr=")

    assert arenas(keep=False) > 1
    assert arenas(keep=True) == 1


RESERVE = """
import resource, sys
sys.path.insert(0, {folder!r})
from vla_prune_ros.memory import allocated, keep_memory, reserve_memory
keep = keep_memory()
if {reserve}:
    reserve_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, allocated()
held = [bytes([n]) * 921_600 for n in range(40)]
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before[0]
print(keep, faults, -1 if before[1] is None else allocated() - before[1])
"""


def test_what_was_reserved_is_there_and_hides_nothing_that_is_held() -> None:
    def told(reserve: bool) -> tuple[int, float]:
        code = RESERVE.format(folder=str(WORKSPACE / "vla_prune_ros"), reserve=reserve)
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        kept, faults, held = run.stdout.split()
        if kept == "False" or held == "-1":
            pytest.skip("this libc has no mallopt or no mallinfo2")
        return int(faults), float(held)

    faults, held = told(reserve=True)
    assert faults < 40 * 5
    assert held == pytest.approx(40 * 921_600 / 2**20, rel=0.01)
    assert told(reserve=False)[0] > 40 * 200
