"""Memory of this process and of the CUDA devices: the peak between two points, and the return of freed memory."""

from __future__ import annotations

import contextlib
import ctypes
import resource
from collections.abc import Callable
from functools import cache
from pathlib import Path

LARGE_BYTES = 2**30  # resident; in a smaller process it costs more time than it is worth
STATM = Path("/proc/self/statm")

MEMINFO = Path("/proc/meminfo")
STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


def is_gpu(device: str) -> bool:
    """Return whether a model opened on this device is on CUDA. With ``balanced`` it is if there is a CUDA device."""
    import torch

    return not device.startswith("cpu") and torch.cuda.is_available()


def reset_peak(device: str) -> None:
    """Reset the peaks of the devices, and of the process if the system allows it."""
    if is_gpu(device):
        import torch

        # The allocator refuses to reset anything in a process that has not used CUDA yet.
        torch.cuda.init()  # type: ignore[no-untyped-call]
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)
    with contextlib.suppress(OSError):
        # Writing 5 resets the peak resident set (VmHWM), see proc(5).
        CLEAR.write_text("5")


def peak(device: str) -> tuple[int, str]:
    """Return the peak in bytes since the reset, and the method."""
    if is_gpu(device):
        import torch

        used = sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
        return used, "CUDA allocator, all devices"
    return resident_peak()


def resident_peak() -> tuple[int, str]:
    """Return the peak of this process's resident set since the reset, or since its start if there is no reset."""
    try:
        lines = STATUS.read_text().splitlines()
        kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
        # The peak is one since the last reset only where this file can be written; opening it is the test.
        with CLEAR.open("w"):
            return 1024 * kilobytes, "resident set of the process"
    except (OSError, StopIteration, ValueError):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "resident set of the process since its start"


def free_bytes(device: str) -> int | None:
    """Return the memory that a model may take on this device; None if the system does not say."""
    if is_gpu(device):
        import torch

        # A balanced model is spread over all devices, so the free memory of all of them counts.
        indices = range(torch.cuda.device_count()) if device == "balanced" else [torch.device(device).index or 0]
        return sum(torch.cuda.mem_get_info(index)[0] for index in indices)
    with contextlib.suppress(OSError, StopIteration, ValueError):
        # MemAvailable includes caches that the kernel gives back; MemFree would refuse most models on a busy machine.
        lines = MEMINFO.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return None


def trim() -> None:
    """Return freed memory to the system. glibc keeps freed tensors below 32 MiB, in pieces that do not fit other tensors."""
    if _resident() >= LARGE_BYTES:
        _malloc_trim()(0)


def _resident() -> int:
    """Return the resident set in bytes; 0 if the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(STATM.read_text().split()[1]) * resource.getpagesize()
    return 0


@cache
def _malloc_trim() -> Callable[[int], object]:
    """Return the C library's own function if it has one (glibc), else one that does nothing."""
    try:
        found: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return lambda _: None
    return found
