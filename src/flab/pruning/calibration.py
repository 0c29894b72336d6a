"""The calibration text: from files to windows of tokens, and from windows to micro-batches.

A plan and its replay use the same code, so the same files give the same batches. Nothing is measured here.

Rows are padded on the right. Under causal attention no token sees the padding, so no attention mask is needed, and the
hidden states of real tokens are those of the unpadded text. Legend: B rows, T positions, D hidden size, N real tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from flab.data.samples import Sample, Source, calibration_samples, files_under, general_samples, read_samples, sha256_of
from flab.errors import DataError, PlanError
from flab.models.chat import CLOSE, ChatTemplate, chat_template, continued
from flab.models.checkpoint import Checkpoint
from flab.models.layers import Batch
from flab.models.tokenizer import special_prefix
from flab.progress import say_once
from flab.pruning.recipe import Recipe

# Every eighth row is held out of the fit, to choose the ridge.
HELD_OUT_EVERY = 8
# Every fifth window is used only to compare candidates.
COMPARE_EVERY = 5
PAD_MULTIPLE = 16


@dataclass(frozen=True)
class Texts:
    """Everything that is read: the task, general text that should not be lost, and a corpus for the vocabulary alone."""

    task: list[Sample]
    general: list[Sample]
    corpus: list[Sample]
    sources: list[Source]
    corpus_sources: list[Source]

    def task_texts(self) -> list[str]:
        """Return the texts that must stay covered: prompts, answers, both joined, and the corpus."""
        parts = [part for s in self.task for part in (s.text, s.prompt, s.completion) if part]
        # The tokenizer may split a prompt differently where its answer follows, so all three texts are counted.
        return list(dict.fromkeys([*parts, *(s.text for s in self.corpus)]))

    def in_template(self, checkpoint: Checkpoint, choice: str) -> Texts:
        """Return the texts with every chat in the model's own template, unless ``choice`` is ``none``."""
        folder = checkpoint.path
        tokenizer = checkpoint.tokenizer
        return replace(
            self,
            task=in_template(self.task, folder, tokenizer, choice),
            corpus=in_template(self.corpus, folder, tokenizer, choice),
        )

    def general_texts(self) -> list[str]:
        """Return the texts that stay covered as far as the budget allows."""
        return [sample.text for sample in self.general]


def read_texts(recipe: Recipe) -> Texts:
    """Read and hash calibration, general and corpus text.

    Raises:
        DataError: a file is missing, empty or malformed; names file and line.
    """
    task, source = calibration_samples(recipe.calibration)
    general, general_source = general_samples() if recipe.general > 0 else ([], None)
    corpus = [sample for path in recipe.corpus for sample in read_samples(path)]
    corpus_sources = [Source(str(path.resolve()), sha256_of(files_under(path))) for path in recipe.corpus]
    return Texts(task, general, corpus, [source] + ([general_source] if general_source else []), corpus_sources)


def announce(recipe: Recipe) -> None:
    """Say which data is read by default. Called once all input has been found to be valid."""
    if recipe.calibration is None:
        say_once("calibration: the bundled instruction samples (`calibration` FILE for your own)")
    if recipe.general > 0:
        say_once(
            f"calibration: {recipe.general:.0%} of the tokens from Python's standard library (`general` 0 for none)"
        )


def verify_sources(texts: Texts, planned: Sequence[dict[str, str]]) -> None:
    """Check that the data is what the plan names.

    Raises:
        PlanError: a file differs; names it, and says what to do.
    """
    got = {source.name: source.sha256 for source in texts.sources}
    for item in planned:
        if got.get(item["path"]) != item["sha256"]:
            raise PlanError(
                f"calibration data {item['path']} is not what the plan was made with (SHA-256 differs): "
                "bring the same data, plan again, or cut alone (`refit`)."
            )


@dataclass(frozen=True)
class Window:
    """Some consecutive tokens of one sample."""

    ids: list[int]
    answer_from: int  # first answer token; len(ids) if there is none
    sample: int  # index into the samples, -1 for general text


@dataclass(frozen=True)
class CalibrationSet:
    """Batches to fit on, batches that only compare finished candidates, and the samples of the latter."""

    fit: list[Batch]
    compare: list[Batch]
    compare_samples: list[int]

    @property
    def num_fit_tokens(self) -> int:
        return sum(b.num_tokens for b in self.fit)

    @property
    def num_compare_tokens(self) -> int:
        return sum(b.num_tokens for b in self.compare)

    @property
    def has_held_out(self) -> bool:
        """Whether some rows are held out, so that a fit can be judged on them."""
        return any(bool(b.held_out.any()) for b in self.fit)


def windows_of(
    samples: Sequence[Sample], tokenizer: Tokenizer, max_length: int, eos: int | None, prefix: Sequence[int] = ()
) -> list[Window]:
    """Return the samples as token windows. An answer starts where the prompt's text ends, and it ends with ``eos``.

    Args:
        max_length: tokens of the longest window, including the prefix.
        eos: the id that ends an answer, or None.
        prefix: ids that every window begins with, such as BOS.
    """
    windows = []
    room = max(1, max_length - len(prefix))
    for index, sample in enumerate(samples):
        encoding = tokenizer.encode(sample.text, add_special_tokens=False)
        ids = list(encoding.ids)
        answer_from = len(encoding.ids)
        if sample.prompt:
            # The first token that reaches beyond the prompt. A token that spans the boundary belongs to the answer,
            # because predicting it means predicting the answer's first letters.
            starts = [i for i, (_, end) in enumerate(encoding.offsets) if end > len(sample.prompt)]
            answer_from = starts[0] if starts else len(ids)
            ids += [eos] if eos is not None and not sample.is_ended else []
        before = list(prefix) if sample.special_tokens else []
        for start in range(0, len(ids), room):
            part = ids[start : start + room]
            # A window of one token has nothing to predict.
            if len(part) > 1:
                windows.append(Window([*before, *part], max(0, answer_from - start) + len(before), index))
    return windows


def calibration_windows(texts: Texts, tokenizer: Tokenizer, eos: int | None, settings: dict[str, Any]) -> list[Window]:
    """Return the windows of the calibration tokens, shuffled by seed; general text carries sample -1.

    ``settings`` holds tokens, max_length, general, seed, and whether windows begin with the tokenizer's own prefix (BOS).
    In plans of flab 0.1 they do not.

    Raises:
        DataError: the text gives fewer than two windows.
    """
    length = settings["max_length"]
    prefix = special_prefix(tokenizer) if settings.get("special_tokens") else []
    task = windows_of(texts.task, tokenizer, length, eos, prefix)
    general = _general_windows(texts.general, tokenizer, settings, prefix)
    windows = select_windows(task, general, settings["tokens"], settings["general"], settings["seed"])
    if len(windows) < 2:
        raise DataError("the calibration text gives fewer than two sequences of tokens: add more text.")
    return windows


def window_settings(recipe: Recipe, model: Any) -> dict[str, Any]:
    """Return the settings that determine the calibration windows, as a plan records them."""
    longest = getattr(model.config, "max_position_embeddings", None) or recipe.max_length
    return {
        "tokens": recipe.tokens,
        "max_length": min(recipe.max_length, longest),
        "general": recipe.general,
        "seed": recipe.seed,
        "prompt_weight": recipe.prompt_weight,
        "special_tokens": True,
        "template": recipe.template,
    }


def _general_windows(
    samples: list[Sample], tokenizer: Tokenizer, settings: dict[str, Any], prefix: list[int]
) -> list[Window]:
    """Return windows of whole general texts, in a seeded order, with four times as many tokens as needed.

    The surplus makes sure that the windows chosen from them come from many files.
    """
    # In sorted order a few packages of the library would fill all windows.
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


def select_windows(task: list[Window], general: list[Window], tokens: int, share: float, seed: int) -> list[Window]:
    """Return at most ``tokens`` tokens, of which ``share`` are general text, shuffled by seed."""
    chosen = []
    available = sum(len(w.ids) for w in task)
    task_tokens = min(available, int(tokens * (1 - share))) if task else 0
    # If the task has less text than was asked for, general text shrinks with it, so the shares stay as set.
    general_tokens = int(task_tokens * share / (1 - share)) if task and share < 1 else tokens
    for pool, limit in ((task, task_tokens), (general, general_tokens)):
        pool = list(pool)
        used = 0
        random.Random(seed).shuffle(pool)
        for window in pool:
            if used + len(window.ids) > limit:
                break
            used += len(window.ids)
            chosen.append(window)
    random.Random(seed).shuffle(chosen)
    return chosen


def calibration_set(windows: list[Window], batch_tokens: int = 4096, prompt_weight: float = 1.0) -> CalibrationSet:
    """Split the windows in two parts and pack each into micro-batches of about ``batch_tokens`` padded tokens."""
    # The windows are shuffled already, so every n-th of them is a random sample.
    compare = [w for i, w in enumerate(windows) if i % COMPARE_EVERY == 0]
    fit = [w for i, w in enumerate(windows) if i % COMPARE_EVERY] or compare
    seen = {w.sample for w in fit}
    # A long sample has several windows. It counts as unseen only if none of them is fitted.
    samples = sorted({w.sample for w in compare if w.sample >= 0 and w.sample not in seen})
    fitted, compared = (_batches(part, batch_tokens, prompt_weight) for part in (fit, compare))
    return CalibrationSet(fitted, compared, samples)


def first_tokens(windows: list[Window], tokens: int, batch_tokens: int, prompt_weight: float) -> CalibrationSet:
    """Pack the first ``tokens`` tokens (at least two windows), for the search and the finalists."""
    used = 0
    count = 0
    for window in windows:
        used += len(window.ids)
        if used > tokens and count >= 2:
            break
        count += 1
    return calibration_set(windows[:count], batch_tokens, prompt_weight)


def thinned(data: CalibrationSet, tokens: int) -> CalibrationSet:
    """Return about ``tokens`` of the tokens to fit on, in whole rows of all lengths, and nothing to compare on."""
    stride = max(1, data.num_fit_tokens // tokens)
    rows = sum(len(batch.ids) for batch in data.fit)
    # Batches are sorted by length, so taking every n-th row selects rows of all lengths.
    chosen = torch.arange(min(stride, rows) // 2, rows, stride)
    parts = []
    start = 0
    for batch in data.fit:
        here = chosen[(chosen >= start) & (chosen < start + len(batch.ids))] - start
        start += len(batch.ids)
        if len(here):
            parts.append(Batch(*(getattr(batch, field.name)[here] for field in fields(Batch))))
    return CalibrationSet(parts, [], [])


def _batches(windows: list[Window], batch_tokens: int, prompt_weight: float) -> list[Batch]:
    # Rows of similar length share a batch. Padding costs as much as any token, and this keeps it to a few percent.
    rows = sorted(enumerate(windows), key=lambda item: (len(item[1].ids), item[0]))
    batches: list[Batch] = []
    start = 0
    while start < len(rows):
        stop = start + 1
        while stop < len(rows) and _padded(len(rows[stop][1].ids)) * (stop + 1 - start) <= batch_tokens:
            stop += 1
        batches.append(_batch(rows[start:stop], prompt_weight))
        start = stop
    return batches


def _padded(length: int) -> int:
    return -(-length // PAD_MULTIPLE) * PAD_MULTIPLE


def _batch(rows: list[tuple[int, Window]], prompt_weight: float) -> Batch:
    longest = _padded(max(len(w.ids) for _, w in rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    valid, answer, held_out = (torch.zeros(len(rows), longest, dtype=torch.bool) for _ in range(3))
    weight = torch.ones(len(rows), longest)
    for row, (index, window) in enumerate(rows):
        n = len(window.ids)
        ids[row, :n] = torch.tensor(window.ids)
        valid[row, :n] = True
        # Masks are by the position that predicts: position t predicts token t + 1, hence the shift by one to
        # the left.
        answer[row, max(0, window.answer_from - 1) : max(0, n - 1)] = window.answer_from < n
        # ``index`` is the place before sorting by length, so held-out rows are of all lengths.
        held_out[row] = index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        if window.answer_from < n:
            weight[row, : max(0, window.answer_from - 1)] = prompt_weight
    return Batch(ids, valid, answer, held_out, weight)


def in_template(samples: Sequence[Sample], folder: Path, tokenizer: Tokenizer, choice: str = "auto") -> list[Sample]:
    """Return the samples with every chat in the model's template. All others, or all if it has none, stay as they are.

    ``choice`` is ``auto`` or ``none``, which leaves chats in the plain words of :mod:`flab.data.samples`.

    Raises:
        OptionError: the template does not render.
    """
    if choice == "none" or not any(sample.messages for sample in samples):
        return list(samples)
    template = chat_template(folder, tokenizer)
    if template is None:
        say_once(f"{folder} has no chat template: chats are read as plain text")
        return list(samples)
    special_tokens, ending = template.special_tokens, template.ending
    say_once(f"chats are read in the chat template of {folder} (`template` none reads them as plain text)")
    return [
        replace(_rendered(sample, template, ending), special_tokens=special_tokens) if sample.messages else sample
        for sample in samples
    ]


def _rendered(sample: Sample, template: ChatTemplate, ending: str) -> Sample:
    """Render one chat. Its completion is the last answer, followed by what the template writes after an answer."""
    messages = list(sample.messages)
    if messages[-1]["role"] != "assistant":
        return replace(sample, prompt="", completion=template(messages))
    answer = sample.completion
    prompt = template(messages[:-1], thinking=CLOSE in answer)
    return replace(sample, prompt=prompt, completion=continued(prompt, answer) + ending, is_ended=bool(ending))
