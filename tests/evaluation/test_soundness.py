"""Tests that cannot fail are refused by name, before they decide anything."""

import pytest

from flab.errors import DataError
from flab.evaluation.code import gold_ceiling, score_code
from flab.evaluation.soundness import faults, stub
from flab.evaluation.tasks import Problem, make_task, read_task
from flab.models.engines.protocol import Generation

PROMPT, BODY = 'def inc(x):\n    """Add one."""\n', "    return x + 1\n"
VACUOUS = {
    "nothing called": "def check(candidate):\n    assert True\n",
    "nothing asserted": "def check(candidate):\n    candidate(1)\n",
    "everything swallowed": (
        "def check(candidate):\n    try:\n        assert candidate(1) == 2\n    except Exception:\n        pass\n"
    ),
    "no test at all": "METADATA = {}\n",
    "never awaited": "async def helper(candidate, y):\n    assert candidate(1) == 2\n",
}
SOUND = {
    "check": "def check(candidate):\n    assert candidate(1) == 2\n",
    "truth value": "def check(candidate):\n    return candidate(1) == 2\n",
    "an exception expected": (
        "def check(candidate):\n    try:\n        candidate('x')\n        assert False\n"
        "    except TypeError:\n        pass\n"
    ),
}


def problem(test, entry_point="inc", prompt=PROMPT):
    return Problem("row/7", prompt, entry_point, test, BODY)


@pytest.mark.parametrize("name", VACUOUS)
def test_a_test_that_passes_any_program_is_refused_by_name(sandbox, name):
    task = make_task("t", "code", [problem(VACUOUS[name])], "t.jsonl")
    with pytest.raises(DataError, match=r"t\.jsonl: row/7: its test passes any program") as caught:
        score_code(task, [[Generation(BODY, 1, "eos")]], sandbox)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="row/7"):
        gold_ceiling(task, sandbox)


@pytest.mark.parametrize("name", SOUND)
def test_a_test_that_can_fail_is_taken(sandbox, name):
    assert faults([problem(SOUND[name])], sandbox) == {}


def test_a_missing_package_is_named(sandbox):
    test = "import no_such_package\ndef check(candidate):\n    assert candidate(1) == 2\n"
    found = faults([problem(test)], sandbox)
    assert found["row/7"].text == "its test needs no_such_package, not installed here"


def test_tests_that_compare_two_calls_are_weak_only(sandbox):
    test = "def check(candidate):\n    assert candidate(1) is candidate(1)\n"
    found = faults([problem(test)], sandbox)
    assert found["row/7"].is_weak
    task = make_task("t", "code", [problem(test)], "t.jsonl")
    assert gold_ceiling(task, sandbox).summary["passed"] == 1
    with pytest.raises(DataError, match="row/7"):
        score_code(task, [[Generation(BODY, 1, "eos")]], sandbox)


@pytest.mark.parametrize("entry_point", ["inc", "Solution().inc", "Solution.inc"])
def test_a_stub_has_the_entry_point(entry_point):
    names = {}
    exec(stub(entry_point, "return None"), names)
    assert eval(entry_point, names)(1) is None


def test_mbpp_plus_runs_its_test_column(sandbox, tmp_path):
    import json

    row = {
        "task_id": 2,
        "code": "def double(xs):\n    return [2 * x for x in xs[:3]]",
        "prompt": "Write a function to double a list.",
        "test_list": ["assert double([1, 2]) == [2, 4]"],
        "test": (
            "import numpy as np\nfor one, two in zip([[[1, 2, 3, 4]]], [[2, 4, 6, 8]]):\n"
            "    assert np.allclose(double(*one), two)\n"
        ),
    }
    path = tmp_path / "plus.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert gold_ceiling(read_task(path), sandbox).summary["failures"] == {"exception": 1}
    row["code"] = row["code"].replace("[:3]", "")
    path.write_text(json.dumps(row) + "\n")
    assert gold_ceiling(read_task(path), sandbox).summary["passed"] == 1
