"""The preconditioner of the Newton refit's conjugate gradients, one block for each matrix of the FFN, and their precision.

The block of the output projection is exact: it is the Gram matrix of the features, once for each output. The block of an
input projection is approximated by a Kronecker product: the Gram matrix of the inputs times one number for each neuron
(Martens & Grosse, Optimizing Neural Networks with Kronecker-factored Approximate Curvature, 2015).

Legend: N tokens, D hidden size, F kept neurons; matrices hold their bias, if there is one, as one more column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from flab.models.layers import multiplies_bfloat16
from flab.pruning.refit.gram import factored

# The input projections (F, D) or (F, D + 1), last the output projection (D, F) or (D, F + 1).
Theta = list[torch.Tensor]


def product_dtype(like: torch.Tensor) -> torch.dtype:
    """Return bfloat16 for float32 if the device multiplies bfloat16 natively; otherwise it would be slow."""
    if like.dtype != torch.float32:
        return like.dtype
    return torch.bfloat16 if multiplies_bfloat16(like.device.type) else torch.float32


@dataclass
class KroneckerBlocks:
    """Sums over tokens, in the problem's precision."""

    inputs: torch.Tensor  # sum_t w_t x_t x_t^T, (D, D) or (D + 1, D + 1)
    slopes: list[torch.Tensor]  # sum_t w_t slope_tj^2 for each input projection, (F,)
    features: torch.Tensor  # sum_t w_t a_t a_t^T, (F, F) or (F + 1, F + 1)
    weight: float = 0.0

    @classmethod
    def zeros(cls, theta: Sequence[torch.Tensor]) -> KroneckerBlocks:
        """Return blocks without any tokens."""
        columns = theta[0].shape[1]
        outputs = theta[-1].shape[1]
        slopes = [w.new_zeros(len(w)) for w in theta[:-1]]
        return cls(theta[0].new_zeros(columns, columns), slopes, theta[-1].new_zeros(outputs, outputs))

    def add(
        self, inputs: torch.Tensor, weight: torch.Tensor, features: torch.Tensor, slopes: Sequence[torch.Tensor]
    ) -> None:
        """Add the tokens of one micro-batch: inputs (N, D or D + 1), weight (N, 1), features (N, F or F + 1), slopes (N, F)."""
        # These are the sums of weighted least squares over tokens: the second moments of the inputs and of the features,
        # and the squared slopes, which say how strongly a neuron's output responds to its input.
        self.inputs += (weight * inputs).T @ inputs
        self.features += (weight * features).T @ features
        for total, slope in zip(self.slopes, slopes, strict=True):
            total += (weight * slope.pow(2)).sum(0)
        self.weight += float(weight.sum())

    def damped(self, damping: float, out: torch.Tensor) -> Preconditioner:
        """Return the blocks with ``damping`` times the mean of their diagonal added, ready to be solved.

        ``out`` is the output projection, (D, F) or (D, F + 1).
        """
        tiny = torch.finfo(out.dtype).tiny
        # An input projection's block for neuron j is ||W_out[:, j]||^2 sum_t w_t slope_tj^2 x_t x_t^T. As a Kronecker
        # product it is n_j A, with A the mean of x_t x_t^T and n_j that norm times the sum of the squared slopes. One
        # eigendecomposition of A = Q diag(size) Q^T serves all neurons.
        size, basis = torch.linalg.eigh(self.inputs / max(self.weight, tiny))
        # The matrix is positive semi-definite, but rounding can make its smallest eigenvalues slightly negative.
        size = size.clamp_min(0)
        norms = out[:, : len(self.slopes[0])].pow(2).sum(0)
        neurons = [norms * slope for slope in self.slopes]
        # The mean of the diagonal of n_j A over all neurons and inputs is the product of the two means.
        shifts = [float(damping * n.mean() * size.mean()) + tiny for n in neurons]
        # In the basis Q the damped block n_j A + shift is diagonal.
        scales = [n[:, None] * size + shift for n, shift in zip(neurons, shifts, strict=True)]
        # The output projection's block is the Gram matrix of the features for every output, so one factor is enough.
        gram = self.features.double()
        shift = damping * self.features.diagonal().mean() + tiny
        factor, shift = factored(gram, shift, torch.empty_like(gram))
        return Preconditioner([*shifts, float(shift)], basis, scales, factor.to(out.dtype))


@dataclass(frozen=True)
class Preconditioner:
    """The inverse of the damped blocks."""

    shifts: list[float]  # the value added to the diagonal of each matrix
    basis: torch.Tensor  # eigenvectors of the inputs' Gram matrix
    scales: list[torch.Tensor]  # the input projections' blocks in that basis, diagonal
    features: torch.Tensor  # Cholesky factor of the output projection's block

    def __call__(self, theta: Theta) -> Theta:
        """Apply the inverse of each block to its matrix."""
        # Rotate into Q, divide by the diagonal, rotate back; then two triangular solves for the output projection.
        inputs = [w @ self.basis / scale @ self.basis.T for w, scale in zip(theta[:-1], self.scales, strict=True)]
        return [*inputs, torch.cholesky_solve(theta[-1].T, self.features).T]
