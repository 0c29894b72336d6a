"""The stop list, and scoring by tests with known answers."""

import json

import pytest

from flab.evaluation.code import gold_ceiling, score_code
from flab.evaluation.metrics import pass_at_k, wilson_interval
from flab.evaluation.prompts import COMPLETION_STOP
from flab.evaluation.tasks import Problem, make_task, read_task
from flab.models.engines.protocol import Generation, cut_at_stop
from flab.sandbox import Verdict

TEST = "def check(candidate):\n    assert candidate() == 1\n"


class CountingSandbox:
    """A sandbox that runs nothing: a program passes if it returns 1; it notes what it was given."""

    level = "counting"

    def __init__(self):
        self.programs = []

    def run_many(self, jobs, description="", cpu_seconds=5.0):
        stubs = [job.program for job in jobs if "*args, **keywords" in job.program]  # those of soundness
        self.programs += [job.program for job in jobs if job.program not in stubs]
        right = ["return 1" in job.program and job.program not in stubs for job in jobs]
        return [Verdict(one, "passed" if one else "name") for one in right]


def made(text, reason="stop"):
    return Generation(text, len(text), reason)


def task_of(*names, solution="    return 1\n"):
    return make_task(
        "t", "code", [Problem(name, f"def {name}():\n", name, TEST, solution) for name in names], "t.jsonl"
    )


@pytest.mark.parametrize(
    ("completion", "kept"),
    [
        ("    return 1\n\n\ndef two():\n    pass", "    return 1\n\n"),
        ("    return 1\n\nclass A:\n    pass", "    return 1\n"),
        ("    return 1\n```\nThis function", "    return 1"),
        ("    return 1\n\nassert one() == 1", "    return 1\n"),
        ("    return 1\n\nif __name__ == '__main__':", "    return 1\n"),
        ("    return 1<|endoftext|>def", "    return 1"),
        ("    def inner():\n        return 1\n    return inner()", None),
        ("# a comment in column 0\n#another\n    return 1", None),
        ("    if True:\n        print(2)\n    assert True\n    return 1", None),
        ('    """Uses ```code``` here."""\n    return 1', None),
    ],
)
def test_the_stop_list_cuts_after_the_body_only(completion, kept):
    assert cut_at_stop(completion, COMPLETION_STOP) == (completion if kept is None else kept)


def test_scores_known_answers(sandbox):
    answers = {
        "right": made("    return 1\n\n"),
        "wrong": made("    return 2\n"),
        "broken": made("    return (\n"),
        "unknown": made("    return missing\n"),
        "blank": made("\n", "length"),
        "endless": made("    return 0" + " + 0" * 80, "length"),
    }
    score = score_code(task_of(*answers), [[one] for one in answers.values()], sandbox)
    assert score.passed == [True, False, False, False, False, False]
    assert [row["outcome"] for row in score.rows] == ["passed", "assertion", "syntax", "name", "empty", "length"]
    assert [row["verdict"] for row in score.rows[3:]] == ["name", "syntax", "assertion"]
    assert "missing" in score.rows[3]["detail"]
    assert score.rows[0] | {"detail": ""} == {
        "task_id": "right",
        "sample": 0,
        "passed": True,
        "outcome": "passed",
        "text": "    return 1\n\n",
        "finish_reason": "stop",
        "num_tokens": 14,
        "verdict": "passed",
        "detail": "",
    }
    summary = score.summary
    assert (summary["passed"], summary["total"], summary["num_truncated"]) == (1, 6, 2)
    assert summary["pass@1"] == pytest.approx(1 / 6)
    assert summary["interval_95"] == list(wilson_interval(1, 6))
    assert summary["failures"] == {"assertion": 1, "empty": 1, "length": 1, "name": 1, "syntax": 1}
    assert summary["sandbox_level"] == sandbox.level
    assert json.loads(json.dumps(score.rows)) == score.rows


def test_several_samples_give_unbiased_pass_at_k():
    right, wrong = "    return 1", "    return 2"
    samples = [[right] * 2 + [wrong] * 8, [wrong] * 10, [right] * 10]
    score = score_code(task_of("a", "b", "c"), [[made(text) for text in texts] for texts in samples], CountingSandbox())
    for k in (1, 2, 5, 10):
        expected = sum(pass_at_k(10, correct, k) for correct in (2, 0, 10)) / 3
        assert score.summary[f"pass@{k}"] == pytest.approx(expected)
    assert "pass@20" not in score.summary
    assert (score.summary["passed"], score.summary["total"]) == (12, 30)
    assert (score.summary["num_items"], score.summary["num_samples"]) == (3, 10)
    low, high = score.summary["interval_95"]
    assert 0 <= low <= 0.4 <= high <= 1
    assert score.passed == [True, False, True]


def test_equal_programs_of_a_problem_run_once():
    sandbox = CountingSandbox()
    texts = ["    return 1", "    return 1", "    return 3"]
    score = score_code(task_of("a", "b"), [[made(one) for one in texts]] * 2, sandbox)
    assert sandbox.programs == [f"def {name}():\n    return {n}" for name in "ab" for n in (1, 3)]
    assert [row["passed"] for row in score.rows] == [True, True, False] * 2


def test_one_text_keeps_the_end_of_each_of_its_samples():
    score = score_code(task_of("a"), [[made("    x"), made("    x", "length")]], CountingSandbox())
    assert [row["outcome"] for row in score.rows] == ["name", "length"]


def test_a_passing_program_is_never_called_cut_off_or_empty():
    task = make_task("t", "code", [Problem("a", "def a():\n    return 1\n", "a", TEST)], "t")
    score = score_code(task, [[made("", "length")]], CountingSandbox())
    assert (score.rows[0]["outcome"], score.summary["num_truncated"]) == ("passed", 1)


def test_unequal_numbers_of_samples_are_a_mistake():
    with pytest.raises(AssertionError):
        score_code(task_of("a", "b"), [[made("x")], [made("x")] * 2], CountingSandbox())


def test_gold_ceiling_counts_missing_and_failing_references(sandbox):
    items = [
        *task_of("one").items,
        *task_of("bad", solution="    return 3\n").items,
        *task_of("none", solution=None).items,
    ]
    score = gold_ceiling(make_task("t", "code", items, "t"), sandbox)
    assert score.passed == [True, False, False]
    assert score.summary == {
        "passed": 1,
        "total": 3,
        "failures": {"assertion": 1, "no reference": 1},
        "failed": {"bad": "assertion", "none": "no reference"},
        "sandbox_level": sandbox.level,
    }
    assert score.rows[2]["outcome"] == "no reference"


@pytest.mark.parametrize(
    ("name", "kind", "passed", "total"),
    [("HumanEval.jsonl", None, 164, 164), ("recode_nlaugmenter.jsonl", None, 136, 164)],
)
def test_references_of_public_files(sandbox, data_folder, name, kind, passed, total):
    if not (data_folder / name).is_file():
        pytest.skip(f"{data_folder / name} is not there")
    summary = gold_ceiling(read_task(data_folder / name, kind), sandbox).summary
    assert (summary["passed"], summary["total"]) == (passed, total)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "passed", "total"),
    [
        ("MBPP_test.jsonl", None, 500, 500),
        ("CodeHarmony_test.jsonl", "code", 153, 153),
        ("CodeHarmony_valid.jsonl", "code", 196, 200),
        ("recode_format.jsonl", None, 164, 164),
    ],
)
def test_references_of_more_public_files(sandbox, data_folder, name, kind, passed, total):
    test_references_of_public_files(sandbox, data_folder, name, kind, passed, total)
