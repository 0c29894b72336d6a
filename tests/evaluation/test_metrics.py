"""Known answers and invariants of the metrics."""

import math
from itertools import combinations

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from flab.evaluation.metrics import (
    bootstrap_bleu_difference,
    bootstrap_mean,
    bootstrap_mean_difference,
    corpus_bleu_of_counts,
    mcnemar_exact,
    mean_pass_at_k,
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


def rates_of(both, only_a, only_b, neither):
    """Rates of problems that were answered once."""
    return [1.0] * (both + only_a) + [0.0] * (only_b + neither), [1.0] * both + [0.0] * only_a + [1.0] * only_b + [
        0.0
    ] * neither


@given(counts, counts, counts, counts)
@settings(max_examples=40, deadline=None)
def test_retention_interval_is_ordered_and_seeded(both, only_a, only_b, neither):
    a, b = rates_of(both, only_a, only_b, neither)
    kept = retention(a, b, num_resamples=400)
    if both + only_a == 0:
        assert kept is None
        return
    assert kept == retention(a[::-1], b[::-1], num_resamples=400)
    assert 0.0 <= kept.low <= kept.high
    assert kept.ratio == (both + only_b) / (both + only_a)


def test_retention_of_the_same_results_is_one():
    a, b = rates_of(90, 0, 0, 74)
    kept = retention(a, b)
    assert (kept.ratio, kept.low, kept.high) == (1.0, 1.0, 1.0)


def test_retention_interval_is_near_the_normal_one():
    """Delta method, ratio of paired proportions: var(log r) = (only_a + only_b) / (passed_a * passed_b)."""
    kept = retention(*rates_of(400, 60, 40, 500), num_resamples=20_000)
    sd = math.sqrt(100 / (460 * 440))
    assert kept.low == pytest.approx(kept.ratio * math.exp(-1.96 * sd), abs=0.005)
    assert kept.high == pytest.approx(kept.ratio * math.exp(1.96 * sd), abs=0.005)


def test_problems_of_one_source_are_drawn_together():
    """Ten copies of each problem say no more than one of each: the interval stays as wide."""
    a, b = rates_of(20, 8, 4, 18)
    apart = bootstrap_mean_difference(a, b)
    copies = [number for number in range(50) for _ in range(10)]
    together = bootstrap_mean_difference(np.repeat(a, 10), np.repeat(b, 10), copies)
    wrongly = bootstrap_mean_difference(np.repeat(a, 10), np.repeat(b, 10))
    assert (together.low, together.high) == pytest.approx((apart.low, apart.high), abs=1e-9)
    assert wrongly.high - wrongly.low < 0.5 * (apart.high - apart.low)
    assert retention(np.repeat(a, 10), np.repeat(b, 10), copies).low == pytest.approx(retention(a, b).low, abs=1e-9)


@given(st.integers(1, 200), st.data())
def test_pass_at_k_equals_the_product_form(num_samples, data):
    """Chen et al.'s own code: 1 - prod(1 - k / i) for i from n - c + 1 to n."""
    num_correct = data.draw(st.integers(0, num_samples))
    k = data.draw(st.integers(1, num_samples))
    left = num_samples - num_correct
    product = 1.0 if left < k else 1.0 - np.prod(1.0 - k / np.arange(left + 1, num_samples + 1))
    assert pass_at_k(num_samples, num_correct, k) == pytest.approx(product, abs=1e-9)


def test_mean_pass_at_k():
    assert mean_pass_at_k([0, 10, 5], 10, 1) == pytest.approx(0.5)
    assert mean_pass_at_k([0, 10, 5], 10, 2) == pytest.approx((0 + 1 + 1 - 10 / 45) / 3)


def test_bootstrap_of_a_mean_is_near_the_normal_one():
    values = np.random.default_rng(1).integers(0, 11, 164) / 10
    low, high = bootstrap_mean(values)
    half = 1.96 * np.std(values) / math.sqrt(164)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.004)
    assert (low, high) == bootstrap_mean(values[::-1])
    assert bootstrap_mean([0.5] * 20) == (0.5, 0.5)


def test_bootstrap_of_a_difference_is_paired():
    rng = np.random.default_rng(3)
    a = rng.random(200)
    b = a - 0.1 + rng.normal(0, 0.05, 200)
    found = bootstrap_mean_difference(a, b)
    half = 1.96 * np.std(b - a) / math.sqrt(200)
    assert found.value == pytest.approx(np.mean(b - a))
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.002)
    same = bootstrap_mean_difference(a, a)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert bootstrap_mean_difference(b, a).value == pytest.approx(-found.value)


METRIC = sacrebleu.BLEU(tokenize="none", smooth_method="none", force=True)
sentences = st.lists(st.lists(st.sampled_from("abcde"), max_size=12).map(" ".join), min_size=1, max_size=8)


def counts_of(texts, references):
    found = [METRIC.sentence_score(text, [one]) for text, one in zip(texts, references, strict=True)]
    return [[one.sys_len, one.ref_len, *one.counts, *one.totals] for one in found]


@given(sentences, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_bleu_of_counts_is_sacrebleus(texts, random):
    references = [text.replace("a", random.choice("ab"), 1) + random.choice(["", " e", " b c"]) for text in texts]
    sums = np.array(counts_of(texts, references), dtype=float).sum(axis=0)
    expected = METRIC.corpus_score(texts, [references]).score
    assert corpus_bleu_of_counts(sums) == pytest.approx(expected, abs=1e-9)


def test_bootstrap_of_a_bleu_difference():
    rng = np.random.default_rng(0)
    references = [" ".join(rng.choice(list("abcdefgh"), 15)) for _ in range(60)]
    good = [text if rng.random() < 0.8 else text[::-1] for text in references]
    bad = [text if rng.random() < 0.3 else text[::-1] for text in references]
    a, b = counts_of(good, references), counts_of(bad, references)
    found = bootstrap_bleu_difference(a, b, num_resamples=1200)
    scores = [METRIC.corpus_score(texts, [references]).score for texts in (good, bad)]
    assert found.value == pytest.approx(scores[1] - scores[0])
    assert found.low < found.value < found.high < 0
    assert found == bootstrap_bleu_difference(a, b, num_resamples=1200)
    drawn = rng.integers(0, 60, (300, 60))
    naive = [
        METRIC.corpus_score([bad[i] for i in one], [[references[i] for i in one]]).score
        - METRIC.corpus_score([good[i] for i in one], [[references[i] for i in one]]).score
        for one in drawn
    ]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(naive, [0.025, 0.975])), abs=4)
