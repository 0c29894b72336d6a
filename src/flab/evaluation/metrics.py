"""Numbers on pass or fail: pass@k, Wilson intervals, and the paired comparison of two models.

This module reads no files and knows no models. An interval here accounts for the choice of the problems, not for the noise
of sampling or of batch size. Bootstrap intervals are percentile intervals (Efron & Tibshirani 1993) over problems, or over
clusters of problems that share a source. They are seeded, and paired where two models are compared. Statistics come from
scipy, which is imported where it is used because the import takes half a second. Legend: N problems, G clusters.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

NUM_RESAMPLES = 10_000
CHUNK = 500  # resamples that exist at once: 500 x 5000 problems are 20 MB
BLEU_ORDER = 4


@dataclass(frozen=True)
class PairedCounts:
    """The numbers of problems that both, only the first, only the second, or neither of two models passed."""

    both: int
    only_a: int
    only_b: int
    neither: int


@dataclass(frozen=True)
class Retention:
    """How much the second model kept of the first: the ratio of their pass counts, and its 95 % interval."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Second minus first, and its 95 % interval."""

    value: float
    low: float
    high: float


def wilson_interval(passed: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion (Wilson 1927), which also holds for 0 or all passed; [0, 1] for no trial."""
    from scipy.stats import binomtest

    if total == 0:
        return 0.0, 1.0
    # The usual p +- 1.96 sqrt(p (1 - p) / N) has no width at 0 or N passes; Wilson's interval inverts the score
    # test and keeps one.
    found = binomtest(passed, total).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return the unbiased chance that one of ``k`` draws passes (Chen et al. 2021, eq. 1): 1 - C(n-c, k) / C(n, k)."""
    assert 0 <= num_correct <= num_samples
    assert 1 <= k <= num_samples
    # C(n - c, k) of the C(n, k) ways to draw k of n samples hold no correct one. math.comb is exact, so nothing
    # overflows.
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def paired_counts(a: Sequence[bool], b: Sequence[bool]) -> PairedCounts:
    """Count agreements and disagreements of two models over the same problems in the same order."""
    pairs = [(bool(x), bool(y)) for x, y in zip(a, b, strict=True)]
    return PairedCounts(
        both=pairs.count((True, True)),
        only_a=pairs.count((True, False)),
        only_b=pairs.count((False, True)),
        neither=pairs.count((False, False)),
    )


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Return the exact two-sided p value of the difference of two models, from the problems that only one of them passed."""
    from scipy.stats import binomtest

    # Problems that both or neither passed say nothing about which is better. Under the null hypothesis each of
    # the others falls to either model with probability 1/2.
    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0


def retention(
    a: Sequence[float],
    b: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    num_resamples: int = NUM_RESAMPLES,
) -> Retention | None:
    """Return the ratio of the mean pass rates, second to first, with its interval; None if the first passes nothing.

    Args:
        a: pass rate of each problem by the first model, (N,).
        b: the same for the second.
        clusters: the cluster of each problem; None if every problem is its own.
        num_resamples: bootstrap resamples. Those in which the first model passes nothing have no ratio and are left out.
    """
    if not any(a):
        return None

    def ratio(sums_a: Floats, sums_b: Floats, sizes: Floats, axis: int = -1) -> Any:
        # A resample in which the first model passes nothing divides by zero. The bootstrap drops it.
        with np.errstate(divide="ignore", invalid="ignore"):
            return sums_b.sum(axis=axis) / sums_a.sum(axis=axis)

    return Retention(sum(b) / sum(a), *_bootstrap(ratio, a, b, clusters, num_resamples))


def mean_pass_at_k(num_correct: Sequence[int], num_samples: int, k: int) -> float:
    """Return the mean over problems of the unbiased pass@k; every problem has ``num_samples`` samples."""
    return sum(pass_at_k(num_samples, correct, k) for correct in num_correct) / len(num_correct)


def bootstrap_mean(values: Sequence[float], num_resamples: int = NUM_RESAMPLES) -> tuple[float, float]:
    """Return the 95 % interval of a mean over problems."""
    found = bootstrap_mean_difference([0.0] * len(values), values, num_resamples=num_resamples)
    return found.low, found.high


def bootstrap_mean_difference(
    a: Sequence[float],
    b: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    num_resamples: int = NUM_RESAMPLES,
) -> Difference:
    """Return the mean of ``b`` minus that of ``a`` over the same problems with its interval; pairs are drawn together."""

    def difference(sums_a: Floats, sums_b: Floats, sizes: Floats, axis: int = -1) -> Any:
        # Clusters differ in size, so sums are divided by the problems that were drawn, not by the number of clusters.
        return (sums_b - sums_a).sum(axis=axis) / sizes.sum(axis=axis)

    value = float(np.mean(np.asarray(b, dtype=float) - np.asarray(a, dtype=float)))
    return Difference(value, *_bootstrap(difference, a, b, clusters, num_resamples))


def _bootstrap(
    statistic: Callable[..., Any],
    a: Sequence[float],
    b: Sequence[float],
    clusters: Sequence[Hashable] | None,
    num_resamples: int,
) -> tuple[float, float]:
    """Return the 95 % percentile interval of a statistic of sums over the drawn clusters."""
    from scipy.stats import DegenerateDataWarning, bootstrap

    # A drawn cluster brings all its problems, so its sums are all that is needed. They are sorted, so that the order of the
    # results does not change the interval.
    sums_G3 = cluster_sums(a, b, clusters)
    sums_G3 = sums_G3[np.lexsort(sums_G3.T)]
    if (sums_G3 == sums_G3[0]).all():  # every resample is the same
        value = float(statistic(*sums_G3.T))
        return value, value
    with warnings.catch_warnings():
        # All resamples may have the same value. The interval is then correctly a single point.
        warnings.simplefilter("ignore", DegenerateDataWarning)
        found = bootstrap(
            tuple(sums_G3.T),
            statistic,
            paired=True,
            vectorized=True,
            method="percentile",
            n_resamples=num_resamples,
            batch=CHUNK,
            rng=np.random.default_rng(0),
        )
    drawn = found.bootstrap_distribution
    # The middle 95 % of the resampled values. A resample in which the first model passes nothing has no ratio.
    low, high = np.quantile(drawn[np.isfinite(drawn)], [0.025, 0.975])
    return float(low), float(high)


def cluster_sums(a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable] | None) -> Floats:
    """Return sum of ``a``, sum of ``b`` and number of problems of each cluster, G x 3."""
    assert len(a) == len(b)
    names = list(clusters) if clusters is not None else list(range(len(a)))
    place = {name: at for at, name in enumerate(dict.fromkeys(names))}
    of_N = np.array([place[name] for name in names])
    columns = [np.bincount(of_N, weights=np.asarray(one, dtype=float)) for one in (a, b, np.ones(len(a)))]
    return np.stack(columns, axis=1)


def corpus_bleu_of_counts(counts_RC: Floats) -> Floats:
    """Return BLEU-4 without smoothing (Papineni et al. 2002), 0 to 100, from sums of sentence counts.

    Each row is system length, reference length, four numbers of matched n-grams, four of all n-grams.
    """
    system = counts_RC[..., 0]
    reference = counts_RC[..., 1]
    matched = counts_RC[..., 2 : 2 + BLEU_ORDER]
    total = counts_RC[..., 2 + BLEU_ORDER :]
    # The score is the geometric mean of the four precisions, times a penalty where the system's text is the shorter one.
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(total > 0, matched / total, 0.0)
        brevity = np.where(system < reference, np.exp(1 - reference / system), 1.0)
        score = 100 * brevity * np.exp(np.log(precision).mean(axis=-1))
    return np.where((system > 0) & (precision > 0).all(axis=-1), score, 0.0)


def bootstrap_bleu_difference(
    counts_a: Sequence[Sequence[float]],
    counts_b: Sequence[Sequence[float]],
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Return the corpus BLEU of ``b`` minus that of ``a``, problems drawn with both models' counts (Koehn 2004)."""
    a = np.asarray(counts_a, dtype=float)
    b = np.asarray(counts_b, dtype=float)
    assert a.shape == b.shape
    both = np.concatenate([a, b], axis=1)
    generator = np.random.default_rng(seed)
    found = []
    # A resample is how often each problem was drawn, R x N; times the counts it gives the sums that corpus BLEU needs.
    for start in range(0, num_resamples, CHUNK):
        size = min(CHUNK, num_resamples - start)
        # Each row's draws are shifted into a separate range, so that one bincount counts all resamples of
        # the chunk.
        drawn = generator.integers(0, len(a), size=(size, len(a))) + len(a) * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * len(a)).reshape(size, len(a))
        sums = weights.astype(float) @ both
        found.append(corpus_bleu_of_counts(sums[:, a.shape[1] :]) - corpus_bleu_of_counts(sums[:, : a.shape[1]]))
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975])
    value = corpus_bleu_of_counts(b.sum(axis=0)) - corpus_bleu_of_counts(a.sum(axis=0))
    return Difference(float(value), float(low), float(high))
