"""Bits per byte of a causal LM on texts: comparable between models whose vocabularies differ.

Convention: each text is encoded by itself (with the special tokens its tokenizer adds), no end token is
added, and the bits of all its tokens but the first are summed, because nothing precedes the first. The sum
over all texts is divided by the UTF-8 bytes of all texts.

Long texts are read in windows of ``window`` tokens that overlap by half: the first window counts all it
predicts, a later one only its second half, so that each token is predicted once, and with at least ``window
// 2`` tokens before it where the text has as many. It keeps no logits beyond one chunk of positions, and it
does not truncate.

The loss of generality is measured by this figure on code that no calibration reads: the held-out part of the
running Python's standard library (:func:`flab.assets.held_out_stdlib`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flab import assets
from flab.errors import DataError
from flab.models.checkpoint import Checkpoint, free, open_model
from flab.models.engines.protocol import evaluation_mode, untruncated
from flab.models.folder import weight_files
from flab.models.options import Options
from flab.models.scorer import scorer_of
from flab.progress import track

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GENERAL_BYTES = 96_000
# A large model reads less text; otherwise measuring it would take as long as cutting it.
LARGE_BYTES = 24_000
LARGE_STORAGE = 200_000_000  # bytes of weights from which a model is large
EXCERPT_BYTES = 6_000
GENERAL_TEXT = "held-out modules of Python's standard library"

CHUNK = 256  # positions whose logits exist at once


@dataclass(frozen=True)
class ScoredWindow:
    """Consecutive tokens of one text; only predictions of ``ids[first:]`` count (``first`` >= 1)."""

    ids: list[int]
    first: int


def split_windows(ids: list[int], window: int) -> list[ScoredWindow]:
    """Cut one text into windows that overlap by half; each token but the first counts exactly once."""
    # Half a window overlaps, so every counted token but those of the first window has at least that much before
    # it.
    stride = window // 2
    windows = [ScoredWindow(ids[:window], 1)] if len(ids) > 1 else []
    for counted in range(window, len(ids), stride):
        end = min(counted + stride, len(ids))
        start = end - window
        windows.append(ScoredWindow(ids[start:end], counted - start))
    return windows


def bits_per_byte(
    model: Any,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    window: int = 512,
    batch_size: int = 8,
) -> float:
    """Return -log2 p of the texts per UTF-8 byte, by the convention in the module's docstring."""
    import torch

    num_bytes = sum(len(text.encode()) for text in texts)
    tokenizer = untruncated(tokenizer)
    windows = [w for text in texts for w in split_windows(list(tokenizer.encode(text).ids), window)]
    if not windows or not num_bytes:
        raise DataError("nothing to predict: the texts are empty or hold a single token; give longer texts")
    # Longest first: batches hold windows of like length, and the largest memory is needed at once and not at
    # the end.
    windows.sort(key=lambda one: -len(one.ids))
    batches = [windows[i : i + batch_size] for i in range(0, len(windows), batch_size)]
    with torch.inference_mode(), evaluation_mode(model):
        nats = sum(_batch_nats(model, batch) for batch in track(batches, "Reading texts", unit="batches"))
    return nats / math.log(2) / num_bytes


def _batch_nats(model: Any, batch: list[ScoredWindow]) -> float:
    """Sum -ln p over the counted tokens of one right-padded batch, with logits in chunks."""
    import torch

    width = max(len(one.ids) for one in batch)
    ids = torch.tensor([one.ids + [0] * (width - len(one.ids)) for one in batch], device=model.device)
    mask = torch.tensor([[1] * len(w.ids) + [0] * (width - len(w.ids)) for w in batch], device=model.device)
    counts = torch.tensor([[w.first <= at < len(w.ids) for at in range(1, width)] for w in batch], device=model.device)
    hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    # State t predicts token t + 1. Only counted positions reach the head, so no B x T x V tensor exists.
    states_ND = hidden[:, :-1][counts]
    targets_N = ids[:, 1:][counts]
    head = scorer_of(model)
    total = 0.0
    for at in range(0, len(targets_N), CHUNK):
        logits_NV = head(states_ND[at : at + CHUNK]).float()
        losses = torch.nn.functional.cross_entropy(logits_NV, targets_N[at : at + CHUNK], reduction="none")
        total += losses.double().sum().item()
    return total


def generality_of(model: str | Path, options: Options, size_bytes: int = GENERAL_BYTES) -> float:
    """Return the bits per byte of one model on ``size_bytes`` bytes of that code."""
    checkpoint, _ = open_model(model, options)
    value = general_bits_per_byte(checkpoint, size_bytes)
    free(checkpoint)
    return value


def general_size(original: Path) -> int:
    """Return how many bytes to measure a model and its cut on, so that this takes a small part of the cut's time."""
    large = sum(file.stat().st_size for file in weight_files(original)) >= LARGE_STORAGE
    return LARGE_BYTES if large else GENERAL_BYTES


def general_texts(size_bytes: int = GENERAL_BYTES) -> list[str]:
    """Return the beginning of each held-out module, about ``size_bytes`` bytes in all, in a stable order."""
    texts = []
    used = 0
    for path in assets.held_out_stdlib():
        text = path.read_text(encoding="utf-8", errors="replace")[:EXCERPT_BYTES]
        if text.strip() and used < size_bytes:
            texts.append(text)
            used += len(text.encode())
    return texts


def general_bits_per_byte(checkpoint: Checkpoint, size_bytes: int = GENERAL_BYTES) -> float:
    """Return -log2 p per UTF-8 byte of that text. All its bytes count, so vocabularies can be compared."""
    context = getattr(checkpoint.model.config, "max_position_embeddings", 512)
    return bits_per_byte(checkpoint.model, checkpoint.tokenizer, general_texts(size_bytes), window=min(256, context))
