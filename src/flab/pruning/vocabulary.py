"""Which tokens a budget keeps, and what that costs. The cut itself is in :mod:`flab.pruning.cuts.vocabulary`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from tokenizers import Tokenizer

from flab.models.checkpoint import Checkpoint
from flab.models.families import Family
from flab.models.layers import LayerRunner
from flab.models.scorer import scorer_of
from flab.models.shape import Shape
from flab.models.tokenizer import TokenizerModel, end_of_text
from flab.pruning.budget import Pins, rounded_up, spare_tokens, vocabulary_for
from flab.pruning.calibration import CalibrationSet, Texts, calibration_set, calibration_windows, window_settings
from flab.pruning.cuts.vocabulary import choose_vocabulary, count_tokens, covered_tokens, floor_tokens, required_tokens
from flab.pruning.objective import cut_mass_kl, expected_counts
from flab.pruning.recipe import Recipe

# In a vocabulary above this size, no calibration text holds all the tokens that other text of its kind needs.
LARGE_VOCABULARY = 32_768
EXPECTED_TOKENS = 12_288  # places at which the uncut model is asked what it would write
# The weight of the order of ids, as a fraction of all counts.
RANK_WEIGHT = 0.003
# In ids: the first ones are bytes, and those after them are all frequent.
RANK_OFFSET = 300


@dataclass(frozen=True)
class Counts:
    """How often each token of the uncut vocabulary occurs in the task's and in general text."""

    task: Counter[int]
    general: Counter[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer, task: Sequence[str], general: Sequence[str]) -> Counts:
        """Count them."""
        return cls(count_tokens(tokenizer, task), count_tokens(tokenizer, general))


class Tokenized(Protocol):
    """A loaded model, or its facts alone: something with a tokenizer and a folder."""

    @property
    def path(self) -> Path: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def named_ids(self) -> set[int]: ...


@dataclass
class Needs:
    """The tokens that texts need; computed once for all budgets, when first asked for."""

    source: Tokenized  # the model, whose files name tokens that must stay
    recipe: Recipe  # how tokens are counted, and whether their pieces stay; its budget is not used
    found: Counts  # how often each token occurs

    @cached_property
    def model(self) -> TokenizerModel:
        """The tokenizer's own tables."""
        return TokenizerModel(self.source.tokenizer)

    @cached_property
    def counts(self) -> Counter[int]:
        """How often each token occurs in all texts, without those that the task uses too rarely."""
        return Counter({i: n for i, n in self.found.task.items() if n >= self.recipe.min_count}) + self.found.general

    @cached_property
    def required(self) -> set[int]:
        """The tokens that are kept even if the texts do not use them."""
        return required_tokens(self.source.path, self.source.tokenizer, self.source.named_ids)

    @cached_property
    def covered(self) -> set[int]:
        """The tokens that the task's text is made of, and their pieces."""
        return covered_tokens(self.model, self.found.task, self.required, self.recipe.min_count)

    @cached_property
    def num_covered(self) -> int:
        """The number of different tokens in all texts."""
        return len(covered_tokens(self.model, self.counts, self.required))

    def decided(self, shape: Shape, remove: float, pins: Pins) -> list[int] | None:
        """Return new id -> old id if there is nothing to choose: all tokens, or without closure all that occur. Else None."""
        if vocabulary_for(shape, remove, 0, pins) >= shape.vocabulary:
            return list(range(shape.vocabulary))
        if self.recipe.closure:
            return None
        seen = self.counts.keys() & self.model.text_of.keys()
        return self.model.order(seen | set(self.model.added.values()) | self.source.named_ids)

    def size(self, shape: Shape, remove: float, pins: Pins) -> int:
        """Return how many tokens stay: all of the task's text, and more if the budget allows it.

        Tokens of general text are added while the vocabulary keeps no larger a share than the whole model does. Widths change
        in coarse steps; a large vocabulary gets further tokens for what they leave of the budget.

        Raises:
            BudgetError: a pinned size is below the tokens that must stay.
        """
        decided = self.decided(shape, remove, pins)
        if decided is not None:
            return len(decided)
        # The vocabulary shrinks at most by the same share as the model, so that tokens alone do not pay for a small cut.
        affordable = min(self.num_covered, int((1 - remove) * shape.vocabulary))
        size = vocabulary_for(shape, remove, max(rounded_up(len(self.covered)), rounded_up(affordable)), pins)
        if shape.vocabulary > LARGE_VOCABULARY:
            size += spare_tokens(shape, remove, size, pins)
        # The embedding may have more rows than the tokenizer has tokens (padding rows); those are never kept.
        size = min(size, len(self.model.text_of))
        floor_tokens(self.model, self.floor(size), size)
        return size

    def floor(self, size: int) -> set[int]:
        """Return the tokens that stay in any case, which include those of the task's text if they fit."""
        return self.covered if len(self.covered) <= size else self.required


def plan_vocabulary(
    needs: Needs, shape: Shape, remove: float, pins: Pins, expected: Callable[[], Mapping[int, float]] = dict
) -> list[int]:
    """Choose :meth:`Needs.size` tokens, the most likely first. Return the old id of each new id.

    For a large vocabulary the model helps to choose: ``expected`` returns how often it would write each token.

    Raises:
        BudgetError: as :meth:`Needs.size`, before ``expected`` is called.
    """
    decided = needs.decided(shape, remove, pins)
    if decided is not None:
        return decided
    size = needs.size(shape, remove, pins)
    counts: Mapping[int, float] = needs.counts
    if shape.vocabulary > LARGE_VOCABULARY:
        # The text uses a small part of a large vocabulary, and cutting the rest would remove words that other prompts need.
        # Spelling them in pieces costs answers. What the model would have written in the same places stands in for them.
        counts = _likely(needs.counts, expected(), needs.model.text_of)
    return choose_vocabulary(needs.model, counts, needs.floor(size), size)


def _likely(counts: Mapping[int, int], expected: Mapping[int, float], ids: Iterable[int]) -> dict[int, float]:
    """Return how often to expect each token in new text: the counts, plus what the model would write at equal weight.

    If both are zero, the order of ids decides, because a tokenizer's training numbers frequent tokens first.
    """
    # Three sources, each in units of counts: the text at hand, what the model would have written in its places
    # (scaled to as many tokens), and a prior by rank, because a BPE tokenizer numbers frequent tokens first
    # (Zipf's law).
    total = sum(counts.values())
    scale = total / (sum(expected.values()) or 1.0)
    return {i: counts.get(i, 0) + scale * expected.get(i, 0.0) + RANK_WEIGHT * total / (i + RANK_OFFSET) for i in ids}


def model_counts(
    checkpoint: Checkpoint, family: Family, texts: Texts, recipe: Recipe, batch_tokens: int
) -> dict[int, float]:
    """Return how often the uncut model would write each token at places of task text and as much general text."""
    settings = window_settings(recipe, checkpoint.model)
    settings |= {"tokens": min(settings["tokens"], EXPECTED_TOKENS), "general": 0.5 if recipe.general > 0 else 0.0}
    head = scorer_of(checkpoint.model)
    end = end_of_text(checkpoint.model, list(range(head.out_features)))
    windows = calibration_windows(texts, checkpoint.tokenizer, end, settings)
    data = calibration_set(windows, batch_tokens)
    runner = LayerRunner(checkpoint.model, family)
    total = torch.zeros(head.out_features, dtype=torch.float64)
    for entering in runner.finals([*data.fit, *data.compare], "Expected tokens"):
        total += expected_counts(head, entering).cpu()
    return dict(enumerate(total.tolist()))


def vocabulary_kl(checkpoint: Checkpoint, family: Family, kept: list[int], data: CalibrationSet) -> float:
    """Return the mean over the comparison tokens of ``-log`` of the probability mass that stays; 0 if all tokens stay."""
    head = scorer_of(checkpoint.model)
    if len(kept) == head.out_features:
        return 0.0
    runner = LayerRunner(checkpoint.model, family)
    # The windows are in new ids, but the model still has the old ones.
    old_of = torch.tensor(kept)
    total = 0.0
    count = 0
    batches = [replace(batch, ids=old_of[batch.ids]) for batch in data.compare]
    for entering in runner.finals(batches, "Mass of the cut tokens"):
        kl = cut_mass_kl(head, entering, kept)
        total += float(kl.double().sum())
        count += len(kl)
    # Rounding can make the logarithm of a mass of one slightly positive.
    return max(0.0, total / count)
