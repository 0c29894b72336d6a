"""Memory that the process has freed, given back to the system. It frees nothing itself."""

from __future__ import annotations

import contextlib
import ctypes
import resource
from collections.abc import Callable
from functools import cache
from pathlib import Path

LARGE_BYTES = 2**30  # resident; a smaller process loses more time by it than it gains memory
STATM = Path("/proc/self/statm")


def trim() -> None:
    """Give back what is free: glibc keeps freed tensors of less than 32 MiB, in pieces that the next ones do not fit."""
    if _resident() >= LARGE_BYTES:
        _malloc_trim()(0)


def _resident() -> int:
    """Bytes; 0 where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(STATM.read_text().split()[1]) * resource.getpagesize()
    return 0


@cache
def _malloc_trim() -> Callable[[int], object]:
    """The C library's own, where it has one (glibc); else nothing to do."""
    try:
        found: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return lambda _: None
    return found
