"""The options of a run (device, precision, batches), which change no decision; and how a settings class declares its fields.

The command line builds its options from fields declared by :func:`setting` (:mod:`flab.cli.options`). Messages of the library
quote a field as ```name```, which the command line prints as ``--name``. The device ``auto`` is resolved once, at the start,
and a missing device is refused; torch loads late.
"""

from __future__ import annotations

import math
import re
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from functools import cache
from typing import Any

from flab.errors import OptionError
from flab.progress import say_once

STORED_DTYPES = ("float32", "bfloat16", "float16")
AUTO, BALANCED = "auto", "balanced"  # devices
IN_MEMORY = ("auto", "model", "layer")
DEVICE = re.compile(r"auto|balanced|cpu|mps|(cuda|xpu)(:\d+)?")
HELP, EXPERT = "help", "expert"


def setting(default: Any, help: str, *, expert: bool = False) -> Any:
    """Declare a field that users may set; ``expert`` sorts it among the options that few people need."""
    return field(default=default, metadata={HELP: help, EXPERT: expert})


def settings_of(kind: type) -> dict[str, Field[Any]]:
    """Return the fields of a dataclass that were declared by :func:`setting`, by name."""
    found = {one.name: one for one in fields(kind) if HELP in one.metadata}
    assert all(one.default is not MISSING for one in found.values())
    return found


def meant(text: str, whole: bool) -> str | None:
    """Return the number that a text such as ``40%``, ``0,4`` or ``1e3`` probably means; None if it looks like none."""
    share = text.rstrip().endswith("%")
    try:
        value = float(text.rstrip("% ").replace(",", "" if whole else "."))
    except ValueError:
        return None
    if not math.isfinite(value) or (whole and (share or value != int(value))):
        return None
    return str(int(value)) if whole else f"{value / 100 if share else value:.10g}"


@dataclass(frozen=True)
class Options:
    """How to run: on which device, in which precision and in which batches."""

    device: str = setting(
        "auto", "Device: auto (CUDA if available), cpu, cuda, cuda:1, ..., or balanced (layers over all)."
    )
    dtype: str = setting("auto", f"Precision to compute in: {', '.join(STORED_DTYPES)}, or auto.", expert=True)
    batch_tokens: int = 4096
    in_memory: str = setting(
        "auto",
        "What is in memory at a time: model (all of it), layer (one layer, read from the model's files), or auto: the model if "
        "it fits.",
        expert=True,
    )
    overwrite: bool = setting(False, "Replace the output if it exists.")
    unsandboxed: bool = setting(
        False,
        "If isolation is not available, run tests with only resource limits. They can then reach files and the network.",
        expert=True,
    )
    trust_remote_code: bool = setting(False, "Run Python code that the model's folder contains.", expert=True)

    def __post_init__(self) -> None:
        if not isinstance(self.device, str) or not DEVICE.fullmatch(self.device):
            raise OptionError(
                f"`device`: got {self.device!r:.60}, allowed auto (CUDA if there is any, else cpu), cpu, cuda, cuda:1, ... or "
                "balanced (layers spread over all devices)."
            )
        if self.dtype not in (*STORED_DTYPES, "auto"):
            raise OptionError(f"`dtype`: got {self.dtype!r}, allowed auto, {', '.join(STORED_DTYPES)}.")
        if self.in_memory not in IN_MEMORY:
            raise OptionError(f"`in_memory`: got {self.in_memory!r:.60}, allowed {', '.join(IN_MEMORY)}.")
        if self.in_memory == "layer" and self.device == "balanced":
            raise OptionError(
                "`in_memory` layer holds one layer on one device, and `device` balanced spreads the whole model over all: give "
                "one of them."
            )


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
