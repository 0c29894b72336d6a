"""Layers whose weights stay in the model's files: each is read when it works, so that a model may be larger than memory.

Such a parameter is on the meta device and knows its :class:`Place`. Everything that works layer by layer
(:class:`flab.models.layers.LayerRunner`) reads it from there; the model called as a whole has to be read whole first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from flab.errors import CheckpointError

PLACE = "flab_place"  # the attribute of a parameter that names its place
FINITE_PART = 1 << 22  # numbers looked at together


@dataclass
class Place:
    """Where a tensor lies, and the device that works with it."""

    file: Path
    name: str
    device: torch.device
    checked: bool = False

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the tensor in memory of its own, which is free again as soon as nothing holds the tensor.

        Raises:
            CheckpointError: the file has gone or is damaged, or a number is NaN or infinite.
        """
        try:
            # A mapped file would count as resident for as long as it is mapped, so it is not mapped.
            with safe_open(self.file, "pt", backend="pread") as reader:
                tensor: torch.Tensor = reader.get_tensor(self.name)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{self.file}: {self.name} cannot be read ({error}). Fetch it again.") from None
        # Once is enough: a layer may be read for each candidate, and a file does not change meanwhile.
        if not self.checked:
            check_finite(self.file.parent, self.name, tensor)
            self.checked = True
        return tensor.to(self.device, dtype)


def check_finite(path: Path, name: str, tensor: torch.Tensor) -> None:
    """Raise CheckpointError if a weight is NaN or infinite."""
    # In parts, because the answers for all numbers of an embedding at once would take as much memory as they do. A sum is
    # finite only if all its terms are, and far quicker than to ask them all; one that is not may have overflowed.
    for part in torch.split(tensor.detach().flatten(), FINITE_PART):
        if not bool(part.sum(dtype=torch.float32).isfinite()) and not bool(part.isfinite().all()):
            raise CheckpointError(
                f"{path}: {name} holds NaN or infinite numbers: the weights are damaged. Fetch it again."
            )


def leave_in_files(layers: nn.Module, prefix: str, files: Mapping[str, Path], device: torch.device) -> None:
    """Take the parameters of ``layers`` out of memory; those that no file holds under their own name stay.

    Args:
        layers: the model's list of layers, or a part of it.
        prefix: the name of ``layers`` in the model.
        files: the file of each tensor, by the tensor's name.
        device: the device that works with them.
    """
    for name, module in layers.named_modules(prefix=prefix):
        for key, parameter in list(module.named_parameters(recurse=False)):
            full = f"{name}.{key}"
            if full in files:
                _put(module, key, parameter.to("meta"), Place(files[full], full, device))


def place_of(parameter: torch.Tensor) -> Place | None:
    """Return where a parameter lies; None if it is in memory."""
    return getattr(parameter, PLACE, None)


def in_memory(parameter: torch.Tensor) -> torch.Tensor:
    """Return a parameter itself, or the tensor that its file holds."""
    place = place_of(parameter)
    return parameter if place is None else place.read(parameter.dtype)


def read_in(module: nn.Module) -> None:
    """Bring the parameters of a module into memory for good."""
    for owner, key, parameter in filed(module):
        _put(owner, key, in_memory(parameter))


def filed(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Yield the parameters of a module that lie in files, each with the module that owns it and its name there."""
    for owner in module.modules():
        for key, parameter in list(owner.named_parameters(recurse=False)):
            if place_of(parameter) is not None:
                yield owner, key, parameter


def _put(owner: nn.Module, key: str, tensor: torch.Tensor, place: Place | None = None) -> None:
    parameter = nn.Parameter(tensor, requires_grad=False)
    if place is not None:
        setattr(parameter, PLACE, place)
    setattr(owner, key, parameter)
