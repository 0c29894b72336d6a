"""Ridge regression and backward elimination from sums, against dense solutions and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flab.errors import CheckpointError
from flab.pruning.refit.gram import MEAN_RIDGES, RIDGES, Gram, lowest


def random_gram(features=9, targets=4, tokens=60, seed=0, scaling="feature"):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(features, features, generator=generator)
    x = torch.randn(tokens, features, generator=generator) @ mix
    y = torch.randn(tokens, targets, generator=generator) + x[:, :targets]
    gram = Gram(torch.randn(targets, features, generator=generator).double(), scaling)
    gram.add(x[:40], y[:40], held_out=False)
    gram.add(x[40:], y[40:], held_out=True)
    return gram, x.double().numpy(), y.double().numpy()


def ridge_by_lstsq(x, y, prior, shift):
    """argmin ||y - x w|| ^ 2 + sum_j shift_j ||w_j - prior_j|| ^ 2 as one stacked least-squares problem."""
    root = np.diag(np.sqrt(np.broadcast_to(shift, x.shape[1])))
    stacked = np.linalg.lstsq(np.vstack([x, root]), np.vstack([y, root @ prior.T]), rcond=None)[0]
    return stacked.T


def shift_of(ridge, x, scaling, every=None):
    """The ridge of each feature: relative to its own sum of squares, or to the mean of all of them."""
    squares = (x**2).sum(0)
    if scaling == "mean":
        return ridge * squares.mean()
    every = squares if every is None else (every**2).sum(0)
    return ridge * every * (squares / every).mean()


@pytest.mark.parametrize("scaling", ["feature", "mean"])
@pytest.mark.parametrize("columns", [list(range(9)), [0, 4, 8]])
def test_solve_equals_least_squares(columns, scaling):
    gram, x, y = random_gram(scaling=scaling)
    weights, ridge = gram.solve(columns, 1e-2)
    shift = shift_of(1e-2, x[:, columns], scaling)
    expected = ridge_by_lstsq(x[:, columns], y, gram.weight[:, columns].numpy(), shift)
    assert ridge == 1e-2
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("scaling", "grid"), [("feature", RIDGES), ("mean", MEAN_RIDGES)])
def test_the_ridge_is_the_best_on_held_out_tokens(scaling, grid):
    gram, x, y = random_gram(tokens=52, seed=3, scaling=scaling)
    errors = {}
    for ridge in grid:
        w = ridge_by_lstsq(x[:40], y[:40], gram.weight.numpy(), shift_of(ridge, x[:40], scaling, x))
        errors[ridge] = ((y[40:] - x[40:] @ w.T) ** 2).sum()
    assert gram.solve(range(9), None)[1] == min(errors, key=errors.get)


def test_a_feature_in_other_units_changes_no_prediction():
    """Real models have features ten thousand times larger than the rest; the refit must not depend on it."""
    (plain, _, _), (scaled, _, _) = random_gram(), random_gram()
    units = torch.tensor([1e4, 1, 1, 1e-4, 1, 1, 1e2, 1, 1], dtype=torch.float64)
    for which in (0, 1):
        scaled.gram[which] *= units * units[:, None]
        scaled.cross[which] *= units
    scaled.weight = scaled.weight / units
    kept = plain.eliminate(5)
    again = random_gram()[0]
    assert scaled.eliminate(5) == kept
    expected, ridge = again.solve(kept, None)
    other = random_gram()[0]
    for which in (0, 1):
        other.gram[which] *= units * units[:, None]
        other.cross[which] *= units
    other.weight = other.weight / units
    got, same = other.solve(kept, None)
    assert same == ridge
    torch.testing.assert_close(got * units[kept], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("tokens", [3, 200])
@pytest.mark.parametrize("features", [12, 300])
def test_outliers_and_missing_rank_leave_finite_weights(features, tokens, monkeypatch):
    """Activations of 10^4 beside ordinary ones, repeated and dead features, fewer tokens than features."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, features, generator=generator)
    x[:, 0] *= 1e4
    x[0] *= 1e3
    x[:, 5] = x[:, 4]
    x[:, 7] = 0
    y = torch.randn(tokens, 4, generator=generator)
    monkeypatch.setattr(
        "flab.pruning.refit.gram.FAST_FEATURES", 100
    )  # so that the larger one compares ridges in float32

    def fresh_gram():
        gram = Gram(torch.randn(4, features, generator=torch.Generator().manual_seed(2)))
        gram.add(x, y, held_out=False)
        gram.add(x[::2] + 0.1, y[::2], held_out=True)
        return gram

    kept = fresh_gram().eliminate(features // 2)
    assert len(kept) == features // 2
    weights, ridge = fresh_gram().solve(kept, None)
    assert ridge in RIDGES
    assert bool(torch.isfinite(weights).all())


def test_activations_that_are_no_numbers_are_one_line():
    gram, _, _ = random_gram()
    gram.gram[0][2, 2] = float("nan")
    with pytest.raises(CheckpointError, match="NaN or infinite: try `dtype` float32"):
        gram.solve(range(9), None)


@pytest.mark.parametrize("best", range(5))
@pytest.mark.parametrize("start", [None, 0, 2, 4])
def test_the_lowest_of_a_valley_is_found_from_anywhere(best, start):
    grid = (1.0, 2.0, 3.0, 4.0, 5.0)
    assert lowest(grid, lambda value: abs(value - grid[best]), start) == grid[best]
    assert lowest(grid, lambda value: 0.0, start) == 5.0


def cost_of(gram: Gram, columns: list[int], shift: torch.Tensor) -> float:
    """What the best weights on these columns leave, by the objective that the elimination downdates."""
    total, cross = gram.gram[0] + gram.gram[1], gram.cross[0] + gram.cross[1] + shift * gram.weight
    left = total[columns][:, columns] + shift[columns].diag()
    return -float((torch.linalg.solve(left, cross[:, columns].T) * cross[:, columns].T).sum())


def test_in_blocks_of_rows_the_outcome_is_the_same(monkeypatch):
    whole, again = random_gram(features=37)[0], [random_gram(features=37)[0]]
    kept = whole.eliminate(17, forced=(36,))
    assert len(kept) == 17
    columns = [*kept, 36]
    expected, ridge = whole.solve(columns, None)
    monkeypatch.setattr("flab.pruning.refit.gram.BLOCK_ROWS", 5)
    again.append(random_gram(features=37)[0])
    for gram in again:
        assert gram.eliminate(17, forced=(36,)) == kept
        weights, chosen = gram.solve(columns, None)
        assert chosen == ridge
        torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-5)  # ill-conditioned sums


@pytest.mark.parametrize("forced", [(), (8,)])
def test_elimination_equals_brute_force_greedy(forced):
    """With fewer columns to go than rounds, one goes at a time: the one whose loss costs least, all else refitted."""
    from flab.pruning.refit.gram import ELIMINATION_RIDGE

    gram, _, _ = random_gram(seed=5)
    shift = ELIMINATION_RIDGE * (gram.gram[0] + gram.gram[1]).diagonal()
    alive = list(range(9))
    while len(alive) - len(forced) > 3:
        trials = {j: cost_of(gram, [i for i in alive if i != j], shift) for j in alive if j not in forced}
        alive.remove(min(trials, key=trials.get))
    before = [g.clone() for g in gram.gram]
    assert gram.eliminate(3, forced) == [i for i in alive if i not in forced]
    assert all(torch.equal(a, b) for a, b in zip(before, gram.gram, strict=True))


def test_elimination_of_nothing_keeps_everything():
    assert random_gram()[0].eliminate(9) == list(range(9))


def rounded_gram(features: int, tokens: int) -> Gram:
    """Sums with fewer tokens than features whose products were rounded: some eigenvalues are negative."""
    gram, x, y = Gram(torch.randn(4, features)), torch.randn(tokens, features) + 1, torch.randn(tokens, 4)
    gram.add(x, y, held_out=False)
    gram.add(x[::2], y[::2], held_out=True)
    for total in gram.gram:
        noise = torch.randn(features, features, dtype=torch.float64) * total.diagonal().mean() * 0.02
        total += noise.tril() + noise.tril(-1).T
    return gram


@pytest.mark.parametrize("fast", [100, 1000], ids=["float32", "float64"])
def test_rounding_that_leaves_no_factor_is_no_traceback(fast, monkeypatch):
    """The first real model crashed so twice: in the solution, and then in the elimination with few tokens."""
    from flab.pruning.refit.gram import ELIMINATION_RIDGE

    monkeypatch.setattr("flab.pruning.refit.gram.FAST_FEATURES", fast)
    torch.manual_seed(0)
    gram = rounded_gram(features=200, tokens=30)
    whole = gram.gram[0] + gram.gram[1]
    scale = whole.diagonal().sqrt()
    lowest_eigenvalue = float(torch.linalg.eigvalsh(whole / scale / scale[:, None])[0])
    assert lowest_eigenvalue < -ELIMINATION_RIDGE  # so there is no factor at first
    kept = gram.eliminate(120)
    assert len(set(kept)) == 120
    weights, _ = gram.solve(kept, None)
    assert bool(torch.isfinite(weights).all())
