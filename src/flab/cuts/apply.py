"""The only surgeon: carries decisions out on a model in memory, in place.

It makes no choice. Layers are cut as the walk passes them, so that no second copy of the model is ever held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from flab.calibrate import Batch, LayerRunner
from flab.cuts.ffn import cut_ffn
from flab.cuts.layers import cut_layers
from flab.cuts.refit import Cut, NewLayer, Walk
from flab.families import Family, layers_of, linear
from flab.progress import track


def carve(
    model: Any, family: Family, cut: Cut, fit: Sequence[Batch], compare: Sequence[Batch]
) -> tuple[list[NewLayer], Walk]:
    """Cut layers and neurons of ``model`` in place and put the refitted weights in.

    Returns the decisions made (without weights) and the finished walk, which knows the divergence.
    """
    walk = Walk(LayerRunner(model, family), cut, fit, compare)
    layers, decisions = layers_of(model, family), []
    for new in track(walk, "Cutting and refitting layers", total=len(cut.kept_layers)):
        replace_weights(layers[new.index], family, new)
        decisions.append(replace(new, ffn_out=new.ffn_out[:0], attention_out=None, ffn_in=None))
    if len(cut.kept_layers) < len(layers):
        cut_layers(model, family, cut.kept_layers)
    model.config.intermediate_size = cut.width
    return decisions, walk


def replace_weights(layer: nn.Module, family: Family, new: NewLayer) -> None:
    """Cut one layer's FFN to the chosen neurons and copy the new output projections into it."""
    out = linear(layer, family.ffn_out)
    if len(new.neurons) < out.in_features:
        cut_ffn(layer, family, new.neurons)
    _copy(out, new.ffn_out)
    for path, weights in zip(family.ffn_in, new.ffn_in or (), strict=False):
        _copy(linear(layer, path), weights)
    if new.attention_out is not None:
        _copy(linear(layer, family.attention_out), new.attention_out)


@torch.no_grad()
def _copy(module: nn.Linear, weights: torch.Tensor) -> None:
    """Weights (D, P) with the bias as last column, into a linear layer of P (or P - 1) inputs."""
    module.weight.copy_(weights[:, : module.in_features])
    if module.bias is not None:
        module.bias.copy_(weights[:, -1])
