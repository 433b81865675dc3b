"""How a process that trains on the CPU holds its memory."""

import ctypes
from typing import Final

#: glibc's mallopt: blocks from this size on are the system's, one by one; and how much of the heap
#: may lie free at its end. (malloc.h)
_MMAP_THRESHOLD: Final = -3, 32 << 20  # the largest that glibc takes
_TRIM_THRESHOLD: Final = -1, 256 << 20


def keep_freed_memory() -> None:
    """Let this process use freed memory again rather than give it back and ask for it anew.

    A training step frees all that it took, and the next takes as much: the system would clear
    every page again. Private steps were measured 3 to 10 % faster on the CPU for it, and the
    process 2 to 5 % larger. Of other C libraries than glibc nothing is asked.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            mallopt(parameter, value)
