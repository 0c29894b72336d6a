"""What a plan works with once the vocabulary is chosen: the new tokenizer, the calibration text in its tokens, and the price of
the cut. All of it follows from the kept tokens, so budgets of a sweep that keep the same ones share it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from flab.models.checkpoint import Checkpoint
from flab.models.families import Family
from flab.models.options import Options
from flab.pruning.calibration import CalibrationSet, Window
from flab.pruning.prepare import Texts, build_set, calibration_windows, end_of_text, first_tokens, new_tokenizer
from flab.pruning.recipe import Recipe
from flab.pruning.refit.streams import SWEEP_BYTES, Streams
from flab.pruning.vocabulary import vocabulary_kl


@dataclass(frozen=True)
class Material:
    """The kept tokens and what follows from them."""

    kept: list[int]
    tokenizer: Tokenizer
    tokenizer_json: dict[str, Any] | None
    settings: dict[str, Any]  # what decides the windows
    windows: list[Window]
    data: CalibrationSet  # all of them
    small: CalibrationSet  # what the search sees
    kl_vocabulary: float
    # of the model with this vocabulary, over ``data``
    streams: Streams = field(default_factory=lambda: Streams(SWEEP_BYTES))
    small_streams: Streams = field(default_factory=Streams)  # over ``small``

    def free_streams(self) -> None:
        """Let go of what can be made anew."""
        self.streams.clear()
        self.small_streams.clear()


def prepare_material(
    checkpoint: Checkpoint, family: Family, kept: list[int], texts: Texts, recipe: Recipe, options: Options
) -> Material:
    """Tokenize and pack the texts for a vocabulary; the model still has its own.

    Raises:
        DataError: the texts are too few.
    """
    tokenizer, tokenizer_json = new_tokenizer(checkpoint, kept)
    settings = window_settings(recipe, checkpoint.model)
    windows = calibration_windows(texts, tokenizer, end_of_text(checkpoint.model, kept), settings)
    data = build_set(windows, options, recipe.prompt_weight)
    small = first_tokens(windows, recipe.search_tokens, options, recipe.prompt_weight)
    kl_vocabulary = vocabulary_kl(checkpoint, family, kept, data)
    return Material(kept, tokenizer, tokenizer_json, settings, windows, data, small, kl_vocabulary)


def window_settings(recipe: Recipe, model: Any) -> dict[str, Any]:
    """What decides which calibration windows come out."""
    longest = getattr(model.config, "max_position_embeddings", None) or recipe.max_length
    length = min(recipe.max_length, longest)
    return {
        "tokens": recipe.tokens,
        "max_length": length,
        "general": recipe.general,
        "seed": recipe.seed,
        "prompt_weight": recipe.prompt_weight,
        "special_tokens": True,
    }
