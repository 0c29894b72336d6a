"""One figure: its value, its spread and its method, or the reason why it has no value. No torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A value with its unit and method (``measured: …``, ``formula: …``, ``estimated: …``), or None with the reason.

    ``low`` and ``high`` are the smallest and largest of ``rounds`` measurements whose median is the value.
    """

    value: float | None
    unit: str
    method: str | None = None
    low: float | None = None
    high: float | None = None
    rounds: int | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        assert (self.value is None) == (self.reason is not None), "a value or a reason, never both"
        assert (self.value is None) == (self.method is None), "a value has a method"

    def to_json(self) -> dict[str, Any]:
        """Return all fields."""
        return asdict(self)

    def plus(self, other: Figure) -> Figure:
        """Return the sum of two costs, without a value if either has none."""
        if self.value is None or other.value is None:
            return unknown(self.unit, str(self.reason or other.reason))
        return Figure(self.value + other.value, self.unit, self.method)

    def scaled(self, factor: float, unit: str, how: str) -> Figure:
        """Return the figure times a constant, in another unit. Its method names the factor."""
        if self.value is None:
            return unknown(unit, str(self.reason))
        low, high = (None if end is None else end * factor for end in (self.low, self.high))
        return Figure(self.value * factor, unit, f"{self.method}; {how}", low, high, self.rounds)


@dataclass(frozen=True)
class Ratio:
    """A figure of one model divided by another model's, with the widest range that the spreads of both allow.

    Figures without a spread, such as sizes, give a range of no width. ``rounds`` is the smaller number of measurements behind
    the two figures, or None if neither was measured in rounds.
    """

    value: float
    low: float
    high: float
    rounds: int | None = None

    @classmethod
    def of_gain(cls, gain: Mapping[str, Any]) -> Ratio:
        """Read one of the ``gains`` in measure.json. Files from before gains had ``rounds`` show a single one by its range."""
        low, high = (gain["value"] if gain.get(end) is None else gain[end] for end in ("low", "high"))
        return cls(gain["value"], low, high, gain.get("rounds", 1 if low == high else None))

    @property
    def is_single(self) -> bool:
        """Whether there was only one round, which has no range and therefore shows no difference."""
        return self.rounds == 1

    @property
    def is_open(self) -> bool:
        """Whether the measurements show no difference between the models: the range contains 1, or there is none."""
        return self.is_single or (self.low < self.high and self.low <= 1 <= self.high)


@dataclass(frozen=True)
class Timing:
    """One batch of answers: the seconds to the first token and for the others, and the peak memory of both phases."""

    first: float
    rest: float
    prefill_bytes: int
    decode_bytes: int


@dataclass(frozen=True)
class MeteredAnswers:
    """Answers that were metered together: their cost in joules, and the number of generated tokens."""

    energy: Figure
    tokens: int


@dataclass(frozen=True)
class Throughput:
    """Tokens per second and peak memory at one batch size."""

    batch: int
    tokens_per_second: Figure
    peak_bytes: int


def measured(values: Sequence[float], unit: str, method: str) -> Figure:
    """Return the median of several measurements, with their extremes."""
    return Figure(statistics.median(values), unit, f"measured: {method}", min(values), max(values), len(values))


def ratio_of(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> Ratio | None:
    """Return ``one`` over ``other``, both as :meth:`Figure.to_json` returns them, or None if either has no value."""
    if one is None or other is None or one["value"] is None or not other["value"]:
        return None
    # The smallest of one over the largest of the other, and the reverse, give the widest possible range.
    low = _end(one, "low") / _end(other, "high")
    high = _end(one, "high") / _end(other, "low") if _end(other, "low") else math.inf
    rounds = min((each["rounds"] for each in (one, other) if each.get("rounds") is not None), default=None)
    return Ratio(one["value"] / other["value"], low, high, rounds)


def _end(figure: Mapping[str, Any], name: str) -> float:
    """Return an end of a figure's spread, or its value if it has no spread."""
    return float(figure["value"] if figure.get(name) is None else figure[name])


def by_formula(value: float, unit: str, formula: str) -> Figure:
    """Return a figure that follows from sizes."""
    return Figure(value, unit, f"formula: {formula}")


def unknown(unit: str, reason: str) -> Figure:
    """Return a figure without a value, with the reason."""
    return Figure(None, unit, reason=reason)
