"""The instructions for the layers (:class:`Cut`), and the outcome for one: its new weights, and how to put them into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from flab.models.families import Family, attention_out, linear
from flab.models.mixture import Mixture, mixture_of
from flab.models.weights import read_in
from flab.pruning.cuts.neurons import cut_ffn
from flab.pruning.refit.descent import Examples


@dataclass(frozen=True)
class Narrowing:
    """How the experts of a mixture lose neurons: all keep ``width`` of them, those that the criterion ranks highest.

    ``neurons`` replay a plan: for each kept layer and each of its kept experts, the neurons that stay.
    """

    width: int
    criterion: str = "elimination"
    seed: int = 0
    neurons: Sequence[Sequence[Sequence[int]]] | None = None


@dataclass(frozen=True)
class Cut:
    """Instructions: which layers stay, how wide they become, how neurons are chosen and weights refitted.

    In a mixture, experts take the place of neurons, and the width is their number. ``neurons`` (one list per kept layer) and
    the ridges replay a plan; without them the walk chooses. ``scores`` is (L, F) over the original layers, or None for
    elimination.
    """

    kept_layers: Sequence[int]
    width: int
    kind: str = "residual"  # one of REFITS
    output_projection: bool = True
    scores: torch.Tensor | None = None
    neurons: Sequence[Sequence[int]] | None = None
    ridge_ffn: Sequence[float] | None = None
    ridge_attention: Sequence[float] | None = None
    newton_steps: Sequence[int] | None = None
    descended: Sequence[bool] | None = None
    scaling: str = "feature"  # what a ridge is relative to; "mean" also gives all tokens the same weight
    reconstruction_rates: Sequence[float] | None = None
    narrowing: Narrowing | None = None  # None leaves experts as wide as they are


@dataclass(frozen=True)
class FfnSolution:
    """The closed-form solution of one FFN."""

    neurons: list[int]
    weights: torch.Tensor  # (D, P), the output projection, float64
    ridge: float
    correction: torch.Tensor | None  # (D, P), the part of the weights that makes up for earlier cuts; for descent
    examples: Examples | None  # for descent


@dataclass(frozen=True)
class NewLayer:
    """The decisions and new weights of one kept layer; ``None`` weights stay as they are."""

    index: int
    neurons: list[int]  # or experts of a mixture
    ffn_out: torch.Tensor  # (D, P) in float64, the last column the bias where there is one
    attention_out: torch.Tensor | None
    ridge_ffn: float
    ridge_attention: float
    ffn_in: list[torch.Tensor] | None = None  # input projections, each (F', D) or (F', D + 1)
    newton_steps: int = 0
    state: dict[str, torch.Tensor] | None = None  # all tensors of the cut layer, instead of the matrices above
    reconstruction_rate: float = 0.0
    descended: bool = False
    mixture: Mixture | None = None  # the experts that stay, in place of the matrices of an FFN
    inside: Sequence[Sequence[int]] | None = None  # the neurons of each expert that stays, if experts become narrower
    num_short: int = 0  # experts with fewer tokens than neurons, for which activation chose instead of elimination


def cut_inside(
    layer: nn.Module, family: Family, kept: Sequence[int], inside: Sequence[Sequence[int]] | None = None
) -> None:
    """Keep only these neurons, or experts, of one layer, in place; of each expert, keep only the neurons ``inside``."""
    if family.experts:
        mixture = mixture_of(layer, family)
        if len(kept) < mixture.count:
            mixture = mixture.only(kept)
        if inside is not None:
            mixture = mixture.narrowed(inside)
        layer.set_submodule(family.ffn, mixture.ffn)
    elif len(kept) < linear(layer, family.ffn_out).in_features:
        cut_ffn(layer, family, kept)


def replace_weights(layer: nn.Module, family: Family, new: NewLayer) -> None:
    """Cut one layer's FFN to the chosen neurons and put the new weights into it."""
    if new.mixture is not None:
        dtype = attention_out(layer, family).weight.dtype
        layer.set_submodule(family.ffn, new.mixture.cast(dtype).ffn)
    # If the layer lies in files, the replaced weights are not read.
    read_in(layer)
    attention = attention_out(layer, family)
    if family.ffn_out:
        cut_inside(layer, family, new.neurons)
    if new.state is not None:
        # Every tensor of a reconstructed layer has changed, so all of them are copied and nothing else is left to do.
        layer.load_state_dict(new.state)
        return
    if family.ffn_out:
        _copy(linear(layer, family.ffn_out), new.ffn_out)
    # A fused family stores gate and up projection as one matrix, the gate's rows first.
    inputs = [torch.cat(new.ffn_in)] if family.fused and new.ffn_in else new.ffn_in
    for path, weights in zip(family.ffn_in, inputs or (), strict=False):
        _copy(linear(layer, path), weights)
    if new.attention_out is not None:
        _copy(attention, new.attention_out)


@torch.no_grad()
def _copy(module: nn.Linear, weights: torch.Tensor) -> None:
    """Copy weights (D, P), with the bias as last column if there is one, into a linear layer of P (or P - 1) inputs."""
    module.weight.copy_(weights[:, : module.in_features])
    if module.bias is not None:
        module.bias.copy_(weights[:, -1])
