"""The device of a command: ``auto`` is resolved once, at the start, and a missing device is refused. torch loads late."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from flab.errors import OptionError
from flab.models.options import Options
from flab.progress import say_once

AUTO, BALANCED = "auto", "balanced"


def settled(options: Options) -> Options:
    """Return the options with the device named. For ``auto`` it is CUDA if available, with a message, else the CPU.

    Raises:
        OptionError: the device does not exist here.
    """
    if options.device == AUTO:
        if not cuda_devices():
            return replace(options, device="cpu")
        say_once("device: cuda, the first of this machine (cpu for the processor, balanced for all of them)")
        return replace(options, device="cuda")
    kind, _, number = options.device.partition(":")
    if kind == "cuda" and int(number or 0) >= cuda_devices():
        there = f"cuda:0 to cuda:{cuda_devices() - 1}" if cuda_devices() else "none"
        raise OptionError(
            f"`device` {options.device}: torch sees {there} here; use cpu, or a machine and a build of torch with CUDA."
        )
    return options


@cache
def cuda_devices() -> int:
    """Return the number of CUDA devices that torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
