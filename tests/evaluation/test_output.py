"""Predicted values: what is equal, what is not, and text that means harm."""

import pytest

from flab.evaluation.metrics import wilson_interval
from flab.evaluation.output import MAX_CHARS, compare, prediction_of, read_literal, score_output
from flab.evaluation.tasks import Prediction, make_task, read_task
from flab.models.engines.protocol import Generation


def score(pairs):
    items = [Prediction(str(n), "def f(): pass", "", known, "f") for n, (_, known) in enumerate(pairs)]
    made = [[text if isinstance(text, Generation) else Generation(text, 3, "stop")] for text, _ in pairs]
    return score_output(make_task("o", "output", items, "o.jsonl"), made)


@pytest.mark.parametrize(
    ("predicted", "known", "paper", "literal"),
    [
        ("[1, 2]", "[1, 2]", True, True),
        ("[1,2]", "[1, 2]", False, True),
        ('"a"', "'a'", True, True),
        ("'it\\'s'", '"it\'s"', False, True),
        ("True", "1", False, False),
        ("1", "True", False, False),
        ("1.0", "1", False, False),
        ("[True]", "[1]", False, False),
        ("{1: 2, 3: 4}", "{3: 4, 1: 2}", False, True),
        ("{1: 2}", "{True: 2}", False, False),
        ("{1, 2}", "{2, 1}", False, True),
        ("{1, 2}", "{1, True, 2}", False, True),
        ("(1,)", "[1]", False, False),
        ("(1, 2)", "1, 2", False, True),
        ("b'a'", "'a'", False, False),
        ("1e3", "1000.0", False, True),
        ("0x10", "16", False, True),
        ("1_000", "1000", False, True),
        ("-1", "- 1", False, True),
        ("None", "None", True, True),
        ("None", "'None'", False, False),
        ("...", "Ellipsis", False, False),
        ("nan", "nan", True, True),
        ("float('nan')", 'float("nan")', True, True),
        ("frozenset({1})", "frozenset({1})", True, True),
        ("frozenset({1, 2})", "frozenset({2, 1})", False, False),
        ("1e999", "1e998", False, True),
        ("10**2", "100", False, False),
        ("1 + 1", "2", False, False),
        ("1 + 2j", "(1+2j)", False, True),
        ("a", "'a'", False, False),
        ("[a]", "['a']", False, False),
        ("", "''", False, False),
        ("['a', 'b']", '["a", "b"]', True, True),
    ],
)
def test_comparisons(predicted, known, paper, literal):
    assert compare(predicted, known) == (paper, literal)


HOSTILE = [
    "[" * 10_000,
    "[" * 199 + "]" * 199,
    "-" * 9_000 + "1",
    "+".join(["1"] * 4_000),
    "9" * 5_000,
    "10**10**10",
    "'a' * 10**10",
    "[0] * 10**9",
    "__import__('os').system('touch /tmp/flab-canary')",
    "{[]}",
    "{" * 100 + "}" * 100,
    "lambda: " * 1_000 + "0",
    "f'" + "{" * 3_000,
    "\0",
    "'\\N{" + "A" * 5_000 + "}'",
    "\ud800",
    "'\ud800'",
    "a" + ".b" * 4_000,
    "not " * 2_000 + "1",
    "(" * 5_000 + "1" + ")" * 5_000,
    "1 if 1 else " * 800 + "1",
    "x" * 10_000_000,
    "[" + "0, " * 3_000_000 + "]",
    "'\\d' is 1",
    "(yield)",
    "await x",
    "*a, b",
    "a := 1",
    "{**a}",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_a_mismatch_only(text, recwarn):
    assert compare(text, "[1]") == (False, False)
    assert compare("[1]", text) == (False, False)
    assert not recwarn.list


def test_long_text_is_compared_as_text():
    long = "[" + "1," * MAX_CHARS + "]"
    assert read_literal(long) is None
    assert compare(long, long) == (True, True)


@pytest.mark.parametrize(
    ("text", "predicted"),
    [(" [1]\n", "[1]"), ("[1]\n[2]", "[1]"), ("\n[1]", ""), (" [1] # so", "[1] # so"), ("", ""), ("'a\\n'", "'a\\n'")],
)
def test_the_prediction_is_the_first_line(text, predicted):
    assert prediction_of(text) == predicted


def test_rows_and_classes():
    found = score(
        [
            (" [1,2]\nassert", "[1, 2]"),
            ("[2]", "[1, 2]"),
            ("oops", "[1, 2]"),
            ("oops", "frozenset()"),
            ("\n[1, 2]", "[1, 2]"),
            (Generation("[1, 2, 3, ", 3, "length"), "[1, 2]"),
            (Generation("[3]\nmore", 3, "length"), "[1, 2]"),
            (Generation("'a'", 3, "length"), '"a"'),
        ]
    )
    outcomes = ["passed", "wrong", "unreadable", "wrong", "empty", "length", "wrong", "passed"]
    assert [row["outcome"] for row in found.rows] == outcomes
    assert found.rows[0]["prediction"] == "[1,2]"
    assert (found.rows[0]["em_paper"], found.rows[0]["em_literal"]) == (False, True)
    summary = found.summary
    assert (summary["em_paper"], summary["em_literal"], summary["pass@1"]) == (1 / 8, 2 / 8, 2 / 8)
    assert summary["em_paper_interval_95"] == list(wilson_interval(1, 8))
    assert summary["em_literal_interval_95"] == summary["interval_95"] == list(wilson_interval(2, 8))
    assert summary["failures"] == {"wrong": 3, "empty": 1, "length": 1, "unreadable": 1}
    assert summary["num_truncated"] == 3


def test_known_outputs_of_public_files_score_full_marks(data_folder):
    file = data_folder / "cruxeval.jsonl"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    task = read_task(file)
    found = score_output(task, [[Generation(f" {item.output}\n", 3, "stop")] for item in task.items])
    assert (found.summary["passed"], found.summary["em_paper"]) == (800, 1.0)
    assert sum(read_literal(item.output) is None for item in task.items) == 0
