"""Which tokens a budget keeps, and what that costs. It cuts nothing: see :mod:`flab.pruning.cuts.vocabulary`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from flab.models.checkpoint import Checkpoint
from flab.models.families import Family, shape_of
from flab.models.layers import Batch, LayerRunner
from flab.models.scorer import scorer_of
from flab.models.shape import Shape
from flab.models.tokenizer import TokenizerModel, end_of_text
from flab.progress import track
from flab.pruning.budget import VOCABULARY_MULTIPLE, Pins, spare_tokens, vocabulary_for
from flab.pruning.calibration import (
    CalibrationSet,
    Texts,
    calibration_set,
    calibration_windows,
    window_settings,
)
from flab.pruning.cuts.vocabulary import (
    choose_vocabulary,
    count_tokens,
    covered_tokens,
    required_tokens,
)
from flab.pruning.objective import cut_mass_kl, expected_counts
from flab.pruning.recipe import Recipe

LARGE_VOCABULARY = 32_768  # above so many tokens no calibration text holds all that other text of its kind needs
EXPECTED_TOKENS = 8_192  # places at which the uncut model is asked what it would write
RANK_WEIGHT = 0.003  # of the order of ids, as a fraction of all counts
RANK_OFFSET = 300  # ids; the first are bytes, and their neighbours are all frequent


@dataclass(frozen=True)
class Counts:
    """How often each token of the uncut vocabulary occurs in the task's and in general text."""

    task: Counter[int]
    general: Counter[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer, task: Sequence[str], general: Sequence[str]) -> Counts:
        """Count them."""
        return cls(count_tokens(tokenizer, task), count_tokens(tokenizer, general))


@dataclass(frozen=True)
class Needed:
    """What the text needs of a tokenizer's vocabulary, and how many tokens a budget keeps of it."""

    model: TokenizerModel
    counts: Counter[int]
    floor: set[int]  # the tokens that stay in any case
    size: int


def needed_tokens(
    folder: Path, tokenizer: Tokenizer, named_ids: set[int], shape: Shape, recipe: Recipe, pins: Pins, found: Counts
) -> Needed:
    """Work out how many tokens to keep: all that the task's text is covered by, and more if they are affordable.

    Tokens of general text stay, by frequency, while the vocabulary keeps no larger a share than the whole model does. What a
    coarse step of the width leaves of the budget goes to further tokens of a large vocabulary.

    Args:
        folder: the model's, whose files name tokens that must stay.
        tokenizer: the uncut one.
        named_ids: ids that the model's own settings name.
        shape: the uncut model's.
        recipe: the budget, and how tokens are counted.
        pins: sizes that are fixed.
        found: how often each token occurs.
    """
    model = TokenizerModel(tokenizer)
    task = Counter({i: n for i, n in found.task.items() if n >= recipe.min_count})
    counts = task + found.general
    required = required_tokens(folder, tokenizer, named_ids)
    covered = covered_tokens(model, task, required)
    affordable = min(len(covered_tokens(model, counts, required)), int((1 - recipe.remove) * shape.vocabulary))
    wanted = max(_round_up(len(covered)), _round_up(affordable))
    size = vocabulary_for(shape, recipe.remove, wanted, pins)
    if shape.vocabulary > LARGE_VOCABULARY:
        size += spare_tokens(shape, recipe.remove, size, pins)
    size = min(size, len(model.text_of))
    return Needed(model, counts, covered if len(covered) <= size else required, size)


def plan_vocabulary(
    checkpoint: Checkpoint,
    family: Family,
    recipe: Recipe,
    pins: Pins,
    found: Counts,
    expected: Callable[[], Mapping[int, float]] = dict,
) -> list[int]:
    """New id -> old id of the tokens to keep: as many as :func:`needed_tokens` says, the most likely first.

    A large vocabulary is also chosen by what the model expects: ``expected`` gives how often it would write each token.
    """
    shape = shape_of(checkpoint.model, family)
    if vocabulary_for(shape, recipe.remove, 0, pins) >= shape.vocabulary:
        return list(range(shape.vocabulary))
    if not recipe.closure:
        model = TokenizerModel(checkpoint.tokenizer)
        seen = {i for i, n in found.task.items() if n >= recipe.min_count} | set(found.general)
        return model.order((seen & set(model.text_of)) | set(model.added.values()) | checkpoint.named_ids)
    needed = needed_tokens(checkpoint.path, checkpoint.tokenizer, checkpoint.named_ids, shape, recipe, pins, found)
    counts: Mapping[int, float] = needed.counts
    if shape.vocabulary > LARGE_VOCABULARY:
        # Of a large vocabulary the text at hand holds a small part, and words that other prompts need would go: each is then
        # spelled in pieces, which costs answers. What the model would have written in the same places stands for them.
        counts = _likely(needed.counts, expected(), needed.model.text_of)
    return choose_vocabulary(needed.model, counts, needed.floor, needed.size)


def _likely(counts: Mapping[int, int], expected: Mapping[int, float], ids: Iterable[int]) -> dict[int, float]:
    """How often each token is expected in new text: as often as counted, and as often again as the model would write it.

    The order of ids, by which a tokenizer's training found them more or less frequent, decides if both say nothing.
    """
    total = sum(counts.values())
    scale = total / (sum(expected.values()) or 1.0)
    return {i: counts.get(i, 0) + scale * expected.get(i, 0.0) + RANK_WEIGHT * total / (i + RANK_OFFSET) for i in ids}


def model_counts(
    checkpoint: Checkpoint, family: Family, texts: Texts, recipe: Recipe, batch_tokens: int
) -> dict[int, float]:
    """How often the uncut model would write each token in the places of some task text and as much general text."""
    settings = window_settings(recipe, checkpoint.model)
    settings |= {"tokens": min(settings["tokens"], EXPECTED_TOKENS), "general": 0.5 if recipe.general > 0 else 0.0}
    head = scorer_of(checkpoint.model)
    end = end_of_text(checkpoint.model, list(range(head.out_features)))
    windows = calibration_windows(texts, checkpoint.tokenizer, end, settings)
    data = calibration_set(windows, batch_tokens)
    runner = LayerRunner(checkpoint.model, family)
    total = torch.zeros(head.out_features, dtype=torch.float64)
    for batch in track([*data.fit, *data.compare], "Expected tokens", unit="batches"):
        total += expected_counts(head, _final(runner, batch)).cpu()
    return dict(enumerate(total.tolist()))


def _round_up(value: int) -> int:
    return -(-value // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def vocabulary_kl(checkpoint: Checkpoint, family: Family, kept: list[int], data: CalibrationSet) -> float:
    """Return the mean over the comparison tokens of ``-log`` of the probability mass that stays; 0 if all tokens stay."""
    head = scorer_of(checkpoint.model)
    if len(kept) == head.out_features:
        return 0.0
    runner = LayerRunner(checkpoint.model, family)
    old_of = torch.tensor(kept)  # the windows are in new ids, and the model still has the old ones
    total = 0.0
    count = 0
    for batch in track(data.compare, "Mass of the cut tokens", unit="batches"):
        kl = cut_mass_kl(head, _final(runner, replace(batch, ids=old_of[batch.ids])), kept)
        total += float(kl.double().sum())
        count += len(kl)
    return max(0.0, total / count)


def _final(runner: LayerRunner, batch: Batch) -> torch.Tensor:
    """What enters the head at the real tokens of a batch, (N, D)."""
    last = None
    for hidden in runner.forward(batch, range(len(runner.layers))):
        last = hidden
    assert last is not None
    return runner.finish(last)[batch.valid]
