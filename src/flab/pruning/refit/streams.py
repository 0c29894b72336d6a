"""The original's residual stream over some batches, which every walk over the same model and text needs again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

SEARCH_BYTES = 2**27  # within one plan
SWEEP_BYTES = 2**30  # across the budgets of a sweep
Place = tuple[int, Literal["before FFN", "after"]]  # of which layer


class Streams:
    """Keeps hidden states by place, one (B, T, D) for each batch, up to so many bytes; beyond, they are made anew each time."""

    def __init__(self, most_bytes: int = SEARCH_BYTES) -> None:
        self.most_bytes = most_bytes
        self._kept: dict[Place, list[torch.Tensor]] = {}

    @property
    def num_bytes(self) -> int:
        """What is held now."""
        return sum(h.nbytes for hidden in self._kept.values() for h in hidden)

    def get(self, place: Place, make: Callable[[], list[torch.Tensor]]) -> list[torch.Tensor]:
        """The hidden states at a place: kept ones, else made, and kept if there is room. Not to be changed in place."""
        if place not in self._kept:
            made = make()
            # First come, first kept: every walk asks for the places in the same order, so throwing out the
            # oldest to make room would throw out exactly what is asked for next.
            if self.num_bytes + sum(h.nbytes for h in made) > self.most_bytes:
                return made
            self._kept[place] = made
        # A new list, because the caller may drop its entries one by one; the tensors themselves are shared.
        return list(self._kept[place])

    def clear(self) -> None:
        """Let go of all."""
        self._kept.clear()
