"""Requests, decoding settings and generations, which all backends share, and the batches of requests.

``Generator`` is the seam: scoring takes anything with that name and one method, and tests take ``FakeGenerator``.
It loads no model and no torch; the backends are ``flab.models.engines.transformers`` and ``flab.models.engines.vllm``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from flab.errors import DataError, OptionError
from flab.progress import track

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FinishReason = Literal["stop", "eos", "length"]


@dataclass(frozen=True)
class Request:
    """One sample of one item: the text to continue, what ends it, and the seed of its own random numbers.

    ``max_prompt_tokens`` cuts the prompt on the right. None never cuts; it is the default of all presets but ``paper``.
    ``special_tokens`` is off for a chat if its template writes no start token but the tokenizer would add one.
    """

    prompt: str
    stop: tuple[str, ...]
    seed: int = 0
    max_prompt_tokens: int | None = None
    special_tokens: bool = True


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen; temperature 0 is greedy. Models that are compared need the same settings."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    batch_size: int = 32

    def __post_init__(self) -> None:
        allowed = (
            ("`max_new_tokens`", self.max_new_tokens, self.max_new_tokens >= 1, "1 or more"),
            ("`temperature`", self.temperature, 0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            ("`top_p`", self.top_p, 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("`batch_size`", self.batch_size, self.batch_size >= 1, "1 or more"),
        )
        for flag, value, good, text in allowed:
            if not good:
                raise OptionError(f"{flag}: got {value}, allowed {text}.")


@dataclass(frozen=True)
class Generation:
    """One completion: text before the stop, tokens made (stop and eos included), and why it ended."""

    text: str
    num_tokens: int
    finish_reason: FinishReason


class Generator(Protocol):
    """Anything that completes a batch of requests, one generation for each, in their order."""

    name: str

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[Generation]:
        """Complete each request until a stop string of its own, an end token or ``max_new_tokens``."""
        ...


def batches(requests: Sequence[Request], decoding: Decoding) -> list[list[int]]:
    """Return indices of the requests in batches of similar length, longest prompts first. They are the same on every run."""
    # Rows of similar length share a batch, so there is little padding. The longest come first, so that a lack of memory
    # shows at once.
    order = sorted(range(len(requests)), key=lambda index: (-len(requests[index].prompt), index))
    return [order[at : at + decoding.batch_size] for at in range(0, len(order), decoding.batch_size)]


def generate_all(generator: Generator, requests: Sequence[Request], decoding: Decoding) -> list[Generation]:
    """Complete all requests batch by batch, with a progress bar; nothing is written."""
    made: dict[int, Generation] = {}
    for batch in track(batches(requests, decoding), "Generating", unit="batches"):
        answers = generator.generate([requests[index] for index in batch], decoding)
        made.update(zip(batch, answers, strict=True))
    return [made[index] for index in range(len(requests))]


class FakeGenerator:
    """Known answers: a mapping from prompt to answer, a function of the request, or a sequence.

    A sequence answers the requests in the order in which they come, and continues from batch to batch.
    """

    name = "fake"

    def __init__(self, answers: Mapping[str, str] | Sequence[str] | Callable[[Request], str]) -> None:
        self.answers = answers
        self.requests: list[Request] = []

    @property
    def prompts(self) -> list[str]:
        """The prompts so far, in order of arrival."""
        return [request.prompt for request in self.requests]

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[Generation]:
        """Cut each answer at the request's stop strings; one character counts as one token."""
        return [self._cut(self._answer(request), request.stop, decoding.max_new_tokens) for request in requests]

    def _answer(self, request: Request) -> str:
        self.requests.append(request)
        if callable(self.answers):
            return self.answers(request)
        if isinstance(self.answers, Mapping):
            return self.answers[request.prompt]
        assert len(self.requests) <= len(self.answers), "a FakeGenerator needs one answer for each request"
        return self.answers[len(self.requests) - 1]

    @staticmethod
    def _cut(text: str, stop: Sequence[str], most: int) -> Generation:
        kept = cut_at_stop(text, stop)
        if len(kept) > most:
            return Generation(text[:most], most, "length")
        return Generation(kept, len(kept), "stop" if kept != text else "eos")


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Return ``text`` before the earliest stop string in it."""
    return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]


@dataclass(frozen=True)
class Encoded:
    """A request as token ids, and how many tokens may follow within the context."""

    ids: list[int]
    budget: int
    stop: tuple[str, ...]
    seed: int


def encode_requests(
    tokenizer: Tokenizer, requests: Sequence[Request], max_new_tokens: int, context: int | None
) -> list[Encoded]:
    """Encode with the tokenizer's own special tokens, if a request wants them.

    Raises:
        DataError: a prompt is empty or leaves no room in the context. It is not cut unless that was asked for.
    """
    texts = [tokenizer.encode(one.prompt, add_special_tokens=one.special_tokens) for one in requests]
    rows = [list(text.ids)[: request.max_prompt_tokens] for text, request in zip(texts, requests, strict=True)]
    for ids, request in zip(rows, requests, strict=True):
        start = f"the prompt {request.prompt[:40]!r}"
        if not ids:
            raise DataError(f"{start} is empty: give at least one token, or leave the problem out")
        if context is not None and len(ids) >= context:
            raise DataError(
                f"{start} has {len(ids)} tokens, but the context is {context}; flab does not cut prompts: "
                "leave the problem out, or use a model with a longer context"
            )
    budgets = [max_new_tokens if context is None else min(max_new_tokens, context - len(ids)) for ids in rows]
    return [Encoded(ids, room, r.stop, r.seed) for ids, room, r in zip(rows, budgets, requests, strict=True)]


def finish_rows(
    tokenizer: Tokenizer, rows: Sequence[Encoded], made: Sequence[list[int]], eos_ids: Sequence[int]
) -> list[Generation]:
    """Decode the tokens after each prompt, and cut the text at its end token or earliest stop string."""
    # The text is cut at the first end token or stop string. A backend may have generated a few tokens beyond it.
    ends = [next((at for at, token in enumerate(ids) if token in eos_ids), None) for ids in made]
    kept = [ids[:end] for ids, end in zip(made, ends, strict=True)]
    texts = decode_after(tokenizer, [row.ids for row in rows], kept)
    return [_finish(*parts) for parts in zip(texts, rows, map(len, kept), ends, strict=True)]


def _finish(text: str, row: Encoded, num_tokens: int, end: int | None) -> Generation:
    kept = cut_at_stop(text, row.stop)
    if kept != text:
        return Generation(kept, num_tokens, "stop")
    if end is not None:
        return Generation(text, num_tokens + 1, "eos")
    return Generation(text, num_tokens, "length" if num_tokens >= row.budget else "stop")


def decode_after(tokenizer: Tokenizer, prompts: Sequence[list[int]], made: Sequence[list[int]]) -> list[str]:
    """Decode each row as a continuation of its prompt, so that a decoder cannot strip a leading indentation."""
    # A decoder may strip a space at the beginning of a text, but in Python the first space of an answer is indentation.
    # Prompt and answer are therefore decoded together, and the prompt's own text is removed.
    before = tokenizer.decode_batch(list(prompts), skip_special_tokens=False)
    joined = [prompt + ids for prompt, ids in zip(prompts, made, strict=True)]
    both = tokenizer.decode_batch(joined, skip_special_tokens=False)
    alone = tokenizer.decode_batch(list(made), skip_special_tokens=False)
    rows = zip(both, before, alone, strict=True)
    return [text[len(prompt) :] if text.startswith(prompt) else own for text, prompt, own in rows]


def untruncated(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer, or a copy of it if it would truncate or pad by itself."""
    if tokenizer.truncation is None and tokenizer.padding is None:
        return tokenizer
    copy = type(tokenizer).from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Put the model in evaluation mode, and afterwards restore the mode of each of its modules."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
