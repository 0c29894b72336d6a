"""The price in generality: bits per byte on code that no calibration reads.

The text is the part of the running Python's standard library that is kept apart (:func:`flab.assets.held_out_stdlib`).
"""

from __future__ import annotations

from pathlib import Path

from flab import assets
from flab.checkpoint import Checkpoint, weight_files
from flab.evaluation.text import bits_per_byte

GENERAL_BYTES = 96_000
LARGE_BYTES = 24_000  # for a large model, whose measurement would otherwise take as long as its cut
LARGE_STORAGE = 200_000_000  # bytes of weights from which a model is large
EXCERPT_BYTES = 6_000
GENERAL_TEXT = "held-out modules of Python's standard library"


def general_texts(size_bytes: int = GENERAL_BYTES) -> list[str]:
    """The head of each held-out module, about so many bytes in all, in a stable order."""
    texts, used = [], 0
    for path in assets.held_out_stdlib():
        text = path.read_text(encoding="utf-8", errors="replace")[:EXCERPT_BYTES]
        if text.strip() and used < size_bytes:
            texts.append(text)
            used += len(text.encode())
    return texts


def general_size(original: Path) -> int:
    """How many bytes to measure a model and its cut on, so that it takes a small part of the time that cutting takes."""
    large = sum(file.stat().st_size for file in weight_files(original)) >= LARGE_STORAGE
    return LARGE_BYTES if large else GENERAL_BYTES


def general_bits_per_byte(checkpoint: Checkpoint, size_bytes: int = GENERAL_BYTES) -> float:
    """-log2 p per UTF-8 byte of that text, comparable across vocabularies: all its bytes are counted."""
    context = getattr(checkpoint.model.config, "max_position_embeddings", 512)
    return bits_per_byte(checkpoint.model, checkpoint.tokenizer, general_texts(size_bytes), window=min(256, context))
