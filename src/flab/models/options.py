"""How to run: device, precision, batches. None of it changes what is decided. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from flab.errors import OptionError
from flab.fields import setting

STORED_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Options:
    """How to run: where, in which precision, in which batches."""

    device: str = setting("cpu", "Device to run on: cpu, cuda, cuda:1, ...; auto spreads the layers over all devices.")
    dtype: str = setting("auto", f"Precision to compute in: {', '.join(STORED_DTYPES)}, or auto.", expert=True)
    batch_tokens: int = 4096
    overwrite: bool = setting(False, "Replace the output if it exists.")
    unsandboxed: bool = setting(
        False, "Without isolation, run tests with resource limits alone: they can reach files and network.", expert=True
    )
    trust_remote_code: bool = setting(False, "Run Python code that comes with the model.", expert=True)

    def __post_init__(self) -> None:
        if self.dtype not in (*STORED_DTYPES, "auto"):
            raise OptionError(f"`dtype`: got {self.dtype!r}, allowed auto, {', '.join(STORED_DTYPES)}.")
