"""Write a model's tensors one by one into safetensors files whose layout is fixed in advance.

safetensors itself writes a file from tensors that are all in memory. Here only the tensor that is being written is. The files
equal those of transformers' ``save_pretrained`` byte for byte, except that it splits models at a larger size.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import nn
from transformers.core_model_loading import revert_weight_conversion

from flab.models.families import Family, is_tied, layers_of
from flab.models.folder import DTYPES, INDEX, Stored
from flab.models.weights import leave_in_files, pieces_of

SHARD_BYTES = 5 * 10**9
PART_BYTES = 2**26  # written at a time
SAFETENSORS_NAME = {getattr(torch, name): stored for stored, name in DTYPES.items()}


def layout(
    model: Any, family: Family, dtype: torch.dtype | None = None, layers: Sequence[nn.Module] | None = None
) -> dict[str, torch.Tensor]:
    """Return the tensors that will be stored of a model: meta tensors in its own order, by their names in its files.

    The tensors get ``dtype``, by default their own. ``layers`` are those that the model will have, by default its own.
    """
    inside: dict[str, torch.Tensor] = {}
    for place, layer in enumerate(layers_of(model, family) if layers is None else layers):
        inside |= {f"{family.layers}.{place}.{name}": tensor for name, tensor in layer.state_dict().items()}
    made: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        # All layers take the place of the model's first one, which gives the order of save_pretrained.
        if name.startswith(f"{family.layers}."):
            made |= inside
        # A tied head is the embedding, which is stored once.
        elif name != f"{family.head}.weight" or not is_tied(model, family):
            made[name] = tensor
    empty = {name: torch.empty(t.shape, dtype=dtype or t.dtype, device="meta") for name, t in made.items()}
    stored: dict[str, torch.Tensor] = revert_weight_conversion(model, empty)
    return stored


class ShardWriter:
    """The weight files of a folder, open to take their tensors in any order.

    As a context manager it closes the files.
    """

    def __init__(self, folder: Path, layout: Mapping[str, torch.Tensor]) -> None:
        """Create the files at their full size. ``layout`` has the final shapes and dtypes, in the model's order.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        self.folder = folder
        self.layout = dict(layout)
        self.missing = set(layout)
        self._places: dict[str, tuple[int, int]] = {}  # file descriptor and offset of each tensor
        self._files: list[int] = []
        # The library decides the split from the shapes, so the files are those that save_pretrained would write.
        split = split_torch_state_dict_into_shards(
            self.layout, filename_pattern="model{suffix}.safetensors", max_shard_size=SHARD_BYTES
        )
        self.stored: dict[str, Stored] = {}
        for file, names in split.filename_to_tensors.items():
            self._make(folder / file, names)
        if split.is_sharded:
            total = sum(tensor.numel() for tensor in layout.values())
            index = {"metadata": {"total_parameters": total, **split.metadata}, "weight_map": split.tensor_to_filename}
            (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _make(self, path: Path, names: list[str]) -> None:
        """Write the header of one file and reserve its room."""
        # safetensors sorts by dtype, the widest first, which keeps all tensors aligned, and then by name.
        ordered = sorted(names, key=lambda name: (-self.layout[name].dtype.itemsize, name))
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        starts = {}
        for name in ordered:
            tensor = self.layout[name]
            starts[name] = offset
            end = offset + prod(tensor.shape) * tensor.dtype.itemsize
            header[name] = {
                "dtype": SAFETENSORS_NAME[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        # The header is padded with blanks to a multiple of 8, as the format wants it for aligned tensors.
        text += b" " * (-len(text) % 8)
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        self._files.append(file)
        start = 8 + len(text)
        os.posix_fallocate(file, 0, start + offset)  # a full disk fails now
        os.pwrite(file, len(text).to_bytes(8, "little") + text, 0)
        for name, begin in starts.items():
            tensor = self.layout[name]
            self._places[name] = (file, start + begin)
            self.stored[name] = Stored(SAFETENSORS_NAME[tensor.dtype], tuple(tensor.shape), path, start + begin)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor at its place, in the dtype of the layout."""
        expected = self.layout[name]
        assert tensor.shape == expected.shape, f"{name}: {tuple(tensor.shape)}, laid out as {tuple(expected.shape)}"
        file, offset = self._places[name]
        numbers = tensor.detach().to("cpu", expected.dtype).contiguous().flatten()
        for part in torch.split(numbers, PART_BYTES):
            # As bytes, because numpy has no bfloat16. ``pwrite`` may write less than it is given.
            left = part.view(torch.uint8).numpy().data
            while left:
                written = os.pwrite(file, left, offset)
                offset += written
                left = left[written:]
        self.missing.discard(name)

    def take(self, model: Any, prefix: str, layer: nn.Module, device: torch.device) -> None:
        """Write all tensors of a finished layer and free its memory. It can be read again from the files.

        ``prefix`` is the name of the layer in the model, ``device`` the device that runs it.
        """
        for name, tensor in layer.state_dict().items():
            self._write_pieces(model, f"{prefix}.{name}", tensor)
        leave_in_files(model, layer, prefix, self.stored, device)

    def finish(self, model: Any) -> None:
        """Write all remaining tensors of a model."""
        for name, tensor in model.state_dict().items():
            self._write_pieces(model, name, tensor)
        assert not self.missing, f"never written: {sorted(self.missing)[:3]}"

    def _write_pieces(self, model: Any, name: str, tensor: torch.Tensor) -> None:
        """Write the missing part of a tensor, which may be stored in pieces."""
        for piece in pieces_of(model, name, tuple(tensor.shape)):
            if piece.name in self.missing:
                self.write(piece.name, piece.of(tensor))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._files:
            os.close(self._files.pop())
