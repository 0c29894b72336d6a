"""Describe a model from its folder: sizes from the config, stored tensors from the headers. No weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from flab.files import PathLike
from flab.models.checkpoint import read_config
from flab.models.families import Family, family_of, is_tied, kv_numbers, shape_of
from flab.models.options import Options
from flab.models.shape import Shape
from flab.models.source import ModelFolder
from flab.models.tokenizer import load_tokenizer, quiet
from flab.pruning.budget import VOCABULARY_MULTIPLE, rounded_up
from flab.runs.estimate import NUMBER_BYTES, Size


@dataclass(frozen=True)
class ModelFacts:
    """What a folder tells about its model without its weights."""

    path: Path
    config: Any
    family: Family
    shape: Shape
    tied: bool
    tokenizer: Tokenizer
    named_ids: set[int]  # as set in the model's config
    warnings: list[str]
    stored: str
    weights_bytes: int

    @property
    def size(self) -> Size:
        """The sizes that a cut changes."""
        return Size(self.shape.vocabulary, self.shape.layers, self.shape.width, self.shape.experts)

    @property
    def kv_bytes(self) -> int:
        """The bytes of keys and values for each token in the stored precision."""
        return kv_numbers(self.config, self.shape.layers) * NUMBER_BYTES[self.stored]


def model_facts(model: PathLike, options: Options | None = None) -> ModelFacts:
    """Read a folder's config, tokenizer and headers.

    Raises:
        CheckpointError, UnsupportedModelError: as when the model is loaded.
    """
    folder = ModelFolder.open(model)
    path = folder.path
    config = read_config(folder, (options or Options()).trust_remote_code)
    family = family_of(config)
    stored = folder.stored
    config.tie_word_embeddings = f"{family.head}.weight" not in stored  # what the weights say
    tokenizer, named_ids, warnings = load_tokenizer(path)
    # This model has tensors without memory. Only their sizes are needed.
    with quiet(), torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    return ModelFacts(
        path=path,
        config=config,
        family=family,
        shape=shape_of(empty, family),
        tied=is_tied(empty, family),
        tokenizer=tokenizer,
        named_ids=named_ids,
        warnings=warnings,
        stored=folder.stored_dtype,
        weights_bytes=sum(one.size_bytes for one in stored.values()),
    )


def assumed_vocabulary(shape: Shape, remove: float) -> int:
    """Return the tokens that planning keeps if the text needs no more: the vocabulary shrinks no more than the model."""
    return min(shape.vocabulary, max(VOCABULARY_MULTIPLE, rounded_up(int((1 - remove) * shape.vocabulary))))
