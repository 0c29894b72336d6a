"""Task files: kinds, ids, MBPP, malformed rows, and the public files where they are."""

import json
from pathlib import Path

import pytest

from flab.errors import DataError, OptionError
from flab.evaluation.tasks import (
    NAMED_TASKS,
    Explanation,
    Prediction,
    Problem,
    make_task,
    named_task,
    parse_task_argument,
    read_task,
)

PROBLEM = {
    "task_id": "T/0",
    "prompt": "def one():\n",
    "entry_point": "one",
    "canonical_solution": "    return 1\n",
    "test": "def check(candidate):\n    assert candidate() == 1\n",
}
COT = {"prompt": "def one():\n", "cot": "Step 1. Return 1."}
OUTPUT = {"id": "sample_0", "code": "def g(): pass\ndef f(x):\n    return x", "input": "[1]", "output": "[1]"}
MBPP = {
    "task_id": 11,
    "text": "Write a function to add.",
    "code": "import math\r\n\r\ndef helper(a):\r\n  return a\r\ndef add(a, b):\r\n  return helper(a) + b",
    "test_list": ["assert add(1, 2) == 3", "assert set([add(1, 1)]) == {2}"],
    "test_setup_code": "",
}


@pytest.fixture
def write(tmp_path):
    def write_rows(*rows, name="rows.jsonl", join="\n"):
        file = tmp_path / name
        text = join.join(row if isinstance(row, str) else json.dumps(row) for row in rows)
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        return file

    return write_rows


def without(row, *names):
    return {name: value for name, value in row.items() if name not in names}


def test_reads_problems(write):
    file = write(PROBLEM, "", {**PROBLEM, "task_id": 7, "entry_point": "one "}, without(PROBLEM, "canonical_solution"))
    with pytest.raises(DataError, match=r":4: task_id 'T/0' is on line 1 too"):
        read_task(file)
    task = read_task(write(PROBLEM, {**PROBLEM, "task_id": 7}, without(PROBLEM, "task_id", "canonical_solution")))
    first, second, third = task.items
    assert first == Problem("T/0", PROBLEM["prompt"], "one", PROBLEM["test"], PROBLEM["canonical_solution"])
    assert (task.name, task.kind, second.task_id, third.canonical_solution) == ("rows", "code", "7", None)
    assert len(third.task_id) == 12
    assert task.problems == task.items


def test_reads_explanations_and_predictions(write):
    assert read_task(write(COT)).items[0] == Explanation(read_task(write(COT)).items[0].task_id, *COT.values())
    found = read_task(write(OUTPUT)).items[0]
    assert found == Prediction("sample_0", OUTPUT["code"], "[1]", "[1]", "f")
    assert read_task(write({**OUTPUT, "input": "", "entry_point": "g"})).items[0].entry_point == "g"


def test_missing_ids_are_stable_and_copies_are_numbered(write):
    row = without(OUTPUT, "id")
    first, second, third = (item.task_id for item in read_task(write(row, row, row)).items)
    assert (second, third) == (f"{first}-2", f"{first}-3")
    assert first == read_task(write(row)).items[0].task_id
    assert first != read_task(write({**row, "input": "[2]"})).items[0].task_id


def test_digest_is_of_the_items(write):
    first = read_task(write(PROBLEM))
    assert first.sha256 == read_task(write("", {**PROBLEM, "more": 1}, name="other.jsonl")).sha256
    assert first.sha256 != read_task(write({**PROBLEM, "prompt": "def one() :\n"})).sha256


def test_mbpp_rows_become_function_problems(write):
    task = read_task(write(MBPP, {**MBPP, "task_id": 12, "test_imports": ["import re"]}))
    first = task.items[0]
    assert first.prompt == 'import math\n\n\ndef add(a, b):\n  """Write a function to add.\n  """\n'
    assert first.canonical_solution == "  return helper(a) + b\n\n\ndef helper(a):\n  return a\n"
    assert (first.task_id, first.entry_point) == ("11", "add")
    assert first.test == "assert add(1, 2) == 3\nassert set([add(1, 1)]) == {2}\n"
    assert task.items[1].test.startswith("import re\nassert")
    sanitized = {**without(MBPP, "text"), "prompt": 'Add """two""" \\ numbers.', "code": "def add(a, b): return a + b"}
    body = read_task(write(sanitized)).items[0]
    compile(body.prompt + body.canonical_solution, "program", "exec")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_list": ["assert other(1)"]}, "calls no function"),
        ({"code": "def add(:"}, "not Python"),
        ({"test_list": "assert add(1, 2)"}, "list of asserts"),
        ({"code": 3}, "other types"),
    ],
)
def test_broken_mbpp_rows_are_named(write, change, message):
    with pytest.raises(DataError, match=rf"rows\.jsonl:1: .*{message}"):
        read_task(write({**MBPP, **change}))


def test_mbpp_references_pass(write, sandbox):
    from flab.evaluation.code import gold_ceiling

    assert gold_ceiling(read_task(write(MBPP)), sandbox).summary["passed"] == 1


def test_limit_reads_the_first_and_no_more(write):
    rows = [{**PROBLEM, "task_id": number} for number in range(5)]
    assert [one.task_id for one in read_task(write(*rows, "{broken"), limit=2).items] == ["0", "1"]
    with pytest.raises(OptionError, match="1 or more"):
        read_task(write(PROBLEM), limit=0)


def test_ambiguous_files_name_the_flag(write):
    file = write({**PROBLEM, **COT})
    with pytest.raises(OptionError, match=r"fit code and cot; name the kind: code:.* or cot:"):
        read_task(file)
    assert (read_task(file, "cot").kind, read_task(file, "cot").name) == ("cot", "rows-cot")
    assert read_task(file, "code").name == "rows-code"
    with pytest.raises(DataError, match=r":1: code is missing"):
        read_task(file, "output")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([PROBLEM, "{broken"], r"rows\.jsonl:2: not JSON"),
        ([PROBLEM, "[1]"], r":2: got list"),
        ([PROBLEM, "[" * 100_000], r":2: not JSON"),
        ([PROBLEM, '{"task_id": ' + "9" * 5000 + "}"], r":2: not JSON"),
        ([without(PROBLEM, "test")], r":1: the fields .* fit no task"),
        ([PROBLEM, {**PROBLEM, "test": None}], r":2: test is missing"),
        ([{**PROBLEM, "prompt": 3}], r":1: prompt is int, not text"),
        ([{**PROBLEM, "entry_point": " "}], r":1: entry_point is blank"),
        ([{**PROBLEM, "prompt": "\ud800"}], r":1: holds .*half of a surrogate"),
        ([{**PROBLEM, "task_id": "\ud800"}], r":1: holds .*half of a surrogate"),
        ([{**PROBLEM, "task_id": 1.5}], r":1: task_id is float"),
        ([{**PROBLEM, "task_id": True}], r":1: task_id is bool"),
        ([{**PROBLEM, "canonical_solution": 1}], r":1: canonical_solution is int"),
        ([PROBLEM, {**PROBLEM, "task_id": 3}, PROBLEM], r":3: task_id 'T/0' is on line 1 too"),
        ([{**PROBLEM, "task_id": 3}, {**PROBLEM, "task_id": "3"}], r":2: task_id '3' is on line 1 too"),
        ([{**OUTPUT, "output": 5}], r":1: output is int"),
        ([{**OUTPUT, "code": "x = 1"}], r":1: code defines no function"),
        ([{**OUTPUT, "code": "def f(:"}], r":1: code is not Python"),
        ([{**OUTPUT, "code": "-" * 100_000 + "1"}], r":1: code is not Python"),
        ([{**OUTPUT, "code": "\0"}], r":1: code is not Python"),
        ([], "holds no problem"),
        (["", " "], "holds no problem"),
    ],
)
def test_malformed_files_name_the_line(write, rows, message):
    with pytest.raises(DataError, match=message) as caught:
        read_task(write(*rows))
    assert "\n" not in str(caught.value)


def test_odd_but_right_files(write):
    rows = [{**PROBLEM, "task_id": n, "prompt": "def one():\r\n    '\0 é \u2028'\n"} for n in range(2)]
    file = write("\ufeff" + json.dumps(rows[0], ensure_ascii=False), json.dumps(rows[1]), "", join="\r\n")
    assert [item.prompt for item in read_task(file).items] == [rows[0]["prompt"]] * 2
    assert read_task(write({**PROBLEM, "canonical_solution": " "})).items[0].canonical_solution is None
    assert len(read_task(write({**PROBLEM, "prompt": "#" * 5_000_000})).items[0].prompt) == 5_000_000


@pytest.mark.parametrize(
    ("argument", "parsed"),
    [
        ("cot:FILE.jsonl", ("cot", "FILE.jsonl")),
        ("code:a:b.jsonl", ("code", "a:b.jsonl")),
        ("output:C:\\x.jsonl", ("output", "C:\\x.jsonl")),
        ("C:\\data\\x.jsonl", (None, "C:\\data\\x.jsonl")),
        ("./code:x.jsonl", (None, "./code:x.jsonl")),
        ("openai/openai_humaneval", (None, "openai/openai_humaneval")),
        ("owner/mbpp:sanitized", (None, "owner/mbpp:sanitized")),
        ("cots:x", (None, "cots:x")),
    ],
)
def test_task_arguments(argument, parsed):
    assert parse_task_argument(argument) == parsed


@pytest.mark.parametrize("argument", ["cot:", "code: ", "", " "])
def test_empty_task_arguments(argument):
    with pytest.raises(OptionError, match="`tasks`"):
        parse_task_argument(argument)


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [
        ("HumanEval.jsonl", None, 164),
        ("MBPP_test.jsonl", None, 500),
        ("CodeHarmony_test.jsonl", "code", 153),
        ("CodeHarmony_valid.jsonl", "cot", 200),
        ("cruxeval.jsonl", None, 800),
        ("humaneval_cot.csv", None, 164),
        ("codeharmony_cot.csv", "cot", 153),
        ("recode_format.jsonl", None, 164),
        ("recode_nlaugmenter.jsonl", None, 164),
    ],
)
def test_public_files(data_folder, name, kind, count):
    if not (data_folder / name).is_file():
        pytest.skip(f"{data_folder / name} is not there")
    task = read_task(data_folder / name, kind)
    assert len(task.items) == count
    if kind is not None:
        with pytest.raises(OptionError, match=r"name the kind: .*cot:"):
            read_task(data_folder / name)


def test_make_task_counts_what_was_skipped():
    task = make_task("a~b", "code", [Problem("1", "p", "e", "t")], "a.jsonl", "b", 3)
    assert (task.perturbation, task.skipped, len(task.items)) == ("b", 3, 1)


# --- names of public tasks ---


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("humaneval", "HumanEval.jsonl"),
        ("mbpp", "MBPP_test.jsonl"),
        ("cruxeval", "cruxeval.jsonl.gz"),
        ("humaneval_plus", "HumanEvalPlus.jsonl"),
        ("mbpp_plus", "mbpp+.parquet"),
    ],
)
def test_a_name_is_a_file_of_the_data_dir_or_the_hub_data_set(tmp_path, name, file):
    for other in (
        "HumanEval.jsonl",
        "MBPP_test.jsonl",
        "cruxeval.jsonl.gz",
        "HumanEvalPlus.jsonl",
        "mbpp+.parquet",
        "x.py",
    ):
        (tmp_path / other).write_text("")
    assert named_task(name, tmp_path) == str(tmp_path / file)
    assert named_task(f"code:{name}", tmp_path) == f"code:{tmp_path / file}"
    assert named_task(name) == NAMED_TASKS[name]


def test_other_arguments_stay_as_they_are(tmp_path, monkeypatch):
    assert named_task("rows.jsonl", tmp_path) == "rows.jsonl"
    assert named_task("owner/name:config", tmp_path) == "owner/name:config"
    monkeypatch.chdir(tmp_path)
    Path("mbpp").write_text("")
    assert named_task("mbpp", tmp_path) == "mbpp"


def test_a_name_without_its_file_is_one_clear_line(tmp_path):
    with pytest.raises(DataError, match=r"`tasks` mbpp: .* holds no mbpp\.jsonl"):
        named_task("mbpp", tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        named_task("mbpp", tmp_path / "gone")


def test_offline_a_name_says_where_its_file_would_go(monkeypatch):
    from flab.evaluation import evaluate

    def offline(*_: object) -> None:
        raise DataError("openai/openai_humaneval: cannot be loaded (no network)")

    monkeypatch.setattr(evaluate, "read_task", offline)
    with pytest.raises(DataError, match=r"`tasks` humaneval: put its rows in DIR/humaneval\.jsonl.*no network"):
        evaluate.read_tasks("humaneval", None, (), 0)


def test_the_public_files_are_found_by_name(data_folder):
    kinds = {name: read_task(named_task(name, data_folder)).kind for name in ("humaneval", "mbpp", "cruxeval")}
    assert kinds == {"humaneval": "code", "mbpp": "code", "cruxeval": "output"}
