"""Perturbations of a problem file, after ReCode's classes (Wang et al. 2023), and what they cost.

Each perturbation keeps what the function computes: prompt, reference, tests and entry point change together, and the
reference still passes. If it finds nothing to change, the problem is left out and the task file counts it. The draws
depend only on the seed, the perturbation and the task id. There is no paraphrase and no translation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from flab.errors import DataError
from flab.evaluation.metrics import mcnemar_exact, paired_counts
from flab.evaluation.perturbations.docstrings import docstring_format, docstring_noise
from flab.evaluation.perturbations.partial import dead_code, loop_form
from flab.evaluation.perturbations.programs import read_program
from flab.evaluation.perturbations.renaming import rename_arguments, rename_function
from flab.evaluation.score import Score, by_item
from flab.evaluation.tasks import Problem, TaskFile, make_task

PERTURBATIONS: dict[str, Callable[[Problem, Random], Problem | None]] = {
    "docstring-format": docstring_format,
    "docstring-noise": docstring_noise,
    "rename-function": rename_function,
    "rename-arguments": rename_arguments,
    "dead-code": dead_code,
    "loop-form": loop_form,
}


def perturb(task: TaskFile, name: str, seed: int = 0) -> TaskFile:
    """Perturb every problem of a code task that ``name`` applies to; ``skipped`` counts the others.

    Raises:
        DataError: it applies to no problem of the file.
    """
    made = [_perturbed(problem, name, seed) for problem in task.problems]
    items = [problem for problem in made if problem is not None]
    if not items:
        raise DataError(f"{task.name}: {name} applies to none of {len(made)} problems; choose another perturbation")
    made_task = make_task(f"{task.name}~{name}", "code", items, task.source, name, len(made) - len(items))
    return replace(made_task, clusters=task.clusters)


def random_for(seed: int, name: str, task_id: str) -> Random:
    """Return a random generator for one problem. It is the same on every machine."""
    # The seed depends on the problem and not on its place, so a shorter file perturbs each problem as the whole file does.
    digest = hashlib.sha256(f"{seed}\0{name}\0{task_id}".encode()).digest()
    return Random(int.from_bytes(digest[:8], "big"))


def _perturbed(problem: Problem, name: str, seed: int) -> Problem | None:
    """Return the perturbed problem if it exists, differs, and is still a program with the function."""
    made = PERTURBATIONS[name](problem, random_for(seed, name, problem.task_id))
    return made if made is not None and made != problem and read_program(made) is not None else None


def robustness_summary(clean: Score, perturbed: Score) -> dict[str, Any]:
    """Compare the two on the problems that both hold: pass@1, drop, paired counts and exact McNemar p.

    pass@1 is over all samples. Counts and p compare each problem's first sample, because others have no counterpart.
    """
    before = by_item(clean.rows, "passed")
    after = by_item(perturbed.rows, "passed")
    ids = [task_id for task_id in before if task_id in after]
    if not ids:
        raise DataError(f"{clean.name} and {perturbed.name} share no problem; compare runs on files of one origin")
    # The mean over problems of each problem's own pass rate: every problem counts the same, however many samples it has.
    rates = [sum(sum(one[i]) / len(one[i]) for i in ids) / len(ids) for one in (before, after)]
    counts = paired_counts([before[i][0] for i in ids], [after[i][0] for i in ids])
    return {
        "shared": len(ids),
        "pass@1_clean": rates[0],
        "pass@1_perturbed": rates[1],
        "drop": rates[0] - rates[1],
        "relative_drop": (rates[0] - rates[1]) / rates[0] if rates[0] else None,
        "both": counts.both,
        "only_clean": counts.only_a,
        "only_perturbed": counts.only_b,
        "neither": counts.neither,
        "mcnemar_p": mcnemar_exact(counts.only_a, counts.only_b),
    }
