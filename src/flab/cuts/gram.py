"""One least-squares problem held as sums over tokens: ridge regression towards given weights, and backward elimination.

Gram and cross matrices are float64, those of held-out tokens apart; activations are never kept. Of a Gram matrix the lower
triangle is used. All that is P x P large is made in place: beside the two Gram matrices there is one more, never two.
Legend: N tokens, D targets, P features (FFN neurons or attention outputs, one more where the layer has a bias).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
ELIMINATION_RIDGE = 1e-3
ELIMINATION_ROUNDS = 16
BLOCK_ROWS = 512  # of a matrix at once, where a copy of all of it would be made


class Gram:
    """Sums over tokens for one least-squares problem: features x features and targets x features, fit and held-out."""

    def __init__(self, weight_DP: torch.Tensor) -> None:
        targets, features = weight_DP.shape
        zeros = {"dtype": torch.float64, "device": weight_DP.device}
        self.weight = weight_DP  # in any precision: made float64 where it is used
        self.gram = [torch.zeros(features, features, **zeros) for _ in range(2)]  # type: ignore[call-overload]
        self.cross = [torch.zeros(targets, features, **zeros) for _ in range(2)]  # type: ignore[call-overload]

    def add(self, features_NP: torch.Tensor, targets_ND: torch.Tensor, held_out: bool) -> None:
        """Add the tokens of one micro-batch."""
        x, y = features_NP.float(), targets_ND.float()
        for rows in _blocks(x.shape[1]):
            self.gram[held_out][rows, : rows.stop] += (x[:, rows].T @ x[:, : rows.stop]).double()
        self.cross[held_out] += (y.T @ x).double()

    def solve(self, columns: Sequence[int], ridge: float | None) -> tuple[torch.Tensor, float]:
        """Ridge regression towards the original columns; the ridge by held-out tokens where it is not given.

        The sums are used up: nothing can be solved or added afterwards.

        Args:
            columns: the features that stay, ascending.
            ridge: relative to the mean of the Gram matrix's diagonal.

        Returns:
            The weights (D, P') of these columns, and the ridge.
        """
        index = torch.tensor(list(columns), device=self.weight.device)
        fit, held = (_taken(gram.tril_(), index) for gram in self.gram)
        fit_cross, held_cross = (cross[:, index] for cross in self.cross)
        prior, work = self.weight[:, index].double(), _column_major(fit)
        if ridge is None:
            errors = {r: _squared_error(_ridge(fit, fit_cross, prior, r, work), held, held_cross) for r in RIDGES}
            ridge = min(errors, key=lambda r: (errors[r], -r))
        return _ridge(fit.add_(held), fit_cross + held_cross, prior, ridge, work), ridge

    def eliminate(self, width: int, forced: Sequence[int] = ()) -> list[int]:
        """Backward elimination (optimal-brain-surgeon order) down to ``width`` columns, ascending; ``forced`` stay besides.

        In each of about 16 rounds the columns with the lowest ``||W*_j||^2 / (H^-1)_jj`` go; both are then downdated exactly.
        """
        inverse = torch.add(*self.gram, out=_column_major(self.gram[0]))
        shift = ELIMINATION_RIDGE * inverse.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
        inverse.diagonal().add_(shift)
        torch.cholesky_inverse(torch.linalg.cholesky(inverse, out=inverse), out=inverse)
        inverse = inverse.T  # symmetric: the same by rows
        right = self.cross[0] + self.cross[1]
        weights = right.add_(shift * self.weight.double()) @ inverse
        del right
        alive = torch.arange(len(inverse), device=inverse.device)
        kept_anyway = torch.tensor(list(forced), device=alive.device, dtype=alive.dtype)
        surplus = len(alive) - len(forced) - width
        for round_ in range(ELIMINATION_ROUNDS):
            count = surplus // (ELIMINATION_ROUNDS - round_)
            surplus -= count
            if count == 0:
                continue
            scores = weights.pow(2).sum(0) / inverse.diagonal()
            scores[torch.isin(alive, kept_anyway)] = float("inf")
            order = torch.argsort(scores, stable=True)
            gone, stay = order[:count], order[count:].sort().values
            rows = inverse[gone]
            correction = torch.linalg.solve(rows[:, gone], rows[:, stay])
            weights = weights[:, stay] - weights[:, gone] @ correction
            inverse = _taken(inverse, stay, gone, correction)
            alive = alive[stay]
        return sorted(set(alive.tolist()) - set(forced))


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK_ROWS, size)) for start in range(0, size, BLOCK_ROWS))


def _column_major(like: torch.Tensor) -> torch.Tensor:
    """An empty square matrix in the layout in which LAPACK factors in place."""
    return torch.empty_like(like, memory_format=torch.contiguous_format).T


def _taken(
    matrix: torch.Tensor, stay: torch.Tensor, gone: torch.Tensor | None = None, correction: torch.Tensor | None = None
) -> torch.Tensor:
    """Rows and columns ``stay`` (ascending) of a contiguous matrix, less ``matrix[stay, gone] @ correction``, in its memory.

    A row moves up or stays where it is, so that none is overwritten before it is read.
    """
    size, memory = len(stay), matrix.view(-1)
    for rows in _blocks(size):
        old = matrix[stay[rows]]
        new = old[:, stay]
        if gone is not None and correction is not None:
            new -= old[:, gone] @ correction
        memory[rows.start * size : rows.stop * size] = new.view(-1)
    return memory[: size * size].view(size, size)


def _ridge(
    gram: torch.Tensor, cross: torch.Tensor, prior: torch.Tensor, ridge: float, work: torch.Tensor
) -> torch.Tensor:
    """argmin_W of sum ||y - W x||^2 + shift ||W - prior||^2, from the sums; ``work`` is column-major and overwritten."""
    shift = ridge * gram.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    work.copy_(gram).diagonal().add_(shift)
    factor = torch.linalg.cholesky(work, out=work)
    right = (cross + shift * prior).T  # column-major too: solved in place
    torch.linalg.solve_triangular(factor, right, upper=False, out=right)
    torch.linalg.solve_triangular(factor.T, right, upper=True, out=right)
    return right.T


def _squared_error(weights: torch.Tensor, gram: torch.Tensor, cross: torch.Tensor) -> float:
    """sum ||y - W x||^2 less the constant sum ||y||^2; of the Gram matrix the lower triangle is there, the rest is zero."""
    square = 2 * ((weights @ gram) * weights).sum() - (weights.pow(2) @ gram.diagonal()).sum()
    return float(square - 2 * (weights * cross).sum())
