"""Layers whose weights stay in the model's files: each is read when it works, so that a model may be larger than memory.

Such a parameter is on the meta device and knows its :class:`Place`. Everything that works layer by layer
(:class:`flab.models.layers.LayerRunner`) reads it from there; the model called as a whole has to be read whole first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.core_model_loading import revert_weight_conversion

from flab.errors import CheckpointError
from flab.models.folder import DTYPES, Stored
from flab.models.source import ModelFolder

PLACE = "flab_place"  # the attribute of a parameter that names its place
FINITE_PART = 1 << 22  # numbers looked at together


class Unread(torch.Tensor):
    """A tensor of a file without its numbers. transformers can load it, and it stays on the meta device wherever it is sent."""

    def to(self, *_: object, dtype: torch.dtype | None = None, **__: object) -> torch.Tensor:
        """Return the tensor in another dtype."""
        return super().to(dtype=dtype)


def load_without(folder: ModelFolder, part: str, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Load a model as transformers does, but leave the part at this path on the meta device.

    ``given`` are the arguments of ``from_pretrained``, the config among them, and what is returned is what that returns: the
    model, and which keys are missing or wrong.
    """
    # transformers takes either a folder or tensors, and tensors only in the class of the model itself.
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(given["config"], trust_remote_code=given["trust_remote_code"])
    tensors: dict[str, torch.Tensor] = {}
    for name, stored in folder.stored.items():
        if name.startswith(f"{part}."):
            dtype = getattr(torch, DTYPES.get(stored.dtype, "float32"))
            tensors[name] = torch.empty(stored.shape, dtype=dtype, device="meta").as_subclass(Unread)
        else:
            with safe_open(stored.file, "pt", backend="pread") as reader:
                tensors[name] = reader.get_tensor(name)
    model, info = type(made).from_pretrained(None, state_dict=tensors, **given)
    # Old folders have the generation config inside the model's config.
    if (folder.path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder.path)
    else:
        model.generation_config = GenerationConfig.from_model_config(dict(folder.raw))
    return model, info


@dataclass(frozen=True)
class Piece:
    """A part of a parameter as files store it: some of its rows, under a separate name.

    Most parameters are one piece. The experts of a mixture are one parameter in memory and many pieces in files.
    """

    name: str
    first_row: int  # of the parameter with all dimensions but the last made one
    shape: tuple[int, ...]

    @property
    def rows(self) -> slice:
        """The rows of the parameter that the piece holds."""
        return slice(self.first_row, self.first_row + prod(self.shape[:-1]))

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the piece of a whole parameter, as a view if the parameter is contiguous."""
        return tensor.reshape(prod(tensor.shape[:-1]), -1)[self.rows].view(self.shape)


def pieces_of(model: Any, name: str, shape: tuple[int, ...]) -> list[Piece]:
    """Return the pieces that transformers stores a parameter of this name and shape in."""
    # transformers takes the parameter apart. Numbered rows in place of the weights tell which of them each piece gets.
    numbers = torch.arange(prod(shape[:-1])).view(*shape[:-1], 1)
    pieces = []
    for stored, rows in revert_weight_conversion(model, {name: numbers}).items():
        first = int(rows.flatten()[0])
        assert torch.equal(rows.flatten(), torch.arange(first, first + rows.numel())), (
            f"{stored}: rows are not in order"
        )
        pieces.append(Piece(stored, first, (*rows.shape[:-1], shape[-1])))
    return pieces


@dataclass
class Place:
    """Where a parameter lies, and the device that works with it."""

    stored: Mapping[str, Stored]  # what the files hold, by name
    pieces: Sequence[Piece]
    shape: tuple[int, ...]
    device: torch.device
    checked: bool = False

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the tensor in separate memory, which is freed as soon as the tensor is no longer used.

        Raises:
            CheckpointError: a file has gone or is damaged, or a number is NaN or infinite.
        """
        whole = None if len(self.pieces) == 1 else torch.empty(self.shape, dtype=dtype, device=self.device)
        # One piece after the other goes to its rows, so that no second copy of all of them is ever held.
        for piece, tensor in self._tensors():
            if whole is None:
                whole = tensor.to(self.device, dtype)
            else:
                piece.of(whole).copy_(tensor)
        assert whole is not None
        # Once is enough: a layer may be read for each candidate, and a file does not change meanwhile.
        self.checked = True
        return whole

    def _tensors(self) -> Iterator[tuple[Piece, torch.Tensor]]:
        """Yield what the files hold of each piece."""
        for piece in self.pieces:
            stored = self.stored[piece.name]
            try:
                tensor = read_tensor(stored)
            except (OSError, KeyError) as error:
                raise CheckpointError(
                    f"{stored.file}: {piece.name} cannot be read ({error}). Fetch it again."
                ) from None
            if not self.checked:
                check_finite(stored.file.parent, piece.name, tensor)
            yield piece, tensor

    def only(self, kept: Sequence[int]) -> Place | None:
        """Return the place of these entries of the first dimension; None if the files do not hold each of them apart."""
        rows = prod(self.shape[1:-1])  # of one entry
        if any(prod(piece.shape[:-1]) > rows for piece in self.pieces):
            return None
        # A piece may be all of an entry, or a part of it such as an expert's gate. It keeps its place within the entry,
        # and the entry moves up to its place among those that stay.
        there = {index: place for place, index in enumerate(kept)}
        pieces = [
            replace(piece, first_row=there[piece.first_row // rows] * rows + piece.first_row % rows)
            for piece in self.pieces
            if piece.first_row // rows in there
        ]
        return replace(self, pieces=pieces, shape=(len(kept), *self.shape[1:]))


def read_tensor(stored: Stored) -> torch.Tensor:
    """Return a tensor of a file in new memory; OSError if the file has gone or is too short."""
    # A mapped file would count as resident for as long as it is mapped, and safetensors' own reader fills new memory page by
    # page, which takes longer than to read. torch's memory comes in large pages where the system has them.
    made = torch.empty(stored.shape, dtype=getattr(torch, DTYPES[stored.dtype]))
    left = made.flatten().view(torch.uint8).numpy().data
    with stored.file.open("rb", buffering=0) as handle:
        handle.seek(stored.start)
        # One call may read less than it is asked for.
        while left:
            count = handle.readinto(left)
            if not count:
                raise OSError("the file has become shorter")
            left = left[count:]
    return made


def check_finite(path: Path, name: str, tensor: torch.Tensor) -> None:
    """Raise CheckpointError if a weight is NaN or infinite."""
    # In parts, because the answers for all numbers of an embedding at once would take as much memory as they do. A sum is
    # finite only if all its terms are, and far quicker than to ask them all (in another dtype it would be slower); one that
    # is not may have overflowed.
    for part in torch.split(tensor.detach().flatten(), FINITE_PART):
        if not bool(part.sum().isfinite()) and not bool(part.isfinite().all()):
            raise CheckpointError(
                f"{path}: {name} holds NaN or infinite numbers: the weights are damaged. Fetch it again."
            )


def leave_in_files(
    model: Any, part: nn.Module, prefix: str, stored: Mapping[str, Stored], device: torch.device
) -> None:
    """Remove the parameters of a part of the model from memory, except those that no file holds.

    ``part`` is the model's list of layers, or a part of it, and is called ``prefix`` in the model. ``stored`` is what the
    files hold, by name, and ``device`` works with it.
    """
    for name, module in part.named_modules(prefix=prefix):
        for key, parameter in list(module.named_parameters(recurse=False)):
            pieces = pieces_of(model, f"{name}.{key}", tuple(parameter.shape))
            if all(piece.name in stored for piece in pieces):
                place = Place(stored, pieces, tuple(parameter.shape), device)
                setattr(module, key, in_files(place, parameter.dtype))


def place_of(parameter: torch.Tensor) -> Place | None:
    """Return where a parameter lies; None if it is in memory."""
    return getattr(parameter, PLACE, None)


def in_memory(parameter: torch.Tensor) -> torch.Tensor:
    """Return a parameter itself, or the tensor that its file holds."""
    place = place_of(parameter)
    return parameter if place is None else place.read(parameter.dtype)


def in_files(place: Place, dtype: torch.dtype) -> nn.Parameter:
    """Return a parameter that lies at a place, and will have this dtype in memory."""
    parameter = nn.Parameter(torch.empty(place.shape, dtype=dtype, device="meta"), requires_grad=False)
    setattr(parameter, PLACE, place)
    return parameter


def copied(parameter: nn.Parameter) -> nn.Parameter:
    """Return a copy of a parameter; one that lies in files stays there."""
    place = place_of(parameter)
    if place is not None:
        return in_files(place, parameter.dtype)
    return nn.Parameter(parameter.data.clone(), requires_grad=False)


def entries(parameter: nn.Parameter, kept: Sequence[int]) -> nn.Parameter:
    """Return a copy with these entries of the first dimension; they stay in files that hold each of them apart."""
    place = place_of(parameter)
    fewer = place and place.only(kept)
    if fewer is not None:
        return in_files(fewer, parameter.dtype)
    whole = in_memory(parameter).data
    return nn.Parameter(whole[torch.tensor(kept, device=whole.device)], requires_grad=False)


def read_in(module: nn.Module) -> None:
    """Bring the parameters of a module into memory permanently."""
    for owner, key, parameter in filed(module):
        setattr(owner, key, nn.Parameter(in_memory(parameter), requires_grad=False))


def filed(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Yield the parameters of a module that lie in files, each with the module that owns it and its name there."""
    for owner in module.modules():
        for key, parameter in list(owner.named_parameters(recurse=False)):
            if place_of(parameter) is not None:
                yield owner, key, parameter
