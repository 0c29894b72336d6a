"""One least-squares problem held as sums over tokens: ridge regression towards given weights, and backward elimination.

Gram and cross matrices are float64, those of held-out tokens apart; activations are never kept.
Legend: N tokens, D targets, P features (FFN neurons or attention outputs, one more where the layer has a bias).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
ELIMINATION_RIDGE = 1e-3
ELIMINATION_ROUNDS = 16


class Gram:
    """Sums over tokens for one least-squares problem: features x features and targets x features, fit and held-out."""

    def __init__(self, weight_DP: torch.Tensor) -> None:
        targets, features = weight_DP.shape
        zeros = {"dtype": torch.float64, "device": weight_DP.device}
        self.weight = weight_DP
        self.gram = [torch.zeros(features, features, **zeros) for _ in range(2)]  # type: ignore[call-overload]
        self.cross = [torch.zeros(targets, features, **zeros) for _ in range(2)]  # type: ignore[call-overload]

    def add(self, features_NP: torch.Tensor, targets_ND: torch.Tensor, held_out: bool) -> None:
        """Add the tokens of one micro-batch."""
        x, y = features_NP.float(), targets_ND.float()
        self.gram[held_out] += (x.T @ x).double()
        self.cross[held_out] += (y.T @ x).double()

    def solve(self, columns: Sequence[int], ridge: float | None) -> tuple[torch.Tensor, float]:
        """Ridge regression towards the original columns; the ridge by held-out tokens where it is not given.

        Returns the weights (D, P') of the chosen feature columns, and the ridge, relative to the mean of the diagonal.
        """
        index = torch.tensor(list(columns), device=self.weight.device)
        fit, held = ((g[index][:, index], c[:, index]) for g, c in zip(self.gram, self.cross, strict=True))
        prior = self.weight[:, index]
        if ridge is None:
            errors = {r: _squared_error(_ridge(*fit, prior, r), *held) for r in RIDGES}
            ridge = min(errors, key=lambda r: (errors[r], -r))
        return _ridge(fit[0] + held[0], fit[1] + held[1], prior, ridge), ridge

    def eliminate(self, width: int, forced: Sequence[int] = ()) -> list[int]:
        """Backward elimination (optimal-brain-surgeon order) down to ``width`` columns, ascending; ``forced`` stay besides.

        In each of about 16 rounds the columns with the lowest ``||W*_j||^2 / (H^-1)_jj`` go; both are then downdated exactly.
        """
        gram, cross = self.gram[0] + self.gram[1], self.cross[0] + self.cross[1]
        shift = ELIMINATION_RIDGE * gram.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
        gram.diagonal().add_(shift)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        weights = (cross + shift * self.weight) @ inverse
        alive = torch.arange(gram.shape[0], device=gram.device)
        surplus = len(alive) - len(forced) - width
        for round_ in range(ELIMINATION_ROUNDS):
            count = surplus // (ELIMINATION_ROUNDS - round_)
            surplus -= count
            if count == 0:
                continue
            scores = weights.pow(2).sum(0) / inverse.diagonal()
            scores[torch.isin(alive, torch.tensor(list(forced), device=alive.device, dtype=alive.dtype))] = float("inf")
            order = torch.argsort(scores, stable=True)
            gone, stay = order[:count], order[count:].sort().values
            correction = torch.linalg.solve(inverse[gone][:, gone], inverse[gone][:, stay])
            weights = weights[:, stay] - weights[:, gone] @ correction
            inverse = inverse[stay][:, stay] - inverse[stay][:, gone] @ correction
            alive = alive[stay]
        return sorted(set(alive.tolist()) - set(forced))


def _ridge(gram: torch.Tensor, cross: torch.Tensor, prior: torch.Tensor, ridge: float) -> torch.Tensor:
    """argmin_W of sum ||y - W x||^2 + shift ||W - prior||^2, from the sums."""
    shift = ridge * gram.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    left = gram + shift * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.cholesky_solve((cross + shift * prior).T, torch.linalg.cholesky(left)).T


def _squared_error(weights: torch.Tensor, gram: torch.Tensor, cross: torch.Tensor) -> float:
    """sum ||y - W x||^2 less the constant sum ||y||^2."""
    return float(((weights @ gram) * weights).sum() - 2 * (weights * cross).sum())
