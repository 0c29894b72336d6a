"""Compare the names and shapes of the stored tensors with the family's row and the config, by the headers alone. No torch.

transformers only warns about a tensor that is missing or called otherwise, and only after it has loaded the model. All layers of
one kind have the same tensors, so what one layer lacks is known from the others; the family's row names what all have.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flab.errors import CheckpointError
from flab.models.families import FAMILIES, Family
from flab.models.folder import Stored
from flab.models.source import ModelFolder

Layers = dict[int, dict[str, str]]  # for each layer its tensors: from their name within the layer to the whole name


def check_tensors(folder: ModelFolder) -> None:
    """Check what a folder's weights hold against its config.

    A folder of another family, or with layers of several kinds that its config does not tell apart, is left to transformers.

    Raises:
        CheckpointError: tensors are missing or have another shape; names them, and tensors that no other layer has.
    """
    path, raw, stored = folder.path, folder.raw, folder.stored
    family = FAMILIES.get(str(raw.get("model_type")))
    if family is None:
        return
    beginning, layers = _layers_of(family, stored)
    missing, unexpected = _outside(family, raw, stored), []
    for group in _kinds(family, raw, layers):
        usual = _usual(family, [layers.get(place, {}) for place in group])
        for place in group:
            there = layers.get(place, {})
            missing += [f"{beginning}{place}.{name}" for name in sorted(usual - there.keys())]
            unexpected += [whole for name, whole in there.items() if name not in usual]
        mismatched = _mismatched(family, raw, [layers[place] for place in group if place in layers], stored)
        refuse_keys(path, "mismatched keys", mismatched)
    refuse_keys(path, "missing keys", missing, unexpected)


def refuse_keys(path: Path, kind: str, wrong: Iterable[str], instead: Iterable[str] = ()) -> None:
    """Raise CheckpointError if there are wrong names of this kind; names a few of them, and of those found instead."""
    if not (names := list(wrong)):
        return
    other = f", but it has {_few(found)}" if (found := list(instead)) else ""
    raise CheckpointError(f"{path}: {len(names)} {kind} in the weights ({_few(names)}){other}. Fetch it again.")


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _layers_of(family: Family, stored: Mapping[str, Stored]) -> tuple[str, Layers]:
    """Return how the names of the layers' tensors begin, and the layers."""
    last = family.layers.rpartition(".")[2]
    pattern = re.compile(rf"((?:[^.]+\.)*?{last}\.)(\d+)\.(.+)")
    lists: dict[str, Layers] = {f"{family.layers}.": {}}
    for name in stored:
        if found := pattern.fullmatch(name):
            lists.setdefault(found[1], {}).setdefault(int(found[2]), {})[found[3]] = name
    # A folder may hold other lists of layers, such as those that predict further tokens; the model's own is the longest.
    return max(lists.items(), key=lambda one: len(one[1]))


def _kinds(family: Family, raw: Mapping[str, Any], layers: Layers) -> list[list[int]]:
    """Return the places of the layers that should have the same tensors; none if the config does not tell."""
    count = raw.get("num_hidden_layers")
    if not isinstance(count, int) or len({any(".experts." in name for name in one) for one in layers.values()}) > 1:
        return []
    # Layers with and without a window have the same tensors; those with linear attention have others.
    kinds = raw.get("layer_types") if family.linear_attention else [""] * count
    if not isinstance(kinds, list) or len(kinds) != count:
        return []
    return [[place for place in range(count) if kinds[place] == kind] for kind in dict.fromkeys(kinds)]


def _usual(family: Family, layers: list[dict[str, str]]) -> set[str]:
    """Return the names that most of these layers have, and those that the family's row gives to all of them."""
    holders = Counter(name for layer in layers for name in layer)
    paths = () if family.experts else (*family.ffn_in, family.ffn_out, family.input_norm, family.ffn_norm)
    # Half of the layers is enough: of two layers, neither can tell which one is right.
    return {name for name, number in holders.items() if 2 * number >= len(layers)} | {
        f"{one}.weight" for one in paths if one
    }


def _outside(family: Family, raw: Mapping[str, Any], stored: Mapping[str, Stored]) -> list[str]:
    """Return which of the embedding, the last norm and an untied head are missing."""
    paths = [family.embedding, family.final_norm, *([family.head] if raw.get("tie_word_embeddings") is False else [])]
    # Some folders leave out the beginning of the names, as transformers allows.
    ends = [f"{path.removeprefix('model.')}.weight" for path in paths]
    return [f"{path}.weight" for path, end in zip(paths, ends, strict=True) if not any(_ends(n, end) for n in stored)]


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _mismatched(
    family: Family, raw: Mapping[str, Any], layers: list[dict[str, str]], stored: Mapping[str, Stored]
) -> list[str]:
    """Return the tensors of layers of one kind whose shape is not the config's, or not that of most other layers."""
    wanted: dict[str, tuple[int, ...]] = {}
    for name in {name for layer in layers for name in layer}:
        shapes = Counter(stored[layer[name]].shape for layer in layers if name in layer)
        wanted[name] = shapes.most_common(1)[0][0]
    sizes = (raw.get("hidden_size"), raw.get("intermediate_size"))
    if not family.experts and all(isinstance(size, int) for size in sizes):
        wanted[f"{family.ffn_out}.weight"] = sizes  # type: ignore[assignment]
    return sorted(whole for layer in layers for name, whole in layer.items() if stored[whole].shape != wanted[name])
