"""Compare serving engines with transformers. Engines run in their own processes and need not be installed here."""

from __future__ import annotations

from collections.abc import Sequence

from flab.errors import OptionError

ENGINES = ("llama.cpp", "ctranslate2", "vllm", "transformers-serve")


def check_names(engines: Sequence[str]) -> None:
    """Raise OptionError if an engine is named that flab does not know."""
    unknown = [name for name in engines if name not in ENGINES]
    if unknown:
        raise OptionError(f"`engines`: got {unknown[0]!r}, allowed {', '.join(ENGINES)}.")
