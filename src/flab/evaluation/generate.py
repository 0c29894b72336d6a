"""Greedy completions of many prompts by a model in memory, cut exactly at the earliest stop string.

``Generator`` is the seam: scoring takes anything with that one method, and tests take ``FakeGenerator``. It
does not sample, does not write files, and never truncates a prompt: one that does not fit the context raises.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, Protocol

from flab.errors import DataError
from flab.progress import track

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FinishReason = Literal["stop", "eos", "length"]


@dataclass(frozen=True)
class Generation:
    """One completion: text before the stop, tokens made (stop and eos included), and why it ended."""

    text: str
    num_tokens: int
    finish_reason: FinishReason


class Generator(Protocol):
    """Anything that completes prompts, one generation for each, in the order of the prompts."""

    def generate(self, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str]) -> list[Generation]:
        """Complete each prompt until a stop string, an end token or ``max_new_tokens``."""
        ...


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Return ``text`` before the earliest stop string in it."""
    return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]


class FakeGenerator:
    """Gives known answers: a mapping from prompt to answer, or answers in the order of the prompts."""

    def __init__(self, answers: Mapping[str, str] | Sequence[str]) -> None:
        self.answers = answers
        self.prompts: list[str] = []

    def generate(self, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str]) -> list[Generation]:
        """Cut each answer at the stop strings; one character counts as one token."""
        self.prompts.extend(prompts)
        answers = self.answers
        texts = [answers[p] for p in prompts] if isinstance(answers, Mapping) else list(answers)[: len(prompts)]
        assert len(texts) == len(prompts), "a FakeGenerator needs one answer for each prompt"
        return [self._answer(text, max_new_tokens, stop) for text in texts]

    def _answer(self, text: str, max_new_tokens: int, stop: Sequence[str]) -> Generation:
        kept = cut_at_stop(text, stop)
        if len(kept) > max_new_tokens:
            return Generation(text[:max_new_tokens], max_new_tokens, "length")
        return Generation(kept, len(kept), "stop" if kept != text else "eos")


@dataclass(frozen=True)
class _Prompt:
    """One encoded prompt, its place in the input, and how many tokens may follow it within the context."""

    index: int
    ids: list[int]
    budget: int


class TransformersGenerator:
    """Greedy decoding with a Hugging Face causal LM and a raw ``tokenizers.Tokenizer``, in batches.

    Results move with batch size and dtype where two tokens are nearly tied: compare models under the same.
    Of the model's generation settings only the end tokens apply (no repetition penalty, no temperature).
    """

    def __init__(
        self, model: Any, tokenizer: Tokenizer, batch_size: int = 32, eos_ids: Sequence[int] | None = None
    ) -> None:
        assert batch_size >= 1
        self.model = model
        self.tokenizer = untruncated(tokenizer)
        self.batch_size = batch_size
        self.eos_ids = list(eos_ids) if eos_ids is not None else model_eos_ids(model)

    def generate(self, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str]) -> list[Generation]:
        """Complete the prompts, like lengths together; DataError for one that does not fit the context."""
        import torch

        encoded = [self._encode(i, prompt, max_new_tokens) for i, prompt in enumerate(prompts)]
        results: dict[int, Generation] = {}
        batches = self._batches(encoded)
        with torch.inference_mode(), evaluation_mode(self.model), plain_greedy(self.model):
            for batch in track(batches, "Generating"):
                for prompt, generation in zip(batch, self._run(batch, stop), strict=True):
                    results[prompt.index] = generation
        return [results[index] for index in range(len(prompts))]

    def _encode(self, index: int, prompt: str, max_new_tokens: int) -> _Prompt:
        """Encode with the tokenizer's own special tokens, and check the length against the context."""
        ids = list(self.tokenizer.encode(prompt).ids)
        context = getattr(self.model.config, "max_position_embeddings", None)
        room = max_new_tokens if context is None else int(context) - len(ids)
        if not ids:
            raise DataError(f"prompt {index} is empty: give at least one token, or leave the problem out")
        if room < 1:
            raise DataError(
                f"prompt {index} has {len(ids)} tokens, the context is {context}; prompts are not cut: "
                "leave the problem out, or use a model with a longer context"
            )
        return _Prompt(index, ids, min(max_new_tokens, room))

    def _batches(self, encoded: list[_Prompt]) -> list[list[_Prompt]]:
        """Cut the prompts into batches of like length and equal budget."""
        ordered = sorted(encoded, key=lambda prompt: (prompt.budget, -len(prompt.ids)))
        batches = []
        for _, group in groupby(ordered, key=lambda prompt: prompt.budget):
            rows = list(group)
            batches += [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        return batches

    def _run(self, batch: list[_Prompt], stop: Sequence[str]) -> list[Generation]:
        """Generate for one batch and cut each row."""
        import torch
        from transformers import GenerationConfig, StoppingCriteriaList

        width, pad_id = max(len(row.ids) for row in batch), (self.eos_ids or [0])[0]
        padding = [width - len(row.ids) for row in batch]
        ids = [[pad_id] * pad + row.ids for pad, row in zip(padding, batch, strict=True)]
        mask = [[0] * pad + [1] * len(row.ids) for pad, row in zip(padding, batch, strict=True)]
        stopper = StopStrings(self.tokenizer, stop, width, len(batch))
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=batch[0].budget,
            pad_token_id=pad_id,
            eos_token_id=self.eos_ids or None,
        )
        output = self.model.generate(
            input_ids=torch.tensor(ids, device=self.model.device),
            attention_mask=torch.tensor(mask, device=self.model.device),
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([stopper] if stop else []),
        )
        made = [row[width:] for row in output.tolist()]
        return [self._cut(*row, stop) for row in zip(batch, made, stopper.lengths, strict=True)]

    def _cut(self, prompt: _Prompt, made: list[int], stopped: int | None, stop: Sequence[str]) -> Generation:
        """Decode one row after its prompt, and cut it at its end token or earliest stop string."""
        made = made[:stopped]
        end = next((i for i, token in enumerate(made) if token in self.eos_ids), None)
        text = decode_after(self.tokenizer, prompt.ids, made[:end])
        kept = cut_at_stop(text, stop)
        if kept != text:
            return Generation(kept, len(made[:end]), "stop")
        if end is not None:
            return Generation(text, end + 1, "eos")
        return Generation(text, len(made), "length" if stopped is None else "stop")


class StopStrings:
    """A stopping criterion that finishes each row by itself, as soon as its new text holds a stop string.

    Only the last tokens are decoded at each step: a stop string of n bytes ends in at most n tokens.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], prompt_width: int, num_rows: int) -> None:
        self.tokenizer = tokenizer
        self.stop = tuple(stop)
        self.prompt_width = prompt_width
        self.window = max((len(text.encode()) for text in stop), default=0) + 4
        self.lengths: list[int | None] = [None] * num_rows

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """Return a bool for each row; ``lengths`` keeps how many new tokens a row had when it stopped."""
        import torch

        num_new = input_ids.shape[1] - self.prompt_width
        tails = input_ids[:, -min(self.window, num_new) :].tolist() if num_new else []
        for row, tail in enumerate(tails):
            if self.lengths[row] is None:
                text = self.tokenizer.decode(tail, skip_special_tokens=False)
                if any(word in text for word in self.stop):
                    self.lengths[row] = num_new
        done = [length is not None for length in self.lengths]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


def decode_after(tokenizer: Tokenizer, prompt_ids: list[int], ids: list[int]) -> str:
    """Decode ``ids`` as what follows the prompt, so that a decoder cannot strip a leading indentation."""
    before = tokenizer.decode(prompt_ids, skip_special_tokens=False)
    both = tokenizer.decode(prompt_ids + ids, skip_special_tokens=False)
    return str(both[len(before) :] if both.startswith(before) else tokenizer.decode(ids, skip_special_tokens=False))


def untruncated(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer, or a copy of it where it would truncate or pad by itself."""
    if tokenizer.truncation is None and tokenizer.padding is None:
        return tokenizer
    copy = type(tokenizer).from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def model_eos_ids(model: Any) -> list[int]:
    """Return the model's end tokens: an int, a list or nothing, in its generation settings or its config."""
    for holder in (getattr(model, "generation_config", None), model.config):
        ids = getattr(holder, "eos_token_id", None)
        if ids is not None:
            return [ids] if isinstance(ids, int) else list(ids)
    return []


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Put the model in evaluation mode, and each of its modules back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def plain_greedy(model: Any) -> Iterator[None]:
    """Give the model default generation settings, and its own back afterwards.

    ``generate`` fills what a caller leaves open from the model's own settings, so that a checkpoint with a
    repetition penalty would not be greedy.
    """
    from transformers import GenerationConfig

    settings = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = settings
