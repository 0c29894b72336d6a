"""Run a model over batches layer by layer, with the masks and positions that the model itself gives each layer.

Legend: B rows, T positions, D hidden size, N real tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn

from flab.models.branch import Branch
from flab.models.families import (
    Family,
    attention_at,
    attention_out,
    attention_out_at,
    calls_of,
    embedding_of,
    extended,
    ffn_activations,
    layers_of,
    linear,
    norm_at,
)
from flab.models.mixture import Mixture, Routing, mixture_of
from flab.models.weights import in_memory, place_of, read_in
from flab.progress import track

MIXED_MARK = "flab_mixed_precision"  # the attribute that marks a model opened for mixed precision
ROW_ELEMENTS = 2**22  # of an FFN's activations made at once: 16 MiB in float32, a few such tensors at a time
GPU_ROW_ELEMENTS = 2**26  # the same on a GPU, which products of a few hundred rows would leave idle


@dataclass(frozen=True)
class Batch:
    """Windows of similar length, padded on the right; all (B, T)."""

    ids: torch.Tensor
    valid: torch.Tensor  # a real token stands here
    answer: torch.Tensor  # the *next* token belongs to an answer
    held_out: torch.Tensor  # kept from the fit, to choose the ridge
    weight: torch.Tensor  # in the least squares: 1, or less for a prompt that has an answer

    @property
    def num_tokens(self) -> int:
        return int(self.valid.sum())


def multiplies_bfloat16(device: str) -> bool:
    """Return whether a device ("cpu", "cuda", "cuda:1") has instructions for bfloat16 products."""
    if device.startswith("cuda"):
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict[str, bool])()
    return device == "cpu" and any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


class _Recorder(nn.Module):
    """Stands in for a layer: remembers what it was called with and passes the hidden states on."""

    def __init__(self, layer: nn.Module, calls: list[tuple[torch.Tensor, dict[str, Any]]]) -> None:
        super().__init__()
        # Past ``nn.Module.__setattr__``, which would register the real layer as a submodule and its parameters
        # with it.
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
    """Return the rows of a tensor in chunks, small enough that ``width`` values for each row stay small."""
    most = GPU_ROW_ELEMENTS if states_ND.is_cuda else ROW_ELEMENTS
    return torch.split(states_ND, max(1, most // width))


class LayerRunner:
    """Runs single layers of a model with the masks and positions that the model itself gives each of them.

    A layer's weights may lie in the model's files (:mod:`flab.models.weights`); they are in memory only while it runs.
    Layers may have a narrower dtype than the rest of the model, and each is widened while it runs. If the model was opened
    for mixed precision (:func:`flab.models.checkpoint.open_to_cut`), the products inside a layer use its own 16 bits
    instead, and the residual stream, the norms and all statistics stay in float32.
    """

    def __init__(self, model: Any, family: Family) -> None:
        self.model = model
        self.family = family
        self.layers = list(layers_of(model, family))
        self.dtype = embedding_of(model, family).weight.dtype
        self.mixed: bool = getattr(model, MIXED_MARK, False)
        # Asked now, because a plan with one layer in memory lets go of the first layer when it is cut.
        self._narrow = (self.device(0).type, attention_out(self.layers[0], family).weight.dtype)
        self._kwargs: dict[tuple[int, int], list[dict[str, Any]]] = {}

    def embed(self, batch: Batch) -> torch.Tensor:
        """Return hidden states entering the first layer, (B, T, D), with whatever the model does to its embeddings."""
        return self.embed_ids(batch.ids)

    @torch.no_grad()
    def embed_ids(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Return the same for token ids alone."""
        # The whole model is called with stand-ins for its layers. It computes its own embeddings, masks and rotary
        # positions, whatever its family does there, and no layer runs.
        calls = self._record(ids_BT)
        self._kwargs.setdefault((len(ids_BT), ids_BT.shape[1]), [kwargs for _, kwargs in calls])
        return calls[0][0]

    @torch.no_grad()
    def _record(self, ids: torch.Tensor) -> list[tuple[torch.Tensor, dict[str, Any]]]:
        """Return the arguments of every layer: the embeddings, and its mask and positions."""
        owner_path, _, name = self.family.layers.rpartition(".")
        owner = self.model.get_submodule(owner_path)
        calls: list[tuple[torch.Tensor, dict[str, Any]]] = []
        original = getattr(owner, name)
        try:
            setattr(owner, name, nn.ModuleList(_Recorder(layer, calls) for layer in self.layers))
            owner(input_ids=ids.to(embedding_of(self.model, self.family).weight.device), use_cache=False)
        finally:
            setattr(owner, name, original)
        return calls

    def attention_branch(self, index: int) -> Branch:
        """Return how the attention's output projection of layer ``index`` adds to the stream."""
        out = attention_out_at(self.layers[index], self.family)
        return self._branch(index, out, self.family.attention_norm_after)

    def ffn_branch(self, index: int) -> Branch:
        """Return how the FFN's output projection of layer ``index`` adds to the stream."""
        return self._branch(index, self.family.ffn_out, self.family.ffn_norm_after)

    def _branch(self, index: int, projection: str, norm: str) -> Branch:
        layer = self.layers[index]
        factor = self.family.residual_factor
        return Branch(
            linear(layer, projection),
            layer.get_submodule(norm) if norm else None,
            float(getattr(layer, factor)) if factor else 1.0,
        )

    def device(self, index: int) -> torch.device:
        """Return the device of layer ``index``."""
        weight = attention_out(self.layers[index], self.family).weight
        place = place_of(weight)
        return weight.device if place is None else place.device

    @contextlib.contextmanager
    def at_work(self, index: int) -> Iterator[nn.Module]:
        """Yield layer ``index`` with its parameters in memory and in the computing precision; restore them afterwards."""
        layer = self.layers[index]
        held = []
        try:
            # The tensors are swapped instead of cast in place, and the old ones are put back, so nothing is rounded twice.
            for module in layer.modules():
                for name, parameter in module.named_parameters(recurse=False):
                    working = in_memory(parameter)
                    # Mixed precision narrows products alone. A layer norm of the float32 stream needs its own weights in float32;
                    # an RMS norm widens them itself.
                    if not self.mixed or isinstance(module, nn.LayerNorm):
                        working = working.to(self.dtype)
                    if working is not parameter:
                        held.append((module, name, parameter))
                        setattr(module, name, nn.Parameter(working, requires_grad=False))
            yield layer
        finally:
            for module, name, parameter in held:
                setattr(module, name, parameter)

    def products(self) -> contextlib.AbstractContextManager[None]:
        """Return the precision in which a layer multiplies: its own 16 bits for a model in mixed precision."""
        if not self.mixed:
            return contextlib.nullcontext()
        device, dtype = self._narrow
        return torch.autocast(device, dtype=dtype)

    def widen(self, dtype: torch.dtype | None = None) -> None:
        """Convert all parameters to one precision for good, so that the model can be called as a whole.

        By default it is the computing precision, which in mixed precision is that of the layers.
        """
        if dtype is None:
            dtype = attention_out(self.layers[0], self.family).weight.dtype if self.mixed else self.dtype
        read_in(self.model)
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(dtype)
        setattr(self.model, MIXED_MARK, False)
        self.mixed = False

    def _call(self, index: int, hidden_BTD: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
        shape = (hidden_BTD.shape[0], hidden_BTD.shape[1])
        if shape not in self._kwargs:
            # Only the shape of the ids decides masks and positions.
            self._kwargs[shape] = [kwargs for _, kwargs in self._record(torch.zeros(shape, dtype=torch.long))]
        return hidden_BTD.to(self.device(index)), send_to_device(self._kwargs[shape][index], self.device(index))

    @torch.no_grad()
    def layer(self, index: int, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """Return the output of layer ``index``, (B, T, D)."""
        with self.at_work(index) as layer:
            return self.run(index, hidden_BTD, layer)

    def run(self, index: int, hidden_BTD: torch.Tensor, module: nn.Module) -> torch.Tensor:
        """Return the output of ``module`` standing in for layer ``index``, (B, T, D); gradients are not turned off."""
        hidden, kwargs = self._call(index, hidden_BTD)
        with self.products():
            output = module(hidden, **kwargs)
        return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]

    @torch.no_grad()
    def attention_features(self, index: int, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """Return the input of the attention's output projection of layer ``index``, (B, T, heads x head size)."""
        hidden, kwargs = self._call(index, hidden_BTD)
        # A hook on the output projection sees its input whatever the attention does before (query norms, windows, sinks),
        # so no family's attention is reimplemented here.
        projection = attention_out(self.layers[index], self.family)
        with calls_of(projection) as calls, self.at_work(index) as layer, self.products():
            normed = norm_at(layer, self.family.input_norm)(hidden)
            layer.get_submodule(attention_at(layer, self.family))(hidden_states=normed, **kwargs)
        return calls[0][0]  # type: ignore[no-any-return]

    @torch.no_grad()
    def mid(self, index: int, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """Return the stream before the FFN of layer ``index``, (B, T, D)."""
        with self.at_work(index) as layer:
            features = self.attention_features(index, hidden_BTD)
            added = self.attention_branch(index)(attention_out(layer, self.family)(features))
        return hidden_BTD.to(added.device) + added

    @torch.no_grad()
    def ffn_features(self, index: int, mid: torch.Tensor, inputs: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """Return the input of the FFN's output projection of layer ``index``, (..., F), by its own or the given projections."""
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
        """Return the stream after the FFN of layer ``index``, (B, T, D), by its own or the given projections, in chunks."""
        if self.family.experts:
            return self.after_mixture(index, mid_BTD)
        with self.at_work(index) as layer:
            own = linear(layer, self.family.ffn_out)
            branch = self.ffn_branch(index)
            parts = []
            weight, bias = (own.weight, own.bias) if output is None else (output, None)
            for mid in by_rows(mid_BTD.to(weight.device).flatten(0, -2), own.in_features):
                features = extended(self.ffn_features(index, mid, inputs), weight.shape[1])
                with self.products():
                    parts.append(mid + branch(nn.functional.linear(features, weight, bias)))
        return torch.cat(parts).view(mid_BTD.shape)

    @torch.no_grad()
    def after_mixture(self, index: int, mid_BTD: torch.Tensor, mixture: Mixture | None = None) -> torch.Tensor:
        """Return the stream after the mixture of layer ``index``, (B, T, D), by its own or the given one."""
        with self.at_work(index) as layer:
            own = mixture or mixture_of(layer, self.family)
            mids = by_rows(mid_BTD.to(self.device(index)).flatten(0, -2), own.width * own.count)
            parts = [mid + self.routed(index, mid, own)[1].output for mid in mids]
        return torch.cat(parts).view(mid_BTD.shape)

    @torch.no_grad()
    def routed(self, index: int, mid_ND: torch.Tensor, mixture: Mixture) -> tuple[torch.Tensor, Routing]:
        """Return the input of a mixture in layer ``index``, (N, D), and its routing."""
        with self.products():
            hidden = norm_at(self.layers[index], self.family.ffn_norm)(mid_ND)
            return hidden, mixture.route(hidden)

    @torch.no_grad()
    def finish(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """Return hidden states after the final norm."""
        norm = self.model.get_submodule(self.family.final_norm)
        return norm(hidden_BTD.to(next(norm.parameters()).device))  # type: ignore[no-any-return]

    def finals(self, batches: Sequence[Batch], title: str) -> list[torch.Tensor]:
        """Return the head's inputs at the real tokens of each batch, (N, D). Each layer is read once.

        ``title`` names the pass in the progress.
        """
        states = [self.embed(batch) for batch in batches]
        for index in track(range(len(self.layers)), title, unit="layers"):
            with self.at_work(index):
                for place, hidden in enumerate(states):
                    states[place] = self.layer(index, hidden)
        return [self.finish(hidden)[batch.valid] for hidden, batch in zip(states, batches, strict=True)]

    def forward(self, batch: Batch, kept: Sequence[int]) -> Iterator[torch.Tensor]:
        """Yield the hidden states that enter each kept layer in turn, and finally those that leave the last one."""
        hidden = self.embed(batch)
        yield hidden
        for index in kept:
            hidden = self.layer(index, hidden)
            yield hidden
