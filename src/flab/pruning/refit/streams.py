"""The original's residual stream over some batches, which every walk over the same model and text needs again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

SEARCH_BYTES = 2**27  # within one plan
SWEEP_BYTES = 2**30  # across the budgets of a sweep
Place = tuple[int, Literal["before FFN", "after"]]  # of which layer


class Streams:
    """Keeps hidden states by place, one (B, T, D) for each batch, up to a limit in bytes. Beyond it they are recomputed."""

    def __init__(self, most_bytes: int = SEARCH_BYTES) -> None:
        self.most_bytes = most_bytes
        self._kept: dict[Place, list[torch.Tensor]] = {}

    @property
    def num_bytes(self) -> int:
        """The bytes that are held now."""
        return sum(h.nbytes for hidden in self._kept.values() for h in hidden)

    def get(self, place: Place, make: Callable[[], list[torch.Tensor]]) -> list[torch.Tensor]:
        """Return the hidden states at a place, made if they are not kept. Do not change them in place."""
        if place not in self._kept:
            made = make()
            # The first ones are kept. Every walk asks for the places in the same order, so dropping the oldest to make
            # room would drop exactly the streams that are needed next.
            if self.num_bytes + sum(h.nbytes for h in made) > self.most_bytes:
                return made
            self._kept[place] = made
        # A new list, because the caller may drop its entries one by one; the tensors themselves are shared.
        return list(self._kept[place])

    def clear(self) -> None:
        """Drop all hidden states."""
        self._kept.clear()
