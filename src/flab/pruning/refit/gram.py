"""One least-squares problem held as sums over tokens: ridge regression towards given weights, and backward elimination.

Gram and cross matrices are float64, one pair for the fitted and one for the held-out tokens; activations are never kept. Only
the lower triangle of a Gram matrix is used. P x P matrices are changed in place: there are the two Gram matrices and at most
one more.

Every feature is divided by its own root mean square before anything is factored (equilibration), so a ridge means the same
for each. Real models need this, because a few of their features are thousands of times larger than the rest. A ridge relative
to the mean of the diagonal would not restrain those at all, and would freeze all others.
Legend: N tokens, D targets, P features (FFN neurons or attention outputs, one more where the layer has a bias).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from flab.errors import CheckpointError

# Ridges are relative to a feature's own mean square. At the smallest the fit is almost free; at the largest the original
# weights hardly change.
RIDGES = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0, 100.0)  # at the largest hardly anything changes
FIRST_RIDGE = 4  # where a search among many features begins
# Plans of flab 0.1 measured a ridge against the mean of the diagonal and chose one of these four. They are needed to replay
# such plans.
MEAN_RIDGES = RIDGES[:3] + RIDGES[4:5]
ELIMINATION_RIDGE = 1e-2
# Columns are eliminated in rounds instead of one by one. More rounds come closer to the exact order, but each costs a solve
# and rewrites the inverse. Above FAST_FEATURES that is hundreds of megabytes, so there are fewer rounds.
ELIMINATION_ROUNDS = 16
FAST_ROUNDS = 8
# Up to this many features every ridge is tried. Above it, the search starts at FIRST_RIDGE and follows the falling error.
ALL_RIDGES = 1024
# Above this many features the ridges are compared in float32, which is twice as fast, and on a sketch of the targets.
FAST_FEATURES = 2048
# Random combinations of the targets, on which the ridges of many features are compared.
SKETCH = 256
# Attempts to factor a matrix, each with ten times the ridge.
ATTEMPTS = 4
# Rows that are processed at once to avoid a copy of a whole matrix.
BLOCK_ROWS = 512


class Gram:
    """Sums over tokens for one least-squares problem: features x features and targets x features, fit and held-out."""

    def __init__(self, weight_DP: torch.Tensor, scaling: str = "feature", judged: int | None = None) -> None:
        """Begin with no tokens.

        Args:
            weight_DP: the original weights, towards which the ridge pulls.
            scaling: "feature", or "mean" for a ridge relative to the mean over the features, as in older plans.
            judged: the number of targets, from the first on, that choose the ridge and the columns; all by default.
        """
        targets, features = weight_DP.shape
        self.scaling = scaling
        self.judged = slice(judged)
        zeros = {"dtype": torch.float64, "device": weight_DP.device}
        self.weight = weight_DP  # in any precision: made float64 where it is used
        # Index 0 holds the sums of the fitted tokens, index 1 those of the held-out ones. They are float64, because
        # differences of large sums decide. One layer's sums are held at a time.
        self.gram = [torch.zeros(features, features, **zeros) for _ in range(2)]  # type: ignore[call-overload]
        self.cross = [torch.zeros(targets, features, **zeros) for _ in range(2)]  # type: ignore[call-overload]

    def add(self, features_NP: torch.Tensor, targets_ND: torch.Tensor, held_out: bool) -> None:
        """Add the tokens of one micro-batch.

        Features in bfloat16 are multiplied in bfloat16, about twice as fast: a micro-batch's sums are then rounded to 1 part
        in 512, each on its own, which the sum over many micro-batches averages out far below the smallest ridge.
        """
        x = features_NP if features_NP.dtype == torch.bfloat16 else features_NP.float()
        y = targets_ND.to(x.dtype)
        # Blocks of rows up to the diagonal give the lower triangle, with half of the products and no second P x P matrix.
        for rows in _blocks(x.shape[1]):
            self.gram[held_out][rows, : rows.stop] += (x[:, rows].T @ x[:, : rows.stop]).double()
        self.cross[held_out] += (y.T @ x).double()

    def solve(
        self, columns: Sequence[int], ridge: float | None, likely: float | None = None
    ) -> tuple[torch.Tensor, float]:
        """Solve a ridge regression towards the original columns. Without a ridge, held-out tokens choose it.

        This consumes the sums: nothing can be solved or added afterwards.

        Args:
            columns: the features that stay, ascending.
            ridge: relative to each feature's own mean square, or to the mean of all of them (``scaling``).
            likely: the ridge of a similar problem, where the search begins if there are many features.

        Returns:
            The weights (D, P') of these columns, and the ridge.

        Raises:
            CheckpointError: the statistics are not finite.
        """
        index = torch.tensor(list(columns), device=self.weight.device)
        # Removed columns play no further part, so their rows and columns of the Gram matrices are dropped first.
        fit, held = (_taken(gram.tril_(), index) for gram in self.gram)
        fit_cross, held_cross = (cross[:, index] for cross in self.cross)
        # Equilibrate: the features become x_j / d_j and their weights W_j d_j, so the diagonal is 1 for every feature and
        # the smallest of them is not lost in rounding beside one that is 10,000 times larger.
        scale = self._scale(fit.diagonal() + held.diagonal())
        for gram in (fit, held):
            _divide(gram, scale)
        fit_cross = fit_cross / scale
        held_cross = held_cross / scale
        prior = self.weight[:, index].double() * scale
        work = _column_major(fit)
        if ridge is None:
            # Solving is repeated for each ridge of the grid. For a wide layer float32 is precise enough to compare them and takes
            # half the time. The chosen ridge is solved once more in float64 below.
            quick = torch.float32 if len(index) > FAST_FEATURES else torch.float64
            work_quick = work if quick == work.dtype else _column_major(fit.new_empty(0, dtype=quick), len(index))

            # The error on held-out tokens decides how far the weights may leave their old values. It needs no second pass:
            # ||Y - W X||^2 = const - 2 <W, Y X^T> + <W X X^T, W>, and all these sums are known.
            judged_fit, judged_held, judged_prior = self._sketched(
                fit_cross[self.judged], held_cross[self.judged], prior[self.judged]
            )

            def held_out_error(ridge: float) -> float:
                try:
                    weights = _ridge(fit, judged_fit, judged_prior, ridge, work_quick, attempts=1)
                except CheckpointError:
                    return math.inf
                return _squared_error(weights, held, judged_held)

            grid = RIDGES if self.scaling == "feature" else MEAN_RIDGES
            # Neighbouring layers need similar ridges, so the search of a wide layer starts where the last one ended. It
            # mostly takes three solves instead of ten.
            first = grid.index(likely) if likely in grid else FIRST_RIDGE
            ridge = lowest(grid, held_out_error, None if len(index) <= ALL_RIDGES else min(first, len(grid) - 1))
        # The ridge is chosen, so the held-out tokens can now join the fit.
        return _ridge(fit.add_(held), fit_cross + held_cross, prior, ridge, work) / scale, ridge

    def _sketched(self, *matrices_DP: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the same few random combinations of the targets of each matrix, (SKETCH, P), if there are many features.

        With random signs the expected squared error equals that of all targets. All ridges use the same signs, so their
        comparison is sharper than each estimate. The solves then cost a fraction of the factorisation.
        """
        targets, features = matrices_DP[0].shape
        if features <= FAST_FEATURES or targets <= SKETCH:
            return matrices_DP
        # For random signs s the expected value of (s^T e)^2 is ||e||^2 for every error vector e, so the mean
        # over SKETCH such combinations estimates the squared error of all D targets (Johnson-Lindenstrauss).
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (SKETCH, targets), generator=generator).to(matrices_DP[0]) * 2 - 1
        return tuple(signs @ matrix / SKETCH**0.5 for matrix in matrices_DP)

    def _scale(self, diagonal: torch.Tensor) -> torch.Tensor:
        """Return the divisor of each feature: the root of its sum of squares, or 1 if it is always zero."""
        if not bool(torch.isfinite(diagonal).all()):
            raise CheckpointError(
                "the model's activations on the calibration text are NaN or infinite: try `dtype` float32, or check the weights."
            )
        if self.scaling == "mean":
            return torch.ones_like(diagonal)
        # A neuron that never fires on the calibration text has an all-zero row; dividing by 1 keeps it zero
        # instead of NaN.
        return torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).sqrt()

    def eliminate(self, width: int, forced: Sequence[int] = ()) -> list[int]:
        """Eliminate backwards (in optimal-brain-surgeon order). Returns ``width`` columns besides ``forced``, ascending.

        Each of 8 or 16 rounds removes the columns with the lowest ``||W*_j||^2 / (H^-1)_jj``, then downdates both exactly.
        """
        # H = X X^T + shift, equilibrated. Its inverse prices every column: if column j is removed and all others make up for
        # it, the squared error grows by ||W_j||^2 / (H^-1)_jj.
        gram = torch.add(*self.gram)
        scale = self._scale(gram.diagonal())
        _divide(gram, scale)
        # Prices only rank the columns, and the shift bounds the condition number. If there are many columns, float32 is
        # enough and takes half the time.
        quick = torch.float32 if len(gram) > FAST_FEATURES else torch.float64
        work = _column_major(gram.new_empty(0, dtype=quick), len(gram))
        factor, shift = factored(gram, relative_shift(gram, ELIMINATION_RIDGE), work)
        del gram, work
        inverse = torch.cholesky_inverse(factor, out=factor).T  # symmetric: the same by rows
        # The ridge solution with all columns, W* = (Y X^T + shift W_0) H^-1, in equilibrated units.
        right = (self.cross[0][self.judged] + self.cross[1][self.judged]).div_(scale)
        right = right.add_(shift * (self.weight[self.judged].double() * scale))
        weights = right.to(inverse.dtype) @ inverse
        del right
        alive = torch.arange(len(inverse), device=inverse.device)
        kept_anyway = torch.tensor(list(forced), device=alive.device, dtype=alive.dtype)
        surplus = len(alive) - len(forced) - width
        rounds = FAST_ROUNDS if len(alive) > FAST_FEATURES else ELIMINATION_ROUNDS
        for round_ in range(rounds):
            # Each round removes an equal share of the rest, so that the last one ends exactly at the width.
            count = surplus // (rounds - round_)
            surplus -= count
            if count == 0:
                continue
            scores = weights.pow(2).sum(0) / inverse.diagonal()
            scores[torch.isin(alive, kept_anyway)] = float("inf")
            # The cheapest columns are removed together, and a Schur complement spreads their work over the rest. The result
            # is exactly that of solving again without them, so the next round's prices are exact.
            order = torch.argsort(scores, stable=True)
            gone = order[:count]
            stay = order[count:].sort().values
            rows = inverse[gone]
            correction = torch.linalg.solve(rows[:, gone], rows[:, stay])
            weights = weights[:, stay] - weights[:, gone] @ correction
            inverse = _taken(inverse, stay, gone, correction)
            alive = alive[stay]
        return sorted(set(alive.tolist()) - set(forced))


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK_ROWS, size)) for start in range(0, size, BLOCK_ROWS))


def lowest(grid: Sequence[float], error: Callable[[float], float], start: int | None) -> float:
    """Return the value of an ascending grid with the lowest error; of equals, the larger one.

    ``error`` is called at most once for each value. From the place ``start`` it goes downhill; ``None`` tries all values.
    """
    error = functools.cache(error)
    if start is None:
        return min(grid, key=lambda value: (error(value), -value))
    # The held-out error falls and then rises along the grid, so it is enough to follow it from a good start: first to larger
    # values, and to smaller ones only if the next larger value was no better.
    at = start
    while at + 1 < len(grid) and error(grid[at + 1]) <= error(grid[at]):
        at += 1
    while at > 0 and error(grid[at - 1]) < error(grid[at]):
        at -= 1
    return grid[at]


def _divide(matrix: torch.Tensor, scale: torch.Tensor) -> None:
    """Divide rows and columns by the scale, in place."""
    matrix.div_(scale).div_(scale[:, None])


def _column_major(like: torch.Tensor, size: int | None = None) -> torch.Tensor:
    """Return an empty square matrix in the layout in which LAPACK factors in place."""
    size = size if size is not None else len(like)
    return like.new_empty(size, size).T


def _taken(
    matrix: torch.Tensor, stay: torch.Tensor, gone: torch.Tensor | None = None, correction: torch.Tensor | None = None
) -> torch.Tensor:
    """Return rows and columns ``stay`` (ascending) of a contiguous matrix, less ``matrix[stay, gone] @ correction``.

    The result takes the matrix's memory. Rows only move up, so none is overwritten before it is read.
    """
    size = len(stay)
    memory = matrix.view(-1)
    for rows in _blocks(size):
        # The result, of size len(stay), overwrites the same memory. A P x P copy would double the peak of the whole plan.
        old = matrix[stay[rows]]
        new = old[:, stay]
        if gone is not None and correction is not None:
            new -= old[:, gone] @ correction
        memory[rows.start * size : rows.stop * size] = new.view(-1)
    return memory[: size * size].view(size, size)


def _ridge(
    gram: torch.Tensor,
    cross: torch.Tensor,
    prior: torch.Tensor,
    ridge: float,
    work: torch.Tensor,
    attempts: int = ATTEMPTS,
) -> torch.Tensor:
    """Return argmin_W of sum ||y - W x||^2 + shift ||W - prior||^2, from the sums. For the rest see :func:`factored`."""
    # W (G + shift I) = Y X^T + shift W_prior, by a Cholesky factor and two triangular solves.
    factor, shift = factored(gram, relative_shift(gram, ridge), work, attempts)
    right = (cross + shift * prior).to(work.dtype).T  # column-major too: solved in place
    torch.linalg.solve_triangular(factor, right, upper=False, out=right)
    torch.linalg.solve_triangular(factor.T, right, upper=True, out=right)
    return right.T


def relative_shift(gram: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return the ridge times the mean of the diagonal, always above zero."""
    return ridge * gram.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)


def factored(
    gram: torch.Tensor, shift: torch.Tensor, work: torch.Tensor, attempts: int = ATTEMPTS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the Cholesky factor of a Gram matrix with a shift of its diagonal, and the shift that was needed.

    Args:
        gram: (P, P), of which the lower triangle is read.
        shift: added to the diagonal; ten times larger after each failed attempt.
        work: (P, P), column-major, receives the factor in its own precision.
        attempts: how many shifts are tried.

    Raises:
        CheckpointError: the matrix has no factor with any of them.
    """
    # Sums of rounded products are not exactly positive semi-definite. With fewer tokens than features the smallest
    # eigenvalues should be zero, and rounding makes some of them negative. Ten times the shift changes the solution little.
    for _ in range(attempts):
        work.copy_(gram).diagonal().add_(shift)
        try:
            return torch.linalg.cholesky(work, out=work), shift
        except LinAlgError:
            shift = 10 * shift
    raise CheckpointError(
        "the statistics of a layer cannot be solved even with a large ridge: give more calibration text, or `refit` none."
    )


def _squared_error(weights: torch.Tensor, gram: torch.Tensor, cross: torch.Tensor) -> float:
    """Return sum ||y - W x||^2 less the constant sum ||y||^2, from a Gram matrix of which only the lower triangle is set."""
    # <W G, W> from one triangle: twice the triangle's part, less the diagonal that it counts twice.
    square = torch.zeros((), dtype=torch.float64, device=gram.device)
    for rows in _blocks(len(gram)):
        part = weights @ gram[:, rows].to(weights.dtype)
        square += 2 * (part * weights[:, rows]).sum().double()
    square -= (weights.double().pow(2) @ gram.diagonal()).sum()
    return float(square - 2 * (weights * cross).sum())
