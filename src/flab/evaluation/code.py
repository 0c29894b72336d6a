"""Code generation scored by tests: unbiased pass@k, an interval, and the classes of failure.

A program is the prompt and the generation, joined as they are: nothing is stripped or repaired. Equal programs of
one problem are run once. A failed sample's class is the sandbox's, or ``empty`` for a blank generation, or
``length`` if the token limit cut it off. The sandbox's own outcome stays in the row as ``verdict``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from flab.evaluation.metrics import mean_pass_at_k
from flab.evaluation.score import Score, base_summary, check_shape, failure_class, passes_by_item, row_for
from flab.evaluation.soundness import require_sound
from flab.evaluation.tasks import Problem, TaskFile
from flab.models.engines.protocol import Generation
from flab.sandbox import Job, Sandbox, Verdict, packages_needed

PASS_AT = (1, 2, 5, 10, 20, 50, 100)
NO_REFERENCE = "no reference"


def score_code(task: TaskFile, generations: Sequence[Sequence[Generation]], sandbox: Sandbox | None) -> Score:
    """Run the tests of every sample of every problem. All problems have the same number of samples."""
    assert sandbox is not None, "a task of kind code needs a sandbox"
    check_shape(len(task.items), generations)
    problems = task.problems
    assert len(problems) == len(task.items), "not a task of kind code"
    require_sound(task, sandbox)
    verdicts = _verdicts(problems, generations, sandbox, f"Running tests of {task.name}")
    rows = [
        _row(problem, number, made, verdicts[at, made.text])
        for at, (problem, samples) in enumerate(zip(problems, generations, strict=True))
        for number, made in enumerate(samples)
    ]
    return Score(task.name, task.kind, _summary(rows) | {"sandbox_level": sandbox.level}, rows)


def gold_ceiling(task: TaskFile, sandbox: Sandbox) -> Score:
    """Score the references of a file. If a reference fails or is missing, its problem cannot measure a model."""
    require_sound(task, sandbox, of_references=True)
    known = [problem for problem in task.problems if problem.canonical_solution is not None]
    references = [[Generation(problem.canonical_solution or "", 0, "eos")] for problem in known]
    verdicts = _verdicts(known, references, sandbox, f"Running references of {task.name}")
    found = {
        one.task_id: (made[0], verdict) for one, made, verdict in zip(known, references, verdicts.values(), strict=True)
    }
    rows = [_gold_row(problem, *found.get(problem.task_id, (None, None))) for problem in task.problems]
    failed = {row["task_id"]: row["outcome"] for row in rows if not row["passed"]}
    summary = {
        "passed": len(rows) - len(failed),
        "total": len(rows),
        "failures": dict(Counter(failed.values()).most_common()),
        "failed": failed,
        "sandbox_level": sandbox.level,
    }
    return Score(task.name, task.kind, summary, rows)


def _verdicts(
    problems: Sequence[Problem], generations: Sequence[Sequence[Generation]], sandbox: Sandbox, description: str
) -> dict[tuple[int, str], Verdict]:
    """Run each distinct text of each problem once; keyed by the problem's place and the text."""
    # Equal answers are common among samples, and running a program is the most expensive part of scoring.
    keys = list(dict.fromkeys((at, made.text) for at, samples in enumerate(generations) for made in samples))
    jobs = [
        Job(one.prompt + text, one.test, one.entry_point, tuple(packages_needed(one.prompt)))
        for one, text in ((problems[at], text) for at, text in keys)
    ]
    return dict(zip(keys, sandbox.run_many(jobs, description), strict=True))


def _row(problem: Problem, sample: int, made: Generation, verdict: Verdict) -> dict[str, Any]:
    outcome = "passed" if verdict.passed else failure_class(made.text, made.finish_reason, verdict.outcome)
    more = {"verdict": verdict.outcome, "detail": verdict.detail}
    return row_for(problem.task_id, sample, made, verdict.passed, outcome, **more)


def _gold_row(problem: Problem, made: Generation | None, verdict: Verdict | None) -> dict[str, Any]:
    if made is None or verdict is None:
        return row_for(problem.task_id, 0, Generation("", 0, "eos"), False, NO_REFERENCE, verdict="", detail="")
    return _row(problem, 0, made, verdict)


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Common figures and pass@k for every k of ``PASS_AT`` that the number of samples allows."""
    summary = base_summary(rows)
    passes = passes_by_item(rows)
    samples = summary["num_samples"]
    return summary | {f"pass@{k}": mean_pass_at_k(passes, samples, k) for k in PASS_AT if k <= samples}
