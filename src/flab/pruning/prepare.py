"""From folder and files to what the cuts read: texts, a vocabulary-cut model, calibration batches.

The same path serves the plan (which decides) and its replay (which does not). It measures nothing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from flab.data.samples import Sample, Source, calibration_samples, files_under, general_samples, read_samples, sha256_of
from flab.errors import CheckpointError, DataError, PlanError
from flab.models.checkpoint import Checkpoint, compute_dtype, open_model, try_saving
from flab.models.families import Family
from flab.models.folder import resolve, stored_dtype, weight_dtypes, weight_files
from flab.models.layers import MIXED_MARK
from flab.models.options import Options
from flab.progress import say_once
from flab.pruning.calibration import CalibrationSet, Window, calibration_set, select_windows, special_prefix, windows_of
from flab.pruning.cuts.vocabulary import TokenizerModel, cut_vocabulary, rewrite_tokenizer
from flab.pruning.recipe import Recipe
from flab.pruning.refit.curvature import multiplies_bfloat16

MIXED = "mixed"  # the name of this precision in plans
NARROW = {"bfloat16": "BF16", "float16": "F16"}  # what safetensors calls them
MIXED_BYTES = 2**26  # from this on a model with 16-bit weights is cut in mixed precision


@dataclass(frozen=True)
class Texts:
    """Everything that is read: what to do well (task), what not to lose (general), what to count besides (corpus)."""

    task: list[Sample]
    general: list[Sample]
    corpus: list[Sample]
    sources: list[Source]
    corpus_sources: list[Source]

    def task_texts(self) -> list[str]:
        """The texts that must stay covered: prompts, answers, both joined, and the corpus."""
        parts = [part for s in self.task for part in (s.text, s.prompt, s.completion) if part]
        return list(dict.fromkeys([*parts, *(s.text for s in self.corpus)]))

    def general_texts(self) -> list[str]:
        """The texts that should not be lost where the budget allows."""
        return [sample.text for sample in self.general]


def read_texts(recipe: Recipe) -> Texts:
    """Read and hash calibration, general and corpus text.

    Raises:
        DataError: missing, empty or malformed; names file and line.
    """
    task, source = calibration_samples(recipe.calibration)
    general, general_source = general_samples() if recipe.general > 0 else ([], None)
    corpus = [sample for path in recipe.corpus for sample in read_samples(path)]
    corpus_sources = [Source(str(path.resolve()), sha256_of(files_under(path))) for path in recipe.corpus]
    return Texts(task, general, corpus, [source] + ([general_source] if general_source else []), corpus_sources)


def announce(recipe: Recipe) -> None:
    """Say which data is read where the user named none; only once all that was given is found to be right."""
    if recipe.calibration is None:
        say_once("calibration: the bundled instruction samples (--calibration FILE for your own)")
    if recipe.general > 0:
        say_once(
            f"calibration: {recipe.general:.0%} of the tokens from Python's standard library (--general 0 for none)"
        )


def verify_sources(texts: Texts, planned: Sequence[dict[str, str]]) -> None:
    """Demand the data that the plan names.

    Raises:
        PlanError: names the file that differs, and what to do.
    """
    got = {source.name: source.sha256 for source in texts.sources}
    for item in planned:
        if got.get(item["path"]) != item["sha256"]:
            raise PlanError(
                f"calibration data {item['path']} is not what the plan was made with (SHA-256 differs): "
                "bring the same data, plan again, or pass --no-refit to cut alone."
            )


def cutting_dtype(path: Path, options: Options) -> str:
    """The precision to plan and cut in: as asked, else ``mixed`` where the weights are bfloat16 and the device multiplies it.

    Mixed precision multiplies inside a layer in bfloat16 and keeps the residual stream and all statistics in float32. The
    stream of a real model holds activations thousands of times larger than the rest; beside them a bfloat16 stream would
    lose the rest. Models of a few million parameters are cut in float32, which costs them little.
    """
    if options.dtype != "auto" or options.device == "auto":
        return compute_dtype(path, options)
    large = sum(f.stat().st_size for f in weight_files(path)) >= MIXED_BYTES
    narrow = weight_dtypes(path) == {"BF16"} and stored_dtype(path) == "bfloat16"
    return MIXED if large and narrow and multiplies_bfloat16(options.device) else compute_dtype(path, options)


def open_to_cut(source: str | Path, options: Options, dtype: str | None = None) -> tuple[Checkpoint, Family]:
    """Load a model to be read and cut layer by layer: its layers stay as they are stored where all is 16 bits wide.

    All else is in float32. :class:`flab.models.layers.LayerRunner` widens one layer at a time, or multiplies in the
    layers' own 16 bits where ``dtype`` is "mixed". To call the model as a whole,
    :meth:`~flab.models.layers.LayerRunner.widen` it.

    Raises:
        CheckpointError, UnsupportedModelError
    """
    path = resolve(source)
    computing = dtype or cutting_dtype(path, options)
    stored = stored_dtype(path)
    mixed = computing == MIXED
    narrow = mixed or (
        computing == "float32" and options.device != "auto" and weight_dtypes(path) == {NARROW.get(stored)}
    )
    checkpoint, family = open_model(path, options, stored if narrow else computing)
    try_saving(checkpoint, family)
    if narrow:
        inside = {id(p) for p in checkpoint.model.get_submodule(family.layers).parameters()}
        for parameter in checkpoint.model.parameters():
            # a copy lets go of the mapped file, which would stay in memory as long as any tensor of it does
            parameter.data = parameter.data.clone() if id(parameter) in inside else parameter.data.float()
    setattr(checkpoint.model, MIXED_MARK, mixed)
    return checkpoint, family


def new_tokenizer(checkpoint: Checkpoint, kept: list[int]) -> tuple[Tokenizer, dict[str, Any] | None]:
    """The tokenizer of the kept tokens, and its JSON; the original and None where nothing is cut."""
    if len(kept) >= checkpoint.model.get_input_embeddings().num_embeddings:
        return checkpoint.tokenizer, None
    data = rewrite_tokenizer(TokenizerModel(checkpoint.tokenizer), kept)
    tokenizer = Tokenizer.from_str(json.dumps(data))
    old = checkpoint.tokenizer
    wrong = [i for i, k in enumerate(kept) if old.id_to_token(k) != tokenizer.id_to_token(i)]
    if wrong:
        raise CheckpointError(
            f"the rewritten tokenizer renumbers token {wrong[0]} otherwise than planned: keep the vocabulary with --vocabulary "
            f"{checkpoint.model.get_input_embeddings().num_embeddings} and report this tokenizer."
        )
    return tokenizer, data


def cut_to_vocabulary(checkpoint: Checkpoint, family: Family, kept: list[int]) -> None:
    """Cut the rows in place, where any goes."""
    if len(kept) < checkpoint.model.get_input_embeddings().num_embeddings:
        cut_vocabulary(checkpoint.model, family, kept)


def end_of_text(model: Any, kept: list[int]) -> int | None:
    """The (new) id that ends an answer: the first eos of the generation config, else of the config."""
    for config in (model.generation_config, model.config):
        eos = getattr(config, "eos_token_id", None)
        eos = eos[0] if isinstance(eos, list) and eos else eos
        if isinstance(eos, int):
            return kept.index(eos) if eos in kept else None
    return None


def calibration_windows(texts: Texts, tokenizer: Tokenizer, eos: int | None, settings: dict[str, Any]) -> list[Window]:
    """The windows of the calibration tokens, shuffled by seed; general text carries sample -1.

    ``settings`` holds tokens, max_length, general, seed, and whether windows begin with the tokenizer's own prefix (BOS),
    which plans of flab 0.1 do not.

    Raises:
        DataError: when fewer than two windows come out.
    """
    length = settings["max_length"]
    prefix = special_prefix(tokenizer) if settings.get("special_tokens") else []
    task = windows_of(texts.task, tokenizer, length, eos, prefix)
    general = _general_windows(texts.general, tokenizer, settings, prefix)
    windows = select_windows(task, general, settings["tokens"], settings["general"], settings["seed"])
    if len(windows) < 2:
        raise DataError("the calibration text gives fewer than two sequences of tokens: add more text.")
    return windows


def _general_windows(
    samples: list[Sample], tokenizer: Tokenizer, settings: dict[str, Any], prefix: list[int]
) -> list[Window]:
    """Windows of whole general texts, taken in a seeded order until there are four times as many tokens as asked.

    More than are used, so that the windows chosen from them come from many files.
    """
    order = list(samples)
    random.Random(settings["seed"]).shuffle(order)
    windows: list[Window] = []
    tokens = 0
    for sample in order:
        if tokens > 4 * settings["tokens"] * settings["general"]:
            break
        found = windows_of([sample], tokenizer, settings["max_length"], None, prefix)
        windows += [Window(w.ids, len(w.ids), -1) for w in found]
        tokens += sum(len(w.ids) for w in found)
    return windows


def build_set(windows: list[Window], options: Options, prompt_weight: float) -> CalibrationSet:
    """Pack all windows."""
    return calibration_set(windows, options.batch_tokens, prompt_weight)


def first_tokens(windows: list[Window], tokens: int, options: Options, prompt_weight: float) -> CalibrationSet:
    """Pack the first ``tokens`` tokens: what the search and the finalists see."""
    used, count = 0, 0
    for window in windows:
        used += len(window.ids)
        if used > tokens and count >= 2:
            break
        count += 1
    return calibration_set(windows[:count], options.batch_tokens, prompt_weight)
