"""Output prediction: the predicted value compared with the known one; nothing the model wrote is executed.

The prediction is the generation up to its first line end, stripped. Answers inside tags or fences are not searched for;
the preset's stop strings end the line. There are two comparisons:

``em_paper``
    equal as text, stripped, with ``"`` read as ``'`` (the paper's exact match).
``em_literal``
    equal as Python literals, types included (``True`` is not ``1``, ``[1]`` is not ``(1,)``); where one of the two
    is not a literal (``frozenset({1})``, ``nan``) the comparison as text decides.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Hashable, Sequence
from typing import Any

from flab.evaluation.score import (
    Score,
    base_summary,
    check_shape,
    failure_class,
    passes_by_item,
    rate_interval,
    row_for,
)
from flab.evaluation.tasks import Prediction, TaskFile
from flab.models.engines.protocol import Generation

# Longer text is compared only as text, because the time and memory of ``literal_eval`` grow with it.
MAX_CHARS = 10_000


def score_output(task: TaskFile, generations: Sequence[Sequence[Generation]]) -> Score:
    """Compare every prediction. A row passes if either comparison holds."""
    check_shape(len(task.items), generations)
    rows = []
    for item, samples in zip(task.items, generations, strict=True):
        assert isinstance(item, Prediction), "not a task of kind output"
        rows += [_row(item, number, made) for number, made in enumerate(samples)]
    summary = base_summary(rows)
    for name in ("em_paper", "em_literal"):
        passes = passes_by_item(rows, name)
        summary[name] = sum(passes) / len(rows)
        summary[f"{name}_interval_95"] = rate_interval(passes, summary["num_samples"])
    return Score(task.name, task.kind, summary, rows)


def prediction_of(text: str) -> str:
    """Return the generation's first line, stripped."""
    return text.partition("\n")[0].strip()


def _row(item: Prediction, sample: int, made: Generation) -> dict[str, Any]:
    predicted = prediction_of(made.text)
    paper, literal = compare(predicted, item.output)
    outcome = "passed" if paper or literal else _failure(predicted, item.output, made)
    return row_for(
        item.task_id, sample, made, paper or literal, outcome, prediction=predicted, em_paper=paper, em_literal=literal
    )


def _failure(predicted: str, known: str, made: Generation) -> str:
    """Return the class of a wrong prediction. A prediction whose line has ended was not cut off, even if more text follows."""
    unreadable = read_literal(predicted) is None and read_literal(known) is not None
    reason = "stop" if "\n" in made.text else made.finish_reason
    return failure_class(predicted, reason, "unreadable" if unreadable else "wrong")


def compare(predicted: str, known: str) -> tuple[bool, bool]:
    """Return ``em_paper`` and ``em_literal`` of two texts."""
    paper = _folded(predicted) == _folded(known)
    left = read_literal(predicted)
    right = read_literal(known)
    return paper, paper if left is None or right is None else left == right


def _folded(text: str) -> str:
    return text.strip().replace('"', "'")


def read_literal(text: str) -> Hashable | None:
    """Read a Python literal as a value that equals another only if value and types do; None if it is not a literal."""
    if len(text) > MAX_CHARS:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _canonical(ast.literal_eval(text.strip()))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, OverflowError):
        return None


def _canonical(value: Any) -> Hashable:
    """Pair each value with its type's name, so that a comparison includes the types at every depth."""
    kind = type(value).__name__
    if isinstance(value, list | tuple):
        return kind, tuple(map(_canonical, value))
    if isinstance(value, set):
        return kind, frozenset(map(_canonical, value))
    if isinstance(value, dict):
        return kind, frozenset((_canonical(key), _canonical(one)) for key, one in value.items())
    return kind, value
