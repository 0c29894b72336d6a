"""Numbers on pass or fail: pass@k, Wilson intervals, and the paired comparison of two models.

It reads no files and knows no models. An interval here covers the drawing of the problems, not the noise of
sampling or of batch size. Bootstrap intervals are percentile intervals over problems (Efron & Tibshirani 1993),
paired where two models are compared, and seeded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

Z_95 = 1.959963984540054  # the normal distribution's 97.5 % point
NUM_RESAMPLES = 10_000
CHUNK = 500  # resamples whose weights exist at once: 500 x 5000 problems are 20 MB
BLEU_ORDER = 4


@dataclass(frozen=True)
class PairedCounts:
    """On how many problems both, only the first, only the second, or neither of two models passed."""

    both: int
    only_a: int
    only_b: int
    neither: int


@dataclass(frozen=True)
class Retention:
    """What the second model kept of the first: ratio of their pass counts, and its 95 % interval."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Second minus first, and its 95 % interval."""

    value: float
    low: float
    high: float


def wilson_interval(passed: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Interval of a proportion (Wilson 1927), inside [0, 1] also for 0 or all passed; [0, 1] for no trial."""
    assert 0 <= passed <= total
    if total == 0:
        return 0.0, 1.0
    rate, spread = passed / total, z * z / total
    centre = (rate + spread / 2) / (1 + spread)
    half = z * math.sqrt(rate * (1 - rate) / total + spread / (4 * total)) / (1 + spread)
    return (
        0.0 if passed == 0 else max(0.0, centre - half),
        1.0 if passed == total else min(1.0, centre + half),
    )


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased chance that one of ``k`` draws passes (Chen et al. 2021, eq. 1): 1 - C(n-c, k) / C(n, k)."""
    assert 0 <= num_correct <= num_samples
    assert 1 <= k <= num_samples
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
    """Two-sided exact p value that two models differ by chance, from the problems that just one passed."""
    total, less = only_a + only_b, min(only_a, only_b)
    if total == 0:
        return 1.0
    tail = sum(math.comb(total, i) for i in range(less + 1))
    return min(1.0, 2 * tail / (1 << total))


def retention(counts: PairedCounts, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Retention | None:
    """Ratio of pass counts, second to first, percentile bootstrap over problems; None if the first has none.

    Problems are drawn with both models' results together: one multinomial draw of the four counts. Draws
    in which the first model passes nothing have no ratio and are left out.
    """
    cells = np.array([counts.both, counts.only_a, counts.only_b, counts.neither])
    if counts.both + counts.only_a == 0:
        return None
    draws = np.random.default_rng(seed).multinomial(cells.sum(), cells / cells.sum(), size=num_resamples)
    passed_a, passed_b = draws[:, 0] + draws[:, 1], draws[:, 0] + draws[:, 2]
    ratios = passed_b[passed_a > 0] / passed_a[passed_a > 0]
    low, high = np.quantile(ratios, [0.025, 0.975])
    ratio = (counts.both + counts.only_b) / (counts.both + counts.only_a)
    return Retention(ratio, float(low), float(high))


def retention_of_rates(
    a: Sequence[float], b: Sequence[float], num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Retention | None:
    """The same for problems with several samples each: ratio of the mean pass rates; None if the first is 0."""
    if not any(a):
        return None
    pairs, counts = np.unique(np.array([a, b], dtype=float).T, axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(counts.sum(), counts / counts.sum(), size=num_resamples)
    sums = draws @ pairs
    ratios = sums[sums[:, 0] > 0, 1] / sums[sums[:, 0] > 0, 0]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Retention(sum(b) / sum(a), float(low), float(high))


def mean_pass_at_k(num_correct: Sequence[int], num_samples: int, k: int) -> float:
    """Mean over problems of the unbiased pass@k; every problem has ``num_samples`` samples."""
    return sum(pass_at_k(num_samples, correct, k) for correct in num_correct) / len(num_correct)


def bootstrap_mean(values: Sequence[float], num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """95 % interval of a mean over problems: equal values are drawn together, one multinomial for each resample."""
    distinct, counts = np.unique(np.asarray(values, dtype=float), return_counts=True)
    total = counts.sum()
    draws = np.random.default_rng(seed).multinomial(total, counts / total, size=num_resamples)
    low, high = np.quantile(draws @ distinct / total, [0.025, 0.975])
    return float(low), float(high)


def bootstrap_mean_difference(
    a: Sequence[float], b: Sequence[float], num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Difference:
    """Mean of ``b`` minus mean of ``a`` over the same problems; pairs are drawn together."""
    assert len(a) == len(b)
    differences = np.asarray(b, dtype=float) - np.asarray(a, dtype=float)
    return Difference(float(differences.mean()), *bootstrap_mean(differences.tolist(), num_resamples, seed))


def corpus_bleu_of_counts(counts_RC: Floats) -> Floats:
    """BLEU-4 without smoothing (Papineni et al. 2002), 0 to 100, of sums of sentence counts.

    Each row is system length, reference length, four numbers of matched n-grams, four of all n-grams.
    """
    system, reference = counts_RC[..., 0], counts_RC[..., 1]
    matched, total = counts_RC[..., 2 : 2 + BLEU_ORDER], counts_RC[..., 2 + BLEU_ORDER :]
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
    """Corpus BLEU of ``b`` minus that of ``a``, problems drawn with both models' counts (Koehn 2004)."""
    a, b = np.asarray(counts_a, dtype=float), np.asarray(counts_b, dtype=float)
    assert a.shape == b.shape
    both = np.concatenate([a, b], axis=1)
    generator, found = np.random.default_rng(seed), []
    for start in range(0, num_resamples, CHUNK):
        size = min(CHUNK, num_resamples - start)
        drawn = generator.integers(0, len(a), size=(size, len(a))) + len(a) * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * len(a)).reshape(size, len(a))
        sums = weights.astype(float) @ both
        found.append(corpus_bleu_of_counts(sums[:, a.shape[1] :]) - corpus_bleu_of_counts(sums[:, : a.shape[1]]))
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975])
    value = corpus_bleu_of_counts(b.sum(axis=0)) - corpus_bleu_of_counts(a.sum(axis=0))
    return Difference(float(value), float(low), float(high))
