"""How to run: device, precision, batches. None of it changes what is decided. No torch."""

from __future__ import annotations

from dataclasses import dataclass

STORED_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Options:
    """How to run: where, in which precision, in which batches."""

    device: str = "cpu"
    dtype: str = "auto"
    batch_tokens: int = 4096
    unsandboxed: bool = False
    trust_remote_code: bool = False
    overwrite: bool = False
