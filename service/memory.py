"""What the C library does with memory that is free again."""

import ctypes
import os
from typing import Final

_M_ARENA_MAX: Final = -8
"""glibc's malloc.h."""


def share_one_heap() -> None:
    """Let all threads that are still to come allocate from one heap; MALLOC_ARENA_MAX, where set, decides.

    By default glibc gives each thread a heap of its own, so that the pixels of large pictures lie around in
    every decoding thread's: hundreds of MB. Growing and shrinking them, it holds up other threads, too: the
    event loop for up to 300 ms, 40 with one heap. Allocations are few and large here, so that no thread
    waits for another's: the throughput is the same. Elsewhere than on glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_M_ARENA_MAX, 1)
