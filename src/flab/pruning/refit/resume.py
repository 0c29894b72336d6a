"""Finished layers in files: a walk that continues after a stop, and the layers that a plan leaves for ``flab apply``.

The streams behind a kept layer are computed by the same operations as in the run that made it, so a resumed walk ends with
the same bits as one without a stop. A plan's refitted layers stay in ``PLAN.layers``, so carrying it out fits nothing again.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from flab.files import discard, new_file, write_text
from flab.models.families import extended
from flab.pruning.refit.new_layer import NewLayer, replace_weights
from flab.pruning.refit.walk import Walk

PLAN_DIGEST = "plan.sha256"  # in a folder of layers: of the plan file that they belong to
TENSORS = ("ffn_out", "attention_out", "ffn_in", "state", "mixture")  # fields of a layer that are not plain values


class ResumedWalk(Walk):
    """A walk whose finished layers lie in the folder ``kept``; not for mixtures of experts."""

    def __init__(self, *given: Any, kept: Path) -> None:
        super().__init__(*given)
        self.kept = kept

    def _layer(self, place: int, index: int, after: int) -> NewLayer:
        file = self.kept / f"{place}.safetensors"
        known = read_layer(file, self.runner.device(index))
        if known is not None:
            self._pass(known, after)
            return known
        new = super()._layer(place, index, after)
        write_layer(new, file, self._ffn(index).weight.dtype)
        return new

    def _pass(self, new: NewLayer, after: int) -> None:
        """Pass both streams through a layer that is already known."""
        index = new.index
        original_mid = self._original_mid(index)
        if new.attention_out is not None:
            columns = new.attention_out.shape[1]
            features = [extended(self.runner.attention_features(index, h), columns) for h in self.pruned]
            mid = self._attended(index, features, new.attention_out)
        else:
            mid = original_mid if self.clean else [self.runner.mid(index, h) for h in self.pruned]
        if self._pass_original(index, after, original_mid):
            return
        self.likely_ridge = new.ridge_ffn
        if new.state is None:
            self._advance_pruned(new, mid)
            return
        made = copy.deepcopy(self.runner.layers[index])
        replace_weights(made, self.runner.family, new)
        self.pruned = [self.runner.run(index, hidden, made) for hidden in self.pruned]


def write_layer(new: NewLayer, file: Path, dtype: torch.dtype) -> None:
    """Write a layer, in the precision that it has in the model."""
    given = {"ffn_out": new.ffn_out, "attention_out": new.attention_out}
    tensors = {name: tensor.to(dtype) for name, tensor in given.items() if tensor is not None}
    tensors |= {f"ffn_in.{number}": tensor.to(dtype) for number, tensor in enumerate(new.ffn_in or ())}
    tensors |= {f"state.{name}": tensor for name, tensor in (new.state or {}).items()}
    plain = {field.name: getattr(new, field.name) for field in fields(new) if field.name not in TENSORS}
    with new_file(file) as temporary:
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(whole, temporary, {"layer": json.dumps(plain)})


def read_layer(file: Path, device: torch.device | str = "cpu") -> NewLayer | None:
    """Return a layer that a stopped run wrote, with its tensors on this device, or None."""
    try:
        with safe_open(file, "pt") as kept:
            tensors = {name: kept.get_tensor(name).to(device) for name in kept.keys()}  # noqa: SIM118
            plain = json.loads(kept.metadata()["layer"])
    except (OSError, SafetensorError):
        return None
    new = NewLayer(ffn_out=tensors["ffn_out"], attention_out=tensors.get("attention_out"), **plain)
    inputs = [tensors[f"ffn_in.{number}"] for number in range(len(tensors)) if f"ffn_in.{number}" in tensors]
    state = {name.removeprefix("state."): tensor for name, tensor in tensors.items() if name.startswith("state.")}
    return replace(new, ffn_in=inputs or None, state=state or None)


def layers_of_plan(plan_file: Path) -> Path:
    """Return the folder of the refitted layers that belong to a plan file."""
    return plan_file.with_name(plan_file.name + ".layers")


def keep_layers(made: Path, plan_file: Path) -> Path | None:
    """Move the layers in the folder ``made`` beside the plan file; returns where they are, or None if the place is taken."""
    folder = layers_of_plan(plan_file)
    if folder.exists() and not (folder / PLAN_DIGEST).is_file():
        return None
    if folder.exists():
        discard(folder)  # of an older plan with this name
    write_text(made / PLAN_DIGEST, _digest(plan_file))
    return made.rename(folder)


def kept_layers(plan_file: Path, neurons: Sequence[Sequence[int]]) -> list[Path] | None:
    """Return the files of a plan's refitted layers if all are there, whole and made for this very plan file.

    Args:
        plan_file: the plan.
        neurons: what the plan keeps in each of its layers.
    """
    folder = layers_of_plan(plan_file)
    try:
        if (folder / PLAN_DIGEST).read_text(encoding="utf-8") != _digest(plan_file):
            return None
    except OSError:
        return None
    return whole_layers(folder, neurons)


def whole_layers(folder: Path, neurons: Sequence[Sequence[int]]) -> list[Path] | None:
    """Return the files of all refitted layers in a folder, or None if one is missing, cut off or of another cut."""
    files = [folder / f"{place}.safetensors" for place in range(len(neurons))]
    return files if all(_neurons(file) == list(kept) for file, kept in zip(files, neurons, strict=True)) else None


def _neurons(file: Path) -> list[int] | None:
    """Return the neurons of a layer in a file by its header, which also tells whether the file is whole; None if not."""
    try:
        with safe_open(file, "pt") as kept:
            found: list[int] = json.loads(kept.metadata()["layer"])["neurons"]
            return found
    except (OSError, SafetensorError):
        return None


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
