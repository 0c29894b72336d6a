"""How an output projection joins the residual stream: ``h += factor * norm(W a)``, as far as a family has norm and factor.

The refit solves linear least squares, but a projection with a norm behind it is not linear. An RMS norm divides each token's
output by its size and multiplies each row by a gain. With the size taken from the *uncut* projection's output, the norm
becomes linear, and it is exact if the output does not change:

    factor * norm(W a) = W' a / size,   W' = gain * W

W' are the *weights in units of the stream*. A projection without a norm and with a factor of 1 is its own W'.

Legend: N tokens, D hidden size, P features (one more where the projection has a bias).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from flab.models.families import extended, with_bias

PROBE = 1e4  # so large that the norm's epsilon does not count


@dataclass(frozen=True)
class Branch:
    """One output projection, the norm of its output, and its factor."""

    projection: nn.Linear
    norm: nn.Module | None
    factor: float

    @property
    def plain(self) -> bool:
        """Whether the projection's output joins the stream unchanged."""
        return self.norm is None and self.factor == 1.0

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        """Return what joins the stream, of the shape of the projection's output."""
        normed = output if self.norm is None else self.norm(output)
        return normed if self.factor == 1.0 else normed * self.factor

    def weights(self) -> torch.Tensor:
        """Return the projection in units of the stream, (D, P)."""
        own = with_bias(self.projection)
        return own if self.plain else own.double() * self._floored()[:, None]

    def own(self, weights_DP: torch.Tensor) -> torch.Tensor:
        """Return the projection whose weights in units of the stream these are, (D, P)."""
        return weights_DP if self.plain else weights_DP / self._floored()[:, None]

    def problem(
        self, features_NP: torch.Tensor, missing_ND: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return the least squares whose solution W' makes ``missing`` join the stream; unchanged without a norm.

        Args:
            features_NP: the input of the uncut projection.
            missing_ND: the wanted contribution to the stream.

        Returns:
            The inputs of W' (N, P), its wanted outputs (N, D), and the size of each token that divides both, (N, 1).
        """
        if self.norm is None:
            return features_NP, missing_ND, None
        weights = with_bias(self.projection)
        features = extended(features_NP, weights.shape[1])
        output = nn.functional.linear(features, weights.to(features.dtype)).float()
        # Equivalent to linearising the norm at the uncut output: the size of a token is taken as constant, the
        # direction is free.
        size = self._size(output)
        # Where the gain was raised, only the change of what joins the stream is divided by more, not what joined it before.
        raised = (self._floored() - self._gain()).float()
        return features_NP / size.to(features_NP.dtype), missing_ND + raised * (output / size), size

    def _gain(self) -> torch.Tensor:
        """Return the factor of each row, (D,), in float64."""
        rows = self.projection.out_features
        if self.norm is None:
            return torch.full((rows,), self.factor, dtype=torch.float64, device=self.projection.weight.device)
        # Equal numbers are all of the size that the norm divides by, so what comes out is the gain.
        probe = torch.full((rows,), PROBE, device=self.projection.weight.device)
        gain: torch.Tensor = self.norm(probe).double() * self.factor
        return gain

    def _floored(self) -> torch.Tensor:
        """Return the gains, none smaller than half of their root mean square.

        To add much through a small gain, the output must be large there, and its size would shrink all other rows.
        """
        gain = self._gain()
        if self.norm is None:
            return gain
        sign = torch.where(gain < 0, -1.0, 1.0).double()
        return sign * gain.abs().clamp_min(float(gain.pow(2).mean().sqrt()) / 2)

    def _size(self, output_ND: torch.Tensor) -> torch.Tensor:
        """Return the number by which the norm divides each token's output, (N, 1)."""
        epsilon = float(getattr(self.norm, "variance_epsilon", None) or getattr(self.norm, "eps", None) or 0.0)
        return (output_ND.pow(2).mean(-1, keepdim=True) + epsilon).sqrt()
