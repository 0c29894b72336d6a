"""Whether the second of two models is as good as the first, within a margin that was fixed beforehand.

A p value above 0.05 does not show that two models are equal, because few problems never find a difference. What decides is
whether the 95 % interval of the difference stays above minus the margin (non-inferiority, one-sided level 2.5 %). The
smallest difference that the data could find tells whether the question could be answered at all.

If each problem was answered once and none shares a source with another, intervals are Tango's score intervals for paired
proportions (Statistics in Medicine 17, 1998). They hold for few problems, and even without any disagreement, where the
bootstrap's interval shrinks to a point. Otherwise they are t intervals with errors clustered by source (Liang & Zeger 1986).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flab.evaluation.metrics import Floats, cluster_sums

Word = Literal["superior", "non-inferior", "inferior", "undecided"]
MARGIN = 0.02
LEVEL = 0.05
POWER = 0.80


@dataclass(frozen=True)
class Decision:
    """The difference of the mean pass rates (second minus first), and the decision.

    ``detectable`` is the smallest true difference that these data would call significant in four of five cases.
    """

    verdict: Word
    margin: float
    difference: float
    low: float
    high: float
    detectable: float
    num_items: int
    num_clusters: int


def decide(
    a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable] | None = None, margin: float = MARGIN
) -> Decision:
    """Decide between two models by the pass rates of the same problems, (N,) each; ``margin`` is a share of them."""
    sums_G3 = cluster_sums(a, b, clusters)
    num_items = len(a)
    num_clusters = len(sums_G3)
    difference = float(np.mean(np.asarray(b, dtype=float) - np.asarray(a, dtype=float)))
    # Tango's interval is made for paired yes-or-no outcomes. Samples and clusters have other variances, which the
    # interval of cluster sums takes from the data.
    is_binary = num_clusters == num_items and set(map(float, (*a, *b))) <= {0.0, 1.0}
    if is_binary:
        only_a = sum(x > y for x, y in zip(a, b, strict=True))
        only_b = sum(y > x for x, y in zip(a, b, strict=True))
        low, high = tango_interval(only_a, only_b, num_items)
    else:
        low, high = clustered_interval(sums_G3)
    return Decision(
        verdict=_word(low, high, margin),
        margin=margin,
        difference=difference,
        low=low,
        high=high,
        detectable=detectable_difference(sums_G3),
        num_items=num_items,
        num_clusters=num_clusters,
    )


def _word(low: float, high: float, margin: float) -> Word:
    # The whole interval decides, not the difference itself: above zero, above minus the margin, or below it.
    if low > 0:
        return "superior"
    if low > -margin:
        return "non-inferior"
    return "inferior" if high < -margin else "undecided"


def tango_interval(only_a: int, only_b: int, total: int) -> tuple[float, float]:
    """Return the 95 % score interval of the difference of two paired proportions, second minus first.

    ``only_a`` and ``only_b`` of the ``total`` problems were passed by the first model alone and by the second alone.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    z = float(norm.ppf(1 - LEVEL / 2))

    def score(delta: float) -> float:
        """Return how many standard errors the observed difference lies above ``delta``, if that were the true one."""
        # q is the maximum-likelihood probability, given delta, that only the first passes. It is the root of a quadratic
        # (Tango, eq. 6).
        linear = -only_a - only_b + (2 * total - only_b + only_a) * delta
        constant = -only_a * delta * (1 - delta)
        q = (math.sqrt(max(0.0, linear * linear - 8 * total * constant)) - linear) / (4 * total)
        variance = total * (2 * q + delta * (1 - delta))
        distance = only_b - only_a - total * delta
        if variance <= 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)

    # The score falls from the lower end of the range to the upper one and meets z and -z once each.
    value = (only_b - only_a) / total
    edge = 1 - 1e-12
    low = brentq(lambda delta: score(delta) - z, -edge, value) if value > -edge and score(-edge) > z else -1.0
    high = brentq(lambda delta: score(delta) + z, value, edge) if value < edge and score(edge) < -z else 1.0
    return float(low), float(high)


def standard_error(sums_G3: Floats) -> float:
    """Return the standard error of the mean difference, clustered: G / (G - 1) times the squared sums of residuals."""
    differences_G = sums_G3[:, 1] - sums_G3[:, 0]
    sizes_G = sums_G3[:, 2]
    num_clusters = len(sums_G3)
    if num_clusters < 2:
        return math.inf
    # The residual of a cluster is what it adds beyond the mean difference. Problems of one source tend to be right or wrong
    # together, so the clusters' sums are squared and not single problems.
    residuals_G = differences_G - sizes_G * differences_G.sum() / sizes_G.sum()
    return float(math.sqrt(num_clusters / (num_clusters - 1) * np.square(residuals_G).sum()) / sizes_G.sum())


def clustered_interval(sums_G3: Floats) -> tuple[float, float]:
    """Return the 95 % t interval of the mean difference, from sums of each cluster; [-1, 1] for a single one."""
    from scipy.stats import t

    value = float((sums_G3[:, 1] - sums_G3[:, 0]).sum() / sums_G3[:, 2].sum())
    error = _at_least_one(sums_G3)
    if not math.isfinite(error):
        return -1.0, 1.0
    # With G clusters there are G - 1 degrees of freedom, however many problems they hold.
    half = float(t.ppf(1 - LEVEL / 2, len(sums_G3) - 1)) * error
    return max(-1.0, value - half), min(1.0, value + half)


def detectable_difference(sums_G3: Floats) -> float:
    """Return the smallest true difference that a two-sided test at 5 % finds with 80 % power, given the spread seen."""
    from scipy.stats import norm

    # A true difference of (z_0.975 + z_0.80) standard errors, 2.80, exceeds the 1.96 of significance in 80 % of
    # all samples.
    return min(1.0, float(norm.ppf(1 - LEVEL / 2) + norm.ppf(POWER)) * _at_least_one(sums_G3))


def _at_least_one(sums_G3: Floats) -> float:
    """Return the standard error, at least that of one changed problem: seeing no disagreement does not rule it out."""
    return max(standard_error(sums_G3), 1 / float(sums_G3[:, 2].sum()))
