"""The only surgeon: carries decisions out on a model in memory, in place.

It makes no choice. Layers are cut as the walk passes them, so that no second copy of the model is ever held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flab.models.families import Family, layers_of
from flab.models.layers import Batch, LayerRunner
from flab.progress import track
from flab.pruning.cuts.layers import cut_layers
from flab.pruning.refit.new_layer import NewLayer, replace_weights
from flab.pruning.refit.streams import Streams
from flab.pruning.refit.walk import Cut, Walk


def carve(
    model: Any,
    family: Family,
    cut: Cut,
    fit: Sequence[Batch],
    compare: Sequence[Batch],
    streams: Streams | None = None,
) -> tuple[list[NewLayer], Walk]:
    """Cut layers and neurons, or experts, of ``model`` in place and put the refitted weights in.

    Returns the decisions made (without weights) and the finished walk, which knows the divergence.
    """
    walk = Walk(LayerRunner(model, family), cut, fit, compare, streams)
    layers = layers_of(model, family)
    decisions = []
    for new in track(walk, "Cutting and refitting", total=len(cut.kept_layers), unit="layers"):
        replace_weights(layers[new.index], family, new)
        decisions.append(
            replace(new, ffn_out=new.ffn_out.new_empty(0), attention_out=None, ffn_in=None, state=None, mixture=None)
        )
    if len(cut.kept_layers) < len(layers):
        cut_layers(model, family, cut.kept_layers)
    if family.experts:
        model.config.num_experts = cut.width
    else:
        model.config.intermediate_size = cut.width
    return decisions, walk
