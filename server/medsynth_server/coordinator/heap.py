"""Memory that is free and still counted as this process's."""

import ctypes
import sys
from collections.abc import Callable


def trimmer() -> Callable[[], object]:
    """Give what hands the heap's free pages back to the system; with glibc alone.

    A thread that answers nodes leaves tens of megabytes of them behind, each in a heap of its own.
    """
    if sys.platform != "linux":
        return lambda: None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:  # another C library
        return lambda: None
    return lambda: trim(0)
