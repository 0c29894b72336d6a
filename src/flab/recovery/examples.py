"""From rows of a training file to packed rows of tokens with targets, and the split that only measures.

A row of ``length`` tokens holds several examples; each attends to itself alone, because its positions start at 0 again
and no attention mask is given (transformers builds the block-diagonal mask from the positions).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from flab.data.samples import Sample
from flab.errors import DataError
from flab.models.tokenizer import special_prefix
from flab.pruning.calibration import Window, windows_of
from flab.recovery.loss import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset
    from tokenizers import Tokenizer

MOST_HELD_OUT = 512


@dataclass(frozen=True)
class Examples:
    """Packed rows to train on and to validate on, and the counts of the packing."""

    train: Dataset
    held_out: Dataset
    counts: dict[str, int]


def make_examples(
    samples: Sequence[Sample], tokenizer: Tokenizer, eos: int | None, length: int, share: float, packing: bool
) -> Examples:
    """Tokenise the rows, leave out those that are too long, split them by prompt, and pack them.

    Raises:
        DataError: too little is left to train and validate on.
    """
    asked = [sample for sample in samples if sample.prompt]
    prefix = special_prefix(tokenizer)
    # Answers are never cut. An example that does not fit into a row, or has no answer token, is not used.
    whole = windows_of(asked, tokenizer, 1 << 30, eos, prefix)
    fitting = [w for w in whole if len(w.ids) <= length and w.answer_from < len(w.ids)]
    text = windows_of([sample for sample in samples if not sample.prompt], tokenizer, length, None, prefix)
    parts: dict[bool, list[Window]] = {False: [], True: []}
    # A hash of the prompt decides the split, so all answers to one prompt are on the same side and a rerun repeats it.
    ranks = {w.sample: _rank(asked[w.sample].prompt) for w in fitting}
    limit = _limit(sorted(set(ranks.values())), share)
    for window in fitting:
        parts[ranks[window.sample] < limit].append(window)
    # Plain text has no prompt: every token is a target, and none is held out.
    parts[False] += [Window(w.ids, 0, w.sample) for w in text]
    if not parts[True] or not parts[False]:
        raise DataError(
            f"{len(fitting)} examples of at most {length} tokens are too few to train and validate on: "
            "give more rows, or a larger `length`."
        )
    counts = {
        "rows": len(samples),
        "train": len(parts[False]),
        "held_out": len(parts[True]),
        "too_long": len(whole) - len(fitting),
        "text_windows": len(text),
        "train_tokens": sum(len(w.ids) for w in parts[False]),
        "answer_tokens": sum(len(w.ids) - max(1, w.answer_from) for w in parts[False]),
    }
    train, held_out = (_pack(parts[key], length, packing) for key in (False, True))
    return Examples(_numbered(train, 0), _numbered(held_out, len(train)), counts)


def _rank(prompt: str) -> int:
    """Return a number that depends only on the prompt: all answers to one prompt fall on one side."""
    return int.from_bytes(hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def _limit(ranks: Sequence[int], share: float) -> int:
    """Return the rank below which prompts are held out: a share of them, at least one, at most ``MOST_HELD_OUT``."""
    wanted = min(max(1, round(share * len(ranks))), MOST_HELD_OUT, max(0, len(ranks) - 1))
    return ranks[wanted] if wanted < len(ranks) and ranks else 0


def _numbered(data: Dataset, first: int) -> Dataset:
    """Number the rows. The teacher's states of a row are stored under its number."""
    return data.add_column("row", list(range(first, first + len(data))))


def _pack(windows: Sequence[Window], length: int, packing: bool) -> Dataset:
    """Return rows of ``input_ids``, ``targets`` (the next token, ``IGNORED`` if none is asked for) and ``seq_lengths``."""
    from datasets import Dataset, disable_progress_bars

    rows = {"input_ids": [w.ids for w in windows], "targets": [_targets(w) for w in windows]}
    disable_progress_bars()  # of datasets: packing takes a moment
    data = Dataset.from_dict(rows)
    if not packing:
        return data.add_column("seq_lengths", [[len(w.ids)] for w in windows])
    from trl import pack_dataset

    return pack_dataset(data, length)


def _targets(window: Window) -> list[int]:
    # Target t is token t + 1; the last position has none. Prompt tokens are no targets either.
    following = [*window.ids[1:], IGNORED]
    first = max(1, window.answer_from)  # nothing predicts the first token
    return [token if at + 1 >= first else IGNORED for at, token in enumerate(following)]


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return a batch, B x T. Its padding on the right attends only to itself and has no target.

    ``within`` is true where the next token belongs to the same example; ``rows`` are the rows' numbers, (B,).
    """
    width = max(len(row["input_ids"]) for row in rows)
    batch: dict[str, list[list[int]]] = {"input_ids": [], "targets": [], "position_ids": [], "within": []}
    for row in rows:
        # The padding is a separate example whose positions start at 0, so that no real token attends to it.
        pad = width - len(row["input_ids"])
        lengths = [*row["seq_lengths"], *([pad] if pad else [])]
        batch["input_ids"].append([*row["input_ids"], *[0] * pad])
        batch["targets"].append([*row["targets"], *[IGNORED] * pad])
        batch["position_ids"].append([at for n in lengths for at in range(n)])
        batch["within"].append([int(at < n - 1) for n in row["seq_lengths"] for at in range(n)] + [0] * pad)
    tensors = {name: torch.tensor(values) for name, values in batch.items()}
    rows_B = torch.tensor([row["row"] for row in rows])
    return tensors | {"within": tensors["within"].bool(), "rows": rows_B}
