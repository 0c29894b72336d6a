"""Known answers and invariants of the metrics."""

import math
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flab.evaluation.metrics import (
    PairedCounts,
    mcnemar_exact,
    paired_counts,
    pass_at_k,
    retention,
    wilson_interval,
)

counts = st.integers(0, 60)
pair_lists = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80)


def test_wilson_known_answer():
    low, high = wilson_interval(15, 20)  # Newcombe 1998 style check, computed by hand from the formula
    assert low == pytest.approx(0.531299, abs=1e-6)
    assert high == pytest.approx(0.888138, abs=1e-6)


def test_wilson_ends():
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(10, 10)[1] == 1.0
    assert wilson_interval(0, 10)[1] == pytest.approx(0.277533, abs=1e-6)
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(counts, counts)
def test_wilson_holds_the_rate_and_is_symmetric(passed, failed):
    total = passed + failed
    low, high = wilson_interval(passed, total)
    assert 0.0 <= low <= high <= 1.0
    if total:
        assert low <= passed / total <= high
    mirrored = wilson_interval(failed, total)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


@given(st.integers(1, 9), st.data())
def test_pass_at_k_equals_counting_all_draws(num_samples, data):
    num_correct = data.draw(st.integers(0, num_samples))
    k = data.draw(st.integers(1, num_samples))
    draws = list(combinations(range(num_samples), k))
    hits = sum(any(i < num_correct for i in draw) for draw in draws)
    assert pass_at_k(num_samples, num_correct, k) == pytest.approx(hits / len(draws), abs=1e-12)


def test_pass_at_1_is_the_rate():
    assert pass_at_k(200, 37, 1) == pytest.approx(37 / 200)


@given(pair_lists)
def test_paired_counts_add_up_and_swap(pairs):
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    found, swapped = paired_counts(a, b), paired_counts(b, a)
    assert found.both + found.only_a + found.only_b + found.neither == len(pairs)
    assert found.both + found.only_a == sum(a)
    assert (swapped.only_a, swapped.only_b) == (found.only_b, found.only_a)


def test_paired_counts_refuses_other_lengths():
    with pytest.raises(ValueError):
        paired_counts([True], [True, False])


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"), [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (10, 2, 0.038574), (6, 6, 1.0)]
)
def test_mcnemar_known_answers(only_a, only_b, p):
    assert mcnemar_exact(only_a, only_b) == pytest.approx(p, abs=1e-6)


@given(st.integers(0, 2000), st.integers(0, 2000))
@settings(max_examples=30, deadline=None)
def test_mcnemar_is_a_symmetric_probability(only_a, only_b):
    p = mcnemar_exact(only_a, only_b)
    assert 0.0 <= p <= 1.0
    assert p == mcnemar_exact(only_b, only_a)


@given(counts, counts, counts, counts)
@settings(max_examples=40, deadline=None)
def test_retention_interval_is_ordered_and_seeded(both, only_a, only_b, neither):
    found = PairedCounts(both, only_a, only_b, neither)
    kept = retention(found, num_resamples=400)
    if both + only_a == 0:
        assert kept is None
        return
    assert kept == retention(found, num_resamples=400)
    assert 0.0 <= kept.low <= kept.high
    assert kept.ratio == (both + only_b) / (both + only_a)


def test_retention_of_the_same_results_is_one():
    kept = retention(PairedCounts(90, 0, 0, 74))
    assert (kept.ratio, kept.low, kept.high) == (1.0, 1.0, 1.0)


def test_retention_interval_is_near_the_normal_one():
    """Delta method, ratio of paired proportions: var(log r) = (only_a + only_b) / (passed_a * passed_b)."""
    kept = retention(PairedCounts(400, 60, 40, 500), num_resamples=40_000)
    sd = math.sqrt(100 / (460 * 440))
    assert kept.low == pytest.approx(kept.ratio * math.exp(-1.96 * sd), abs=0.005)
    assert kept.high == pytest.approx(kept.ratio * math.exp(1.96 * sd), abs=0.005)
