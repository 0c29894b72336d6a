"""What each calibration token weighs in the least squares of a refit.

Legend: B rows, T positions, N real tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from flab.models.layers import Batch

# A token whose stream is more than this many times the median size is an outlier.
OUTLIER = 4


@dataclass(frozen=True)
class TokenWeights:
    """The weights of the tokens to fit on."""

    batches: Sequence[Batch]
    scaling: (
        str  # "feature" damps tokens whose stream is an outlier; "mean" (plans of flab 0.1) weighs all tokens alike
    )

    def typical(self, streams: Sequence[torch.Tensor]) -> float:
        """Return the median over the tokens of the root mean square of their streams, one (B, T, D) for each batch."""
        fitted = zip(streams, self.batches, strict=False)
        # A mean would be pulled towards the very outliers that this looks for.
        sizes = [_size(stream[batch.valid.to(stream.device)]).cpu() for stream, batch in fitted]
        return float(torch.cat(sizes).median())

    def damped(self, stream_ND: torch.Tensor, typical: float) -> torch.Tensor:
        """(N, 1): 1, or less for a token whose stream is an outlier, so that its error counts relative to its size.

        In a real model the stream of the first token, and of a few others, is a hundred times larger than the rest. At full
        weight they would dominate the fit, although the norm that reads the stream divides by its size anyway.
        """
        if self.scaling == "mean":
            return stream_ND.new_ones(len(stream_ND), 1, dtype=torch.float32)
        # This multiplies both sides of the least squares, so the squared error is damped by its square.
        return (OUTLIER * typical / _size(stream_ND)).clamp(max=1)

    def parts(
        self, batch: Batch, stream: torch.Tensor, typical: float
    ) -> Iterator[tuple[bool, torch.Tensor, torch.Tensor]]:
        """Yield the real tokens of a batch in two parts, fitted and held-out rows. A part without tokens is left out.

        Args:
            batch: B rows of T positions.
            stream: (B, T, D); outliers in it are damped.
            typical: the value of :meth:`typical` over all streams.

        Yields:
            Whether the part is held out, where its tokens are, (B, T), and the square roots of their weights, (N, 1).
        """
        for held_out in (False, True):
            chosen = batch.valid & (batch.held_out == held_out)
            if bool(chosen.any()):
                rows = chosen.to(stream.device)
                # Least squares weighs a token by w if both sides of its equation are multiplied by sqrt(w).
                root = batch.weight[chosen].sqrt()[:, None].to(stream.device)
                yield held_out, rows, root * self.damped(stream[rows], typical)


def _size(stream_ND: torch.Tensor) -> torch.Tensor:
    """Return the root mean square of each token's stream, (N, 1)."""
    return stream_ND.float().pow(2).mean(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny).sqrt()
