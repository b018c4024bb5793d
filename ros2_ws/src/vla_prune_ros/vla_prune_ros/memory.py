"""How the process keeps memory. Knows nothing of messages."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of malloc.h
KEPT, LARGE = 256 * 2**20, 32 * 2**20  # bytes


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
