"""Memory that the process has freed, given back to the system. It frees nothing itself."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def trim() -> None:
    """Give back what is free: glibc keeps freed tensors of less than 32 MiB, in pieces that the next ones do not fit."""
    _malloc_trim()(0)


@cache
def _malloc_trim() -> Callable[[int], object]:
    """The C library's own, where it has one (glibc); else nothing to do."""
    try:
        found: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return lambda _: None
    return found
