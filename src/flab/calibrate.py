"""Calibration tokens in micro-batches, and the model run over them layer by layer.

Rows are padded on the right: under causal attention no token sees the padding, so no attention mask is needed and the
hidden states of real tokens are those of the unpadded text. Legend: B rows, T positions, D hidden size, N real tokens.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device
from tokenizers import Tokenizer
from torch import nn

from flab.data.samples import Sample
from flab.families import Family, embedding_of, extended, ffn_activations, layers_of, linear

HELD_OUT_EVERY = 8  # rows that choose the ridge
COMPARE_EVERY = 5  # windows that only compare candidates
PAD_MULTIPLE = 16
MIXED_MARK = "flab_mixed_precision"  # the attribute that marks a model opened for mixed precision
ROW_ELEMENTS = 2**22  # of an FFN's activations made at once: 16 MiB in float32, a few such tensors at a time


@dataclass(frozen=True)
class Window:
    """Some consecutive tokens of one sample."""

    ids: list[int]
    answer_from: int  # first answer token; len(ids) where there is none
    sample: int  # index into the samples, -1 for general text


@dataclass(frozen=True)
class Batch:
    """Windows of similar length, padded on the right; all (B, T)."""

    ids: torch.Tensor
    valid: torch.Tensor  # a real token stands here
    answer: torch.Tensor  # the *next* token belongs to an answer
    held_out: torch.Tensor  # kept from the fit, to choose the ridge
    weight: torch.Tensor  # in the least squares: 1, less on prompts that have an answer

    @property
    def num_tokens(self) -> int:
        return int(self.valid.sum())


@dataclass(frozen=True)
class CalibrationSet:
    """Batches to fit on, batches that only compare finished candidates, and which samples the latter hold."""

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
        """Whether a fit can be judged on rows that it does not see."""
        return any(bool(b.held_out.any()) for b in self.fit)


def special_prefix(tokenizer: Tokenizer) -> list[int]:
    """The ids, such as BOS, that the tokenizer itself puts before a text, and so every runtime does."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    starts = [i for i in range(len(whole) - len(plain) + 1) if whole[i : i + len(plain)] == plain]
    return whole[: starts[0]] if starts else []


def windows_of(
    samples: Sequence[Sample], tokenizer: Tokenizer, max_length: int, eos: int | None, prefix: Sequence[int] = ()
) -> list[Window]:
    """The samples as token windows; a prompt with an answer ends with ``eos`` and answers start where the prompt's text ends.

    Args:
        samples: the texts.
        tokenizer: splits them.
        max_length: tokens of the longest window, the prefix included.
        eos: ends an answer, if not None.
        prefix: ids that every window begins with, such as BOS.
    """
    windows = []
    room = max(1, max_length - len(prefix))
    for index, sample in enumerate(samples):
        encoding = tokenizer.encode(sample.text, add_special_tokens=False)
        ids, answer_from = list(encoding.ids), len(encoding.ids)
        if sample.prompt:
            starts = [i for i, (_, end) in enumerate(encoding.offsets) if end > len(sample.prompt)]
            answer_from = starts[0] if starts else len(ids)
            ids += [eos] if eos is not None else []
        for start in range(0, len(ids), room):
            part = ids[start : start + room]
            if len(part) > 1:
                windows.append(Window([*prefix, *part], max(0, answer_from - start) + len(prefix), index))
    return windows


def select_windows(task: list[Window], general: list[Window], tokens: int, share: float, seed: int) -> list[Window]:
    """At most ``tokens`` tokens, of which ``share`` are general text, shuffled by seed."""
    chosen = []
    available = sum(len(w.ids) for w in task)
    task_tokens = min(available, int(tokens * (1 - share))) if task else 0
    general_tokens = int(task_tokens * share / (1 - share)) if task and share < 1 else tokens
    for pool, limit in ((task, task_tokens), (general, general_tokens)):
        pool, used = list(pool), 0
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
    compare = [w for i, w in enumerate(windows) if i % COMPARE_EVERY == 0]
    fit = [w for i, w in enumerate(windows) if i % COMPARE_EVERY] or compare
    seen = {w.sample for w in fit}
    samples = sorted({w.sample for w in compare if w.sample >= 0 and w.sample not in seen})
    fitted, compared = (_batches(part, batch_tokens, prompt_weight) for part in (fit, compare))
    return CalibrationSet(fitted, compared, samples)


def first_batches(data: CalibrationSet, tokens: int) -> CalibrationSet:
    """About so many of the tokens to fit on, from batches of all lengths, and nothing to compare on."""
    stride = max(1, data.num_fit_tokens // tokens)
    return CalibrationSet(data.fit[stride // 2 :: stride] or data.fit[:1], [], [])


def _batches(windows: list[Window], batch_tokens: int, prompt_weight: float) -> list[Batch]:
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
        answer[row, max(0, window.answer_from - 1) : max(0, n - 1)] = window.answer_from < n
        held_out[row] = index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        if window.answer_from < n:
            weight[row, : max(0, window.answer_from - 1)] = prompt_weight
    return Batch(ids, valid, answer, held_out, weight)


class _Recorder(nn.Module):
    """Stands in for a layer: remembers what it was called with and passes the hidden states on."""

    def __init__(self, layer: nn.Module, calls: list[tuple[torch.Tensor, dict[str, Any]]]) -> None:
        super().__init__()
        object.__setattr__(self, "stood_for", layer)
        self.calls = calls

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "stood_for"), name)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        self.calls.append((hidden_states, kwargs))
        return hidden_states


def by_rows(states_ND: torch.Tensor, width: int) -> tuple[torch.Tensor, ...]:
    """The rows of a tensor, so many at a time that ``width`` values for each stay small."""
    return torch.split(states_ND, max(1, ROW_ELEMENTS // width))


class LayerRunner:
    """Runs single layers of a model with the masks and positions that the model itself gives each of them.

    Layers may be held in a narrower dtype than the rest of the model. Each is widened while it works, unless the model was
    opened for mixed precision (:func:`flab.prepare.open_to_cut`): then the products inside a layer are made in the layer's own
    16 bits, and the residual stream, the norms and all statistics stay in float32.
    """

    def __init__(self, model: Any, family: Family) -> None:
        self.model = model
        self.family = family
        self.layers = list(layers_of(model, family))
        self.dtype = embedding_of(model, family).weight.dtype
        self.mixed: bool = getattr(model, MIXED_MARK, False)
        self._kwargs: dict[tuple[int, int], list[dict[str, Any]]] = {}

    @torch.no_grad()
    def embed(self, batch: Batch) -> torch.Tensor:
        """Hidden states entering the first layer, (B, T, D)."""
        embedding = embedding_of(self.model, self.family)
        hidden: torch.Tensor = embedding(batch.ids.to(embedding.weight.device))
        return hidden

    @torch.no_grad()
    def _record(self, ids: torch.Tensor) -> list[dict[str, Any]]:
        """Masks and positions of every layer; only the shape of the ids decides them."""
        owner_path, _, name = self.family.layers.rpartition(".")
        owner, calls = self.model.get_submodule(owner_path), []  # type: ignore[var-annotated]
        original = getattr(owner, name)
        try:
            setattr(owner, name, nn.ModuleList(_Recorder(layer, calls) for layer in self.layers))
            owner(input_ids=ids.to(embedding_of(self.model, self.family).weight.device), use_cache=False)
        finally:
            setattr(owner, name, original)
        return [kwargs for _, kwargs in calls]

    def device(self, index: int) -> torch.device:
        """Where layer ``index`` computes."""
        return linear(self.layers[index], self.family.ffn_out).weight.device

    @contextlib.contextmanager
    def at_work(self, index: int) -> Iterator[nn.Module]:
        """Layer ``index`` with its parameters in the computing precision; afterwards they are what they were."""
        layer, held = self.layers[index], []
        for module in layer.modules() if not self.mixed else ():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dtype != self.dtype:
                    held.append((module, name, parameter))
                    setattr(module, name, nn.Parameter(parameter.to(self.dtype), requires_grad=False))
        try:
            yield layer
        finally:
            for module, name, parameter in held:
                setattr(module, name, parameter)

    def products(self) -> contextlib.AbstractContextManager[None]:
        """The precision in which a layer multiplies: its own 16 bits for a model in mixed precision."""
        if not self.mixed:
            return contextlib.nullcontext()
        weight = linear(self.layers[0], self.family.ffn_out).weight
        return torch.autocast(weight.device.type, dtype=weight.dtype)

    def widen(self, dtype: torch.dtype | None = None) -> None:
        """Put all parameters into one precision for good, as the model called as a whole needs them.

        Args:
            dtype: by default the computing precision, which in mixed precision is that of the layers.
        """
        if dtype is None:
            dtype = linear(self.layers[0], self.family.ffn_out).weight.dtype if self.mixed else self.dtype
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(dtype)
        setattr(self.model, MIXED_MARK, False)
        self.mixed = False

    def _call(self, index: int, hidden_BTD: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
        shape = (hidden_BTD.shape[0], hidden_BTD.shape[1])
        if shape not in self._kwargs:
            self._kwargs[shape] = self._record(torch.zeros(shape, dtype=torch.long))
        return hidden_BTD.to(self.device(index)), send_to_device(self._kwargs[shape][index], self.device(index))

    @torch.no_grad()
    def layer(self, index: int, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """The output of layer ``index``, (B, T, D)."""
        with self.at_work(index) as layer:
            return self.run(index, hidden_BTD, layer)

    def run(self, index: int, hidden_BTD: torch.Tensor, module: nn.Module) -> torch.Tensor:
        """The output of ``module`` standing in for layer ``index``, (B, T, D); gradients are not turned off."""
        hidden, kwargs = self._call(index, hidden_BTD)
        with self.products():
            output = module(hidden, **kwargs)
        return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]

    @torch.no_grad()
    def attention_features(self, index: int, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """What enters the attention's output projection of layer ``index``, (B, T, heads x head size)."""
        hidden, kwargs = self._call(index, hidden_BTD)
        caught: list[torch.Tensor] = []
        projection = linear(self.layers[index], self.family.attention_out)
        handle = projection.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
        try:
            with self.at_work(index) as layer, self.products():
                normed = layer.get_submodule(self.family.input_norm)(hidden)
                layer.get_submodule(self.family.attention)(hidden_states=normed, **kwargs)
        finally:
            handle.remove()
        return caught[0]

    @torch.no_grad()
    def ffn_features(self, index: int, mid: torch.Tensor, inputs: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """What enters the FFN's output projection of layer ``index``, (..., F), by its own or the given input projections."""
        with self.at_work(index) as layer, self.products():
            return ffn_activations(layer, self.family, mid.to(self.device(index)), inputs)

    @torch.no_grad()
    def after_ffn(
        self,
        index: int,
        mid_BTD: torch.Tensor,
        inputs: Sequence[torch.Tensor] | None = None,
        output: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The stream after the FFN of layer ``index``, (B, T, D), by its own or the given projections, some tokens at a time."""
        with self.at_work(index) as layer:
            own, parts = linear(layer, self.family.ffn_out), []
            weight, bias = (own.weight, own.bias) if output is None else (output, None)
            for mid in by_rows(mid_BTD.to(weight.device).flatten(0, -2), own.in_features):
                features = extended(self.ffn_features(index, mid, inputs), weight.shape[1])
                with self.products():
                    parts.append(mid + nn.functional.linear(features, weight, bias))
        return torch.cat(parts).view(mid_BTD.shape)

    @torch.no_grad()
    def finish(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """Hidden states after the final norm."""
        norm = self.model.get_submodule(self.family.final_norm)
        return norm(hidden_BTD.to(next(norm.parameters()).device))  # type: ignore[no-any-return]

    def forward(self, batch: Batch, kept: Sequence[int]) -> Iterator[torch.Tensor]:
        """The hidden states entering each kept layer in turn, and last those leaving the last."""
        hidden = self.embed(batch)
        yield hidden
        for index in kept:
            hidden = self.layer(index, hidden)
            yield hidden
