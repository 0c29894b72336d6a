"""Decisions within a margin: intervals with known values, what few data can tell, and clusters."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from flab.evaluation.decide import decide, tango_interval
from flab.evaluation.metrics import cluster_sums


def rates(both, only_a, only_b, neither):
    first = [1.0] * (both + only_a) + [0.0] * (only_b + neither)
    return first, [1.0] * both + [0.0] * only_a + [1.0] * only_b + [0.0] * neither


@pytest.mark.parametrize("total", [10, 164, 500])
def test_no_disagreement_leaves_a_known_doubt(total):
    """Without any disagreement Tango's limits are z^2 / (n + z^2), as Wilson's for 0 of n."""
    bound = 1.959964**2 / (total + 1.959964**2)
    assert tango_interval(0, 0, total) == pytest.approx((-bound, bound), abs=1e-6)


@pytest.mark.parametrize(
    ("only_a", "only_b", "total"), [(12, 2, 50), (1, 0, 44), (3, 9, 30), (0, 7, 20), (40, 25, 164)]
)
def test_the_limits_are_where_the_score_test_turns(only_a, only_b, total):
    """At each limit the score statistic, with the likeliest nuisance probability found by search, is 1.96."""
    for delta in tango_interval(only_a, only_b, total):
        if abs(delta) > 1 - 1e-9:
            continue

        def unlikely(q, delta=delta):
            cells = [(only_a, q), (only_b, q + delta), (total - only_a - only_b, 1 - 2 * q - delta)]
            return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

        bounds = (max(0.0, -delta) + 1e-12, (1 - delta) / 2 - 1e-12)
        q = minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        score = (only_b - only_a - total * delta) / math.sqrt(total * (2 * q + delta * (1 - delta)))
        assert abs(score) == pytest.approx(1.959964, abs=1e-3)


def test_the_interval_swaps_with_the_models():
    low, high = tango_interval(12, 2, 50)
    assert tango_interval(2, 12, 50) == pytest.approx((-high, -low), abs=1e-9)
    assert low < -10 / 50 < high < 0


@pytest.mark.parametrize("only", [(5, 0), (0, 5)])
def test_all_problems_changed(only):
    low, high = tango_interval(*only, 5)
    assert -1 <= low <= high <= 1
    assert (low == -1.0) == (only == (5, 0))
    assert (high == 1.0) == (only == (0, 5))


@pytest.mark.parametrize(
    ("counts", "margin", "verdict"),
    [
        ((900, 0, 0, 100), 0.02, "non-inferior"),
        ((50, 0, 0, 50), 0.02, "undecided"),  # a hundred problems cannot tell two points
        ((50, 0, 0, 50), 0.05, "non-inferior"),
        ((400, 100, 20, 480), 0.02, "inferior"),
        ((400, 20, 100, 480), 0.02, "superior"),
        ((80, 7, 3, 74), 0.02, "undecided"),
    ],
)
def test_verdicts(counts, margin, verdict):
    found = decide(*rates(*counts), margin=margin)
    assert found.verdict == verdict
    assert found.difference == pytest.approx((counts[2] - counts[1]) / sum(counts))
    assert found.low <= found.difference <= found.high
    assert (found.num_items, found.num_clusters) == (sum(counts), sum(counts))


def test_the_detectable_difference_is_found_in_four_of_five_cases():
    """Draw models that differ by it, and test each draw at 5 %."""
    spread, total = 0.10, 400
    rng = np.random.default_rng(0)
    a, b = rates(180, 20, 20, 180)
    delta = decide(a, b).detectable
    only_a, only_b = (spread - delta) / 2, (spread + delta) / 2
    draws = rng.multinomial(total, [only_a, only_b, 1 - spread], 4000)
    difference = draws[:, 1] - draws[:, 0]
    found = np.abs(difference) / np.sqrt(draws[:, 0] + draws[:, 1] - difference**2 / total) > norm.ppf(0.975)
    assert delta == pytest.approx(2.8016 * math.sqrt(0.1 / 400), rel=0.01)
    assert found.mean() == pytest.approx(0.8, abs=0.04)


def test_one_changed_problem_is_the_least_spread():
    assert decide([1.0] * 50, [1.0] * 50).detectable == pytest.approx(2.8016 / 50, abs=1e-4)


def test_clusters_widen_the_interval_by_hand():
    """Two problems a source, always alike: as many independent answers as sources."""
    a, b = rates(10, 6, 2, 12)
    alone = decide([*a], [*b])
    pairs = decide(np.repeat(a, 2).tolist(), np.repeat(b, 2).tolist(), [i // 2 for i in range(60)])
    assert (pairs.num_items, pairs.num_clusters) == (60, 30)
    changed = np.array(b) - np.array(a)
    half = 2.045230 * np.std(changed, ddof=1) / math.sqrt(30)  # Student's t, 29 degrees of freedom
    assert (pairs.low, pairs.high) == pytest.approx((changed.mean() - half, changed.mean() + half), abs=1e-6)
    assert pairs.detectable == pytest.approx(alone.detectable)


def test_a_single_source_decides_nothing():
    found = decide([1.0] * 9, [1.0] * 9, ["book"] * 9)
    assert (found.low, found.high, found.verdict) == (-1.0, 1.0, "undecided")


def test_several_samples_take_the_t_interval():
    a, b = [0.5, 1.0, 0.25, 0.75] * 40, [0.5, 0.75, 0.25, 1.0] * 40
    found = decide(a, b)
    half = 1.974996 * np.std(np.array(b) - np.array(a), ddof=1) / math.sqrt(160)  # Student's t, 159 degrees of freedom
    assert (found.low, found.high) == pytest.approx((-half, half), abs=1e-6)


def test_sums_of_clusters():
    found = cluster_sums([1, 0, 1], [0, 0, 1], ["x", "y", "x"])
    assert found.tolist() == [[2, 1, 2], [0, 0, 1]]
