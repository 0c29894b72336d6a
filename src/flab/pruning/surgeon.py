"""The only module that cuts a model: it carries out decisions, in place, and makes none.

Layers are cut as the walk passes them, so there is never a second copy of the model. Layers whose weights lie in files are
read one by one. The caller decides what happens to a cut layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from flab.errors import OutputError
from flab.models.families import Family, attention_at, layers_of
from flab.models.layers import Batch, LayerRunner
from flab.models.mixture import mixture_of
from flab.models.weights import read_in
from flab.progress import track
from flab.pruning.cuts.layers import cut_layers
from flab.pruning.refit.new_layer import Cut, NewLayer, cut_inside, replace_weights
from flab.pruning.refit.resume import ResumedWalk, read_layer
from flab.pruning.refit.streams import Streams
from flab.pruning.refit.walk import Walk

Done = Callable[[int, nn.Module], None]  # takes each cut layer and its place in the cut model


def keep(place: int, layer: nn.Module) -> None:
    """Leave a cut layer in the model."""


def let_go(place: int, layer: nn.Module) -> None:
    """Free the memory of a cut layer if only its decisions are wanted."""
    layer.to("meta")


def carve(
    model: Any,
    family: Family,
    cut: Cut,
    fit: Sequence[Batch],
    compare: Sequence[Batch],
    streams: Streams | None = None,
    done: Done = keep,
    kept: Path | None = None,
) -> tuple[list[NewLayer], Walk]:
    """Cut layers, experts and neurons of ``model`` in place and put the refitted weights in.

    Layers that a stopped run left in the folder ``kept`` are taken from there, the others are added to it.
    Returns the decisions made (without weights) and the finished walk, which knows the divergence.
    """
    given = (LayerRunner(model, family), cut, fit, compare, streams)
    walk = Walk(*given) if kept is None else ResumedWalk(*given, kept=kept)
    layers = layers_of(model, family)
    decisions: list[NewLayer] = []
    for new in track(walk, "Cutting and refitting", total=len(cut.kept_layers), unit="layers"):
        layer = layers[new.index]
        replace_weights(layer, family, new)
        # The caller may write the layer out and free its weights before the next one is read.
        done(len(decisions), layer)
        # The plan needs the decisions without the weights, which are in the layer now. Keeping those of all layers would
        # hold the model twice.
        decisions.append(
            replace(new, ffn_out=new.ffn_out.new_empty(0), attention_out=None, ffn_in=None, state=None, mixture=None)
        )
    _cut_depth(model, family, cut)
    return decisions, walk


def put_in(model: Any, family: Family, cut: Cut, files: Sequence[Path], done: Done) -> None:
    """Cut layers and neurons of ``model`` in place, like :func:`carve`, with refitted layers that already lie in files."""
    layers = layers_of(model, family)
    for place, file in enumerate(track(files, "Cutting", unit="layers")):
        new = read_layer(file)
        if new is None:
            raise OutputError(
                f"{file}: changed while it was read. Run the same command again: it refits what is missing."
            )
        replace_weights(layers[new.index], family, new)
        done(place, layers[new.index])
    _cut_depth(model, family, cut)


def slice_layers(model: Any, family: Family, cut: Cut, done: Done) -> None:
    """Cut layers, experts and neurons of ``model`` in place, like :func:`carve` but without a refit or text."""
    layers = layers_of(model, family)
    for place, index in enumerate(track(cut.kept_layers, "Cutting", unit="layers")):
        # Files hold each expert separately, so removed experts are not read.
        if not family.experts:
            read_in(layers[index])
        if cut.neurons is not None:
            narrower = cut.narrowing.neurons if cut.narrowing is not None else None
            cut_inside(layers[index], family, cut.neurons[place], narrower[place] if narrower is not None else None)
        read_in(layers[index])
        done(place, layers[index])
    _cut_depth(model, family, cut)


def layers_after(model: Any, family: Family, cut: Cut) -> list[nn.Module]:
    """Return what the layers of ``model`` will be, without their numbers: modules on the meta device."""
    # Layers with the same kind of attention are of one size, so one of each kind stands for all.
    made: dict[str, nn.Module] = {}
    kinds = []
    for index in cut.kept_layers:
        layer = layers_of(model, family)[index]
        kinds.append(attention_at(layer, family))
        if kinds[-1] not in made:
            made[kinds[-1]] = copy.deepcopy(layer).to("meta")
            inside = [range(cut.narrowing.width)] * cut.width if cut.narrowing is not None else None
            cut_inside(made[kinds[-1]], family, range(cut.width), inside)
    return [made[kind] for kind in kinds]


def _cut_depth(model: Any, family: Family, cut: Cut) -> None:
    """Drop the layers that are not kept, and write the new sizes into the config."""
    if len(cut.kept_layers) < len(layers_of(model, family)):
        cut_layers(model, family, cut.kept_layers)
    width = cut.width
    if family.experts:
        model.config.num_experts = cut.width
        width = mixture_of(layers_of(model, family)[0], family).width
    setattr(model.config, family.width_entry, width)
