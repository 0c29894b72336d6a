"""Numbers on pass or fail: pass@k, Wilson intervals, and the paired comparison of two models.

It reads no files and knows no models. An interval here covers the drawing of the problems, not the noise of
sampling or of batch size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z_95 = 1.959963984540054  # the normal distribution's 97.5 % point


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


def retention(counts: PairedCounts, num_resamples: int = 10_000, seed: int = 0) -> Retention | None:
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
