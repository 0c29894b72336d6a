"""Problems from files, the stop list, and scoring with known answers."""

import json

import pytest

from flab.errors import DataError, OptionError
from flab.evaluation.code import (
    COMPLETION_STOP,
    CodeResult,
    Problem,
    evaluate_code,
    gold_ceiling,
    read_problems,
)
from flab.evaluation.generate import FakeGenerator, cut_at_stop

ROW = {
    "task_id": "T/0",
    "prompt": "def one():\n",
    "entry_point": "one",
    "canonical_solution": "    return 1\n",
    "test": "def check(candidate):\n    assert candidate() == 1\n",
}


@pytest.fixture
def write(tmp_path):
    def write_rows(*rows):
        file = tmp_path / "problems.jsonl"
        file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
        return file

    return write_rows


def without(*names):
    return {name: value for name, value in ROW.items() if name not in names}


def test_reads_problems(write):
    file = write(ROW, "", {**ROW, "task_id": 7, "entry_point": "one "}, without("task_id", "canonical_solution"))
    first, second, third = read_problems(file)
    assert first == Problem("T/0", ROW["prompt"], "one", ROW["test"], ROW["canonical_solution"])
    assert (second.task_id, second.entry_point) == ("7", "one")
    assert third.canonical_solution is None
    assert third.task_id == read_problems(write(without("task_id")))[0].task_id
    assert third.task_id != read_problems(write({**without("task_id"), "prompt": "def one() :\n"}))[0].task_id


def test_limit_reads_the_first(write):
    rows = [{**ROW, "task_id": number} for number in range(5)]
    assert [one.task_id for one in read_problems(write(*rows), limit=2)] == ["0", "1"]
    with pytest.raises(OptionError, match="1 or more"):
        read_problems(write(ROW), limit=0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROW, "{broken"], r"problems\.jsonl:2: not JSON"),
        ([ROW, "[1]"], r":2: got list"),
        ([without("test")], r":1: .*test"),
        ([{**ROW, "prompt": 3}], r":1: .*prompt"),
        ([{**ROW, "entry_point": ""}], r":1: .*entry_point"),
        ([{**ROW, "task_id": 1.5}], r":1: task_id is float"),
        ([{**ROW, "task_id": True}], r":1: task_id is bool"),
        ([{**ROW, "canonical_solution": 1}], r":1: canonical_solution is int"),
        ([ROW, {**ROW, "task_id": 3}, ROW], r":3: task_id 'T/0' is on line 1 too"),
        ([{**ROW, "task_id": 3}, {**ROW, "task_id": "3"}], r":2: task_id '3' is on line 1 too"),
        ([], "holds no problem"),
        (["", " "], "holds no problem"),
    ],
)
def test_malformed_files_name_the_line(write, rows, message):
    with pytest.raises(DataError, match=message) as caught:
        read_problems(write(*rows))
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_problems(tmp_path / "none.jsonl")


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


def problems_for(*names):
    return [Problem(name, f"def {name}():\n", name, ROW["test"], "    return 1\n") for name in names]


def test_scores_known_answers(sandbox):
    answers = {
        "def right():\n": "    return 1\n\n\ndef junk(:",
        "def wrong():\n": "    return 2\n",
        "def broken():\n": "    return (\n",
        "def unknown():\n": "    return missing\n",
        "def blank():\n": "\n",
        "def endless():\n": "    return 0" + " + 0" * 80,
    }
    problems = problems_for("right", "wrong", "broken", "unknown", "blank", "endless")
    fake = FakeGenerator(answers)
    result = evaluate_code(fake, problems, sandbox, max_new_tokens=100)
    assert fake.prompts == list(answers)
    assert result.passed == [True, False, False, False, False, False]
    outcomes = [row.outcome for row in result.rows]
    assert outcomes[:5] == ["passed", "assertion", "syntax", "name", "empty"]
    assert result.rows[0].completion == "    return 1\n\n"
    assert (result.rows[0].finish_reason, result.rows[5].finish_reason) == ("stop", "length")
    summary = result.summary()
    assert (summary["passed"], summary["total"], summary["num_truncated"]) == (1, 6, 1)
    assert summary["pass@1"] == pytest.approx(1 / 6)
    assert summary["interval_95"][0] < 1 / 6 < summary["interval_95"][1]
    assert sum(summary["failures"].values()) == 5
    assert summary["sandbox_level"] == "namespaces"


def test_results_survive_json(sandbox):
    result = evaluate_code(FakeGenerator(["    return 1"]), problems_for("one"), sandbox)
    assert CodeResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    with pytest.raises(DataError, match="not a code result"):
        CodeResult.from_json({"rows": [{"task": 1}], "sandbox_level": "namespaces"})


def test_gold_ceiling(sandbox):
    bad = Problem("bad", "def bad():\n", "bad", ROW["test"], "    return 3\n")
    assert gold_ceiling([*problems_for("one"), bad], sandbox).passed == [True, False]
    with pytest.raises(DataError, match="no canonical_solution for 1 problems, none first"):
        gold_ceiling([Problem("none", "x", "x", "x")], sandbox)


def test_humaneval_references_all_pass(sandbox, data_folder):
    file = data_folder / "HumanEval.jsonl"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    problems = read_problems(file)
    result = gold_ceiling(problems, sandbox)
    assert [row for row in result.rows if not row.passed] == []
    assert len(result.rows) == 164
