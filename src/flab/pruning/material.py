"""The input of the search and the refit for one vocabulary: the kept tokens, and the calibration windows made of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from flab.models.checkpoint import Checkpoint
from flab.models.families import Family
from flab.models.options import Options
from flab.models.tokenizer import end_of_text, new_tokenizer
from flab.pruning.calibration import (
    CalibrationSet,
    Texts,
    Window,
    calibration_set,
    calibration_windows,
    first_tokens,
    window_settings,
)
from flab.pruning.journal import Journal
from flab.pruning.recipe import Recipe
from flab.pruning.refit.streams import Streams
from flab.pruning.vocabulary import vocabulary_kl


@dataclass(frozen=True)
class Material:
    """The kept tokens and what follows from them; budgets that keep the same tokens share it."""

    kept: list[int]  # new id -> old id
    tokenizer: Tokenizer
    tokenizer_json: dict[str, Any] | None  # None if the vocabulary stays whole
    settings: dict[str, Any]  # what decides the windows
    windows: list[Window]
    data: CalibrationSet  # all windows: the winner is fitted on them
    small: CalibrationSet  # the first of them: the search sees these
    kl_vocabulary: float  # nats per token
    streams: Streams  # of the model with this vocabulary, over ``data``
    small_streams: Streams = field(default_factory=Streams)  # over ``small``

    def free_streams(self) -> None:
        """Free the streams; they can be computed again."""
        self.streams.clear()
        self.small_streams.clear()


def prepare_material(
    checkpoint: Checkpoint,
    family: Family,
    kept: list[int],
    texts: Texts,
    recipe: Recipe,
    options: Options,
    streams: Streams,
    journal: Journal,
) -> Material:
    """Tokenize and pack the texts for a vocabulary, and measure its cut. The model still has its full vocabulary.

    Raises:
        DataError: there is too little text.
    """
    rows = checkpoint.model.get_input_embeddings().num_embeddings
    tokenizer, tokenizer_json = new_tokenizer(checkpoint.tokenizer, rows, kept)
    settings = window_settings(recipe, checkpoint.model)
    # The new tokenizer makes the windows, so they hold the new ids that the pruned model will read.
    windows = calibration_windows(texts, tokenizer, end_of_text(checkpoint.model, kept), settings)
    # Some windows are fitted, some choose the ridge, and some are only compared on for the KL.
    data = calibration_set(windows, options.batch_tokens, recipe.prompt_weight)
    return Material(
        kept=kept,
        tokenizer=tokenizer,
        tokenizer_json=tokenizer_json,
        settings=settings,
        windows=windows,
        data=data,
        small=first_tokens(windows, recipe.search_tokens, options.batch_tokens, recipe.prompt_weight),
        kl_vocabulary=journal.recall("vocabulary", lambda: vocabulary_kl(checkpoint, family, kept, data)),
        streams=streams,
    )
