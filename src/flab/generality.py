"""The price in generality: bits per byte on code that no calibration reads.

The text is the part of the running Python's standard library that is kept apart (:func:`flab.assets.held_out_stdlib`).
"""

from __future__ import annotations

from flab import assets
from flab.checkpoint import Checkpoint
from flab.evaluation.text import bits_per_byte

GENERAL_BYTES = 96_000
EXCERPT_BYTES = 6_000
GENERAL_TEXT = "held-out modules of Python's standard library"


def general_texts() -> list[str]:
    """The head of each held-out module, about 96 kB in all, in a stable order."""
    texts, used = [], 0
    for path in assets.held_out_stdlib():
        text = path.read_text(encoding="utf-8", errors="replace")[:EXCERPT_BYTES]
        if text.strip() and used < GENERAL_BYTES:
            texts.append(text)
            used += len(text.encode())
    return texts


def general_bits_per_byte(checkpoint: Checkpoint) -> float:
    """-log2 p per UTF-8 byte of that text, comparable across vocabularies: all its bytes are counted."""
    context = getattr(checkpoint.model.config, "max_position_embeddings", 512)
    return bits_per_byte(checkpoint.model, checkpoint.tokenizer, general_texts(), window=min(256, context))
