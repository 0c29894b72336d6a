"""The result of a scorer, and what all scorers share: rows, rates with intervals, classes of failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flab.evaluation.metrics import bootstrap_mean, wilson_interval
from flab.models.engines.protocol import Generation

Rows = Sequence[Mapping[str, Any]]  # of results: one for each sample of each item, in order


@dataclass(frozen=True)
class Score:
    """One task scored: figures for readers, and one row for each sample of each item, in order."""

    name: str
    kind: str
    summary: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def passed(self) -> list[bool]:
        """Return whether each item's first sample passed, for paired comparisons."""
        return [bool(row["passed"]) for row in self.rows if row["sample"] == 0]


def row_for(task_id: str, sample: int, made: Generation, passed: bool, outcome: str, **more: Any) -> dict[str, Any]:
    """Return one row: the fields of every kind, then those that this kind adds."""
    common = {"task_id": task_id, "sample": sample, "passed": passed, "outcome": outcome, "text": made.text}
    return common | {"finish_reason": made.finish_reason, "num_tokens": made.num_tokens} | more


def check_shape(num_items: int, generations: Sequence[Sequence[Generation]]) -> None:
    """Check that every item has the same number of samples, at least one."""
    assert len(generations) == num_items
    assert len({len(samples) for samples in generations}) == 1, "unequal numbers of samples"
    assert generations[0], "no sample"


def failure_class(text: str, finish_reason: str, otherwise: str) -> str:
    """Return the class of a failed sample: ``empty``, cut off by ``length``, or what the scorer found."""
    if not text.strip():
        return "empty"
    return "length" if finish_reason == "length" else otherwise


def by_item(rows: Rows, name: str) -> dict[str, list[bool]]:
    """Return a field of each item's samples."""
    found: dict[str, list[bool]] = {}
    for row in rows:
        found.setdefault(row["task_id"], []).append(bool(row[name]))
    return found


def passes_by_item(rows: Rows, name: str = "passed") -> list[int]:
    """Return how many samples of each item have ``name`` true, items in order of appearance."""
    return [sum(found) for found in by_item(rows, name).values()]


def rate_interval(passes: Sequence[int], num_samples: int) -> list[float]:
    """Return the 95 % interval of a rate: Wilson for one sample, bootstrap over items for several."""
    # With one sample a problem passes or fails, and Wilson's interval for a proportion holds. With several it
    # has a rate.
    if num_samples == 1:
        return list(wilson_interval(sum(passes), len(passes)))
    return list(bootstrap_mean([count / num_samples for count in passes]))


def base_summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures that all kinds report: passed samples, their interval, failures by class, cut-offs."""
    passes = passes_by_item(rows)
    num_samples = max(row["sample"] for row in rows) + 1
    failures = Counter(row["outcome"] for row in rows if not row["passed"])
    return {
        "pass@1": sum(passes) / len(rows),
        "passed": sum(passes),
        "total": len(rows),
        "num_items": len(passes),
        "num_samples": num_samples,
        "interval_95": rate_interval(passes, num_samples),
        "failures": dict(sorted(failures.items(), key=lambda pair: (-pair[1], pair[0]))),
        "num_truncated": sum(row["finish_reason"] == "length" for row in rows),
    }
