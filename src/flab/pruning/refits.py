"""The refits by name: which steps each of them takes, layer by layer.

All begin with a closed form for output projections; the dearer ones continue from there. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Steps:
    """The steps of one refit on each kept layer, in order."""

    # What the FFN's output projection is fitted to: the FFN's own output before the cut, or the original's residual stream
    # where the next kept layer reads it. None keeps the weights.
    target: Literal["own", "stream"] | None = None
    attention: bool = False  # fit the attention's output projection as well, before the FFN's
    ffn: Literal["newton", "descent"] | None = None  # then move all projections of the FFN
    layer: bool = False  # then move all weights of the layer

    @property
    def iterative(self) -> bool:
        """Whether the refit changes more than output projections. Held-out tokens then accept or reject each layer."""
        return self.ffn is not None or self.layer


REFITS = {
    "reconstruction": Steps("stream", attention=True, ffn="newton", layer=True),
    "newton": Steps("stream", attention=True, ffn="newton"),
    "descent": Steps("stream", attention=True, ffn="descent"),
    "residual": Steps("stream", attention=True),
    "simple": Steps("own"),
    "none": Steps(),
}
