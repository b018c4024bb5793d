"""How the process keeps memory. Knows nothing of messages."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of malloc.h
KEPT, LARGE = 256 * 2**20, 32 * 2**20  # bytes
RESERVED, BLOCK = 64 * 2**20, 2**20  # bytes


class _Mallinfo2(ctypes.Structure):
    """Of malloc.h; bytes but for the counts."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def keep_memory() -> bool:
    """Let the allocator keep what a freed picture took, for the next one; False where it cannot.

    By default glibc gives large buffers back at once, and every new picture of 640x480 costs some
    225 page faults: 1.5 ms in the place of 0.1 ms on a virtual machine. It also gives each thread
    an arena of its own, and pictures that one thread takes and another frees scatter over all of
    them: a node of two cameras at 30 Hz grew by 1.5 MiB a minute. Call it before threads begin.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # no glibc
        return False
    wanted = ((M_TRIM_THRESHOLD, KEPT), (M_MMAP_THRESHOLD, LARGE), (M_ARENA_MAX, 1))
    return all([mallopt(name, value) for name, value in wanted])


def reserve_memory() -> None:
    """Take, touch and free what pictures and messages will need, as real-time programs do.

    Gaps between pictures and the small things beside them otherwise grow the process for some ten
    minutes, by steps of a few pictures, each with its page faults. Call it once all is loaded,
    after :func:`keep_memory`, which has the allocator keep it.
    """
    blocks = [b"\x01" * BLOCK for _ in range(RESERVED // BLOCK)]
    del blocks


def allocated() -> float | None:
    """MiB in use by C and large Python objects, gaps not counted; None without a recent glibc.

    What leaks shows here, however much memory is reserved.
    """
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return None
    mallinfo2.restype = _Mallinfo2
    told = mallinfo2()
    return (told.uordblks + told.hblkhd) / 2**20
