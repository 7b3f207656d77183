"""Host memory that is let go goes back to the system while a model is divided."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_SMALL = 1 << 20


@contextmanager
def returned() -> Iterator[None]:
    """Blocks of 1 MiB and more are mapped, and unmapped when freed, inside.

    Under `zero.Init` a whole parameter is made, a slice of it kept and the rest freed, over and
    over. glibc takes freed blocks of up to 32 MiB for its heap, where the slices then lie in
    between: a rank that kept half of a model was seen to hold as much as all of it. After it the
    thresholds are where glibc itself would have moved them. Nothing happens with another C library.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt") or not hasattr(libc, "gnu_get_libc_version"):
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _SMALL)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_TRIM_THRESHOLD, 64 << 20)
