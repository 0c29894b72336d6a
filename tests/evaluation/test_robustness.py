"""Perturbing files: references that still pass, determinism, what does not apply, and the summary."""

import random

import pytest

from flab import assets
from flab.errors import DataError
from flab.evaluation.code import gold_ceiling
from flab.evaluation.perturbations.partial import dead_code, loop_form
from flab.evaluation.perturbations.programs import read_program
from flab.evaluation.robustness import PERTURBATIONS, perturb, random_for, robustness_summary
from flab.evaluation.score import Score
from flab.evaluation.tasks import Problem, make_task, read_task
from support.perturbed import PROMPT, TEST, simple

BROKEN = [
    Problem("1", "def f(x):\n    '''open\n", "f", TEST, "    return x\n"),
    Problem("2", "def g(x):\n", "f", TEST, "    return x\n"),
    Problem("3", "f = lambda x: x", "f", TEST, "\n"),
    Problem("4", "def f(x): return x\n", "f", "def check(:", "\n"),
    Problem("5", "def f():\r\n    return 1", "f", TEST, "\r\n"),
    Problem("6", "def f(x):\n    '''\\N{bad}'''\n", "f", TEST, "    return x\n"),
    Problem("7", "(" * 500, "f", TEST, ""),
    Problem("8", "\0", "f", TEST, "\0"),
]


@pytest.mark.parametrize("name", PERTURBATIONS)
@pytest.mark.parametrize("problem", BROKEN, ids=lambda one: one.task_id)
def test_programs_that_do_not_parse_are_not_applicable(name, problem):
    made = PERTURBATIONS[name](problem, random.Random(0))
    assert made is None or read_program(made) is not None


@pytest.mark.parametrize("name", ["docstring-format", "docstring-noise", "rename-function", "rename-arguments"])
def test_a_reference_is_not_needed_for_prompts(name):
    made = PERTURBATIONS[name](Problem("T", PROMPT, "count_big", TEST), random.Random(0))
    assert made is not None
    assert made.canonical_solution is None
    assert made.prompt != PROMPT


def test_partial_code_needs_a_reference():
    bare = Problem("T", PROMPT, "count_big", TEST)
    assert (dead_code(bare, random.Random(0)), loop_form(bare, random.Random(0))) == (None, None)


def bundled(limit=40):
    return read_task(assets.problems_path(), limit=limit)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_bundled_references_still_pass(sandbox, name):
    task = perturb(bundled(), name, seed=3)
    assert gold_ceiling(task, sandbox).summary["failed"] == {}
    assert len(task.items) >= 15
    assert len(task.items) + task.skipped == 40


@pytest.mark.slow
@pytest.mark.parametrize("name", PERTURBATIONS)
@pytest.mark.parametrize(
    ("file", "kind"), [("HumanEval.jsonl", None), ("MBPP_test.jsonl", None), ("CodeHarmony_test.jsonl", "code")]
)
def test_public_references_still_pass(sandbox, data_folder, file, kind, name):
    if not (data_folder / file).is_file():
        pytest.skip(f"{data_folder / file} is not there")
    task = perturb(read_task(data_folder / file, kind), name)
    assert gold_ceiling(task, sandbox).summary["failed"] == {}


def test_public_counts_are_stable(data_folder):
    """The same draws on every machine: the figures of docs/tasks.md."""
    file = data_folder / "HumanEval.jsonl"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    task = read_task(file)
    found = {name: perturb(task, name) for name in PERTURBATIONS}
    assert {name: len(one.items) for name, one in found.items()} == {
        "docstring-format": 164,
        "docstring-noise": 163,
        "rename-function": 164,
        "rename-arguments": 163,
        "dead-code": 164,
        "loop-form": 107,
    }


def test_perturb_names_counts_and_repeats():
    task = bundled()
    first, again, other = (perturb(task, "loop-form", seed) for seed in (0, 0, 1))
    assert first == again
    assert first.items != other.items
    assert (first.name, first.perturbation, first.kind) == ("problems~loop-form", "loop-form", "code")
    assert first.skipped == 40 - len(first.items) > 0
    half = perturb(make_task("problems", "code", task.items[::2], task.source), "loop-form")
    assert {one.task_id: one for one in half.items}.items() <= {one.task_id: one for one in first.items}.items()


def test_draws_are_the_same_everywhere():
    rng = random_for(0, "dead-code", "HumanEval/0")
    assert [rng.randrange(1000) for _ in range(4)] == [959, 56, 930, 419]


def test_perturb_refuses():
    with pytest.raises(DataError, match="applies to none of 1"):
        perturb(make_task("p", "code", [simple("    return xs\n")], "p"), "loop-form")


def score_of(name, **passed):
    rows = [{"task_id": i, "sample": n, "passed": p} for i, several in passed.items() for n, p in enumerate(several)]
    return Score(name, "code", {}, rows)


def test_summary_is_over_shared_problems():
    clean = score_of("clean", a=[True], b=[True], c=[True], d=[False], e=[True], f=[True])
    perturbed = score_of("rough", f=[True], a=[False], b=[True], c=[False], d=[True])
    found = robustness_summary(clean, perturbed)
    assert (found["shared"], found["pass@1_clean"], found["pass@1_perturbed"]) == (5, 0.8, 0.6)
    assert found["drop"] == pytest.approx(0.2)
    assert found["relative_drop"] == pytest.approx(0.25)
    assert (found["both"], found["only_clean"], found["only_perturbed"], found["neither"]) == (2, 2, 1, 0)
    assert found["mcnemar_p"] == 1.0
    assert robustness_summary(score_of("x", a=[False]), score_of("y", a=[False]))["relative_drop"] is None
    with pytest.raises(DataError, match="share no problem"):
        robustness_summary(clean, score_of("z", q=[True]))


def test_summary_of_several_samples():
    found = robustness_summary(score_of("x", a=[True, False]), score_of("y", a=[False, False]))
    assert (found["pass@1_clean"], found["pass@1_perturbed"], found["only_clean"]) == (0.5, 0.0, 1)
