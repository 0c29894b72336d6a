"""The small inputs of public bug reports: tests that a wrong solution passed, and forms that were read wrongly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flab.errors import DataError
from flab.evaluation.code import gold_ceiling
from flab.evaluation.tasks import read_task

BUGS = Path(__file__).parents[3] / "shared" / "cases" / "bugs"
VACUOUS = ("asynccheck", "checkname", "mainguard", "pytest", "retcheck", "unittest")
SOLUTION = "    return x + 1\n"


def reported(name: str) -> Path:
    if not (BUGS / name).is_file():
        pytest.skip(f"no {BUGS / name}")
    return BUGS / name


def passed(task_file: Path, sandbox) -> bool:
    (row,) = gold_ceiling(read_task(task_file), sandbox).rows
    return bool(row["passed"])


@pytest.mark.parametrize("name", VACUOUS)
def test_tests_in_other_forms_fail_a_wrong_solution_and_pass_a_right_one(sandbox, tmp_path, name):
    wrong = reported(f"vacuous-tests/{name}.jsonl")
    row = json.loads(wrong.read_text(encoding="utf-8"))
    (tmp_path / "right.jsonl").write_text(json.dumps(row | {"canonical_solution": SOLUTION}))
    assert not passed(wrong, sandbox)
    assert passed(tmp_path / "right.jsonl", sandbox)


def test_the_longer_list_of_mbpp_plus_decides(sandbox, tmp_path):
    """Its solution passes the three asserts of ``test_list``, and fails the script, which has five numbers."""
    short = reported("mbppplus/mbppplus.jsonl")
    whole = short.read_text(encoding="utf-8").replace("nums[:3]", "nums")
    (tmp_path / "whole.jsonl").write_text(whole)
    assert not passed(short, sandbox)
    assert passed(tmp_path / "whole.jsonl", sandbox)


@pytest.mark.parametrize("name", ["heplus", "leetcode"])
def test_helpers_of_the_tests_and_methods_are_called(sandbox, tmp_path, name):
    right = reported(f"mbppplus/{name}.jsonl")
    row = json.loads(right.read_text(encoding="utf-8"))
    body = row["canonical_solution"].replace("x / 2", "x / 3").replace("return [d[target - x], i]", "return [i, i]")
    (tmp_path / "wrong.jsonl").write_text(json.dumps(row | {"canonical_solution": body}))
    assert passed(right, sandbox)
    assert not passed(tmp_path / "wrong.jsonl", sandbox)


def test_chats_with_tests_are_no_task_and_one_line_says_so():
    with pytest.raises(
        DataError, match=r"chat\.jsonl:1: the fields id, messages, test, entry_point fit no task"
    ) as caught:
        read_task(reported("chat-answer-forms/chat.jsonl"))
    assert "\n" not in str(caught.value)
