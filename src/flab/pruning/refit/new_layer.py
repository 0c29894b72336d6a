"""What becomes of one kept layer: the decisions, the new weights, and how they are put into a layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from flab.models.families import Family, linear
from flab.pruning.cuts.neurons import cut_ffn


@dataclass(frozen=True)
class NewLayer:
    """The decisions and new weights of one kept layer; ``None`` weights stay as they are."""

    index: int
    neurons: list[int]
    ffn_out: torch.Tensor  # (D, P) in float64, the last column the bias where there is one
    attention_out: torch.Tensor | None
    ridge_ffn: float
    ridge_attention: float
    ffn_in: list[torch.Tensor] | None = None  # input projections, each (F', D) or (F', D + 1)
    newton_steps: int = 0
    state: dict[str, torch.Tensor] | None = None  # all tensors of the cut layer, instead of the matrices above
    reconstruction_rate: float = 0.0
    descended: bool = False


def replace_weights(layer: nn.Module, family: Family, new: NewLayer) -> None:
    """Cut one layer's FFN to the chosen neurons and put the new weights into it."""
    out = linear(layer, family.ffn_out)
    if len(new.neurons) < out.in_features:
        cut_ffn(layer, family, new.neurons)
    if new.state is not None:
        layer.load_state_dict(new.state)
        return
    _copy(out, new.ffn_out)
    # A fused family stores gate and up projection as one matrix, the gate's rows first.
    inputs = [torch.cat(new.ffn_in)] if family.fused and new.ffn_in else new.ffn_in
    for path, weights in zip(family.ffn_in, inputs or (), strict=False):
        _copy(linear(layer, path), weights)
    if new.attention_out is not None:
        _copy(linear(layer, family.attention_out), new.attention_out)


@torch.no_grad()
def _copy(module: nn.Linear, weights: torch.Tensor) -> None:
    """Weights (D, P) with the bias as last column, into a linear layer of P (or P - 1) inputs."""
    module.weight.copy_(weights[:, : module.in_features])
    if module.bias is not None:
        module.bias.copy_(weights[:, -1])
