"""Whether the tests of a problem can fail. They are tried on wrong programs before they decide anything.

Two stubs take the place of the function: one raises, the other returns None. A test that passes with a stub, or never calls
it, would pass any program, so its problem is refused by name. A problem whose test needs a package that is not installed is
refused too, because every answer would fail.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from flab.errors import DataError
from flab.evaluation.tasks import Problem, TaskFile
from flab.progress import say
from flab.sandbox import Job, Sandbox, Verdict, missing, packages_needed

STUBS = {"one that raises": "raise NotImplementedError", "one that returns None": "return None"}
# Each completes a prompt that ends in the middle of a function.
BODIES = ("    pass\n", "\tpass\n", "  pass\n")
NUM_NAMED = 5


@dataclass(frozen=True)
class Fault:
    """Why tests cannot decide. With a ``weak`` fault they may still tell apart programs that return something."""

    text: str
    is_weak: bool = False


# A file is scored several times in one run, always at the same level of isolation.
_known: dict[tuple[Problem, str], Fault | None] = {}


def require_sound(task: TaskFile, sandbox: Sandbox, of_references: bool = False) -> None:
    """Raise a DataError that names the problems of a task whose tests cannot decide.

    With ``of_references`` only the file's own solutions will run. A test that compares two calls with each other, and so
    passes for None, then only gives a warning.
    """
    found = faults(task.problems, sandbox, task.name)
    weak = {task_id: one for task_id, one in found.items() if of_references and one.is_weak}
    for task_id, one in weak.items():
        say(f"{task.source}: {task_id}: {one.text}")
    refuse({task_id: one.text for task_id, one in found.items() if task_id not in weak}, task.source)


def refuse(found: Mapping[str, str], source: str) -> None:
    """Raise DataError if there is any fault."""
    if not found:
        return
    named = "; ".join(f"{task_id}: {fault}" for task_id, fault in list(found.items())[:NUM_NAMED])
    more = f"; and {len(found) - NUM_NAMED} more" if len(found) > NUM_NAMED else ""
    raise DataError(f"{source}: {named}{more}. Repair the tests, or remove the rows")


def faults(problems: Sequence[Problem], sandbox: Sandbox, name: str = "tests") -> dict[str, Fault]:
    """Return the fault of each problem whose tests cannot decide. They are tried once per process."""
    keys = {problem.task_id: (replace(problem, task_id=""), sandbox.level) for problem in problems}
    new = {key: None for key in keys.values() if key not in _known}
    needy = {key: absent for key in new if (absent := missing(packages_needed(key[0].test)))}
    # Two programs for each problem, in one batch over all cores; ``verdicts`` hands them out again two by two.
    tried = [key for key in new if key not in needy]
    jobs = [job_for(problem, body) for problem, _ in tried for body in STUBS.values()]
    verdicts = iter(sandbox.run_many(jobs, f"Trying the tests of {name} on wrong programs") if jobs else [])
    for key in tried:
        _known[key] = fault_of(next(verdicts), next(verdicts))
    for key, absent in needy.items():
        _known[key] = Fault(f"its test needs {', '.join(absent)}, not installed here")
    found = {task_id: _known[key] for task_id, key in keys.items()}
    return {task_id: fault for task_id, fault in found.items() if fault is not None}


def fault_of(raising: Verdict, returning: Verdict) -> Fault | None:
    """Judge tests by their verdicts on the two stubs."""
    passed = [one.passed or one.outcome == "uncalled" for one in (raising, returning)]
    if not any(passed):
        return None
    stubs = " and ".join(name for name, one in zip(STUBS, passed, strict=True) if one)
    is_weak = not passed[0] and returning.passed and not returning.detail
    return Fault(f"its test passes any program ({stubs})", is_weak)


def job_for(problem: Problem, body: str) -> Job:
    """Return a job that runs a problem's tests on a stub, which follows everything else that the prompt defines."""
    program = f"{_frame(problem.prompt)}\n\n{stub(problem.entry_point, body)}"
    return Job(program, problem.test, problem.entry_point, tuple(packages_needed(problem.prompt)))


def stub(entry_point: str, body: str) -> str:
    """Return the source of a stub: the function, or the method of a class, that the entry point names, with this body."""
    owner, _, method = entry_point.strip().rpartition(".")
    if not owner:
        return f"def {method}(*args, **keywords):\n    {body}\n"
    owner = owner.partition("(")[0]
    return (
        f"class {owner}:\n    def __init__(self, *args, **keywords):\n        pass\n\n"
        f"    def {method}(self, *args, **keywords):\n        {body}\n"
    )


def _frame(prompt: str) -> str:
    """Return the prompt if it is a program, else nothing."""
    for text in ("", *BODIES):
        try:
            ast.parse(prompt + text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        return prompt + text
    return ""
