"""Rows of every format, what verifies an answer to them, and what is refused; nothing that a model wrote is evaluated."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from flab.errors import DataError, OptionError, SandboxError
from flab.evaluation.prompts import COMPLETION_STOP, END_MARKS, LINE_STOP, STEPS_STOP
from flab.recovery.instructions import Instruction, instruction_of, instructions_of, read_asked
from flab.sandbox import Job, Sandbox, jail

PROMPT, BODY = "def add(a, b):\n", "    return a + b\n"
TEST = "def check(candidate):\n    assert candidate(1, 2) == 3\n"
SAME = "def f(x):\n    return x\n"
ASSERTED = f"{SAME}\nassert f([1, 2]) =="
CUED = 'def f(x):\n    """Give x."""\n\nHow to solve:\n'
MBPP = {"code": "def add(a, b):\n    return a + b", "test_list": ["assert add(1, 2) == 3"], "test_setup_code": ""}
MBPP_PROMPT = 'def add(a, b):\n    """Add two numbers.\n    """\n'
USER, SYSTEM = {"role": "user", "content": "Add."}, {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "Done."}
ASKED = "<user>Add.<assistant>"


def render(messages):
    return "".join(f"<{message['role']}>{message['content']}" for message in messages) + "<assistant>"


def read_instructions(paths, template, limit=None):
    return instructions_of(read_asked(paths, limit), template)


def chat(prompt, reference, *turns, test=None, entry_point=""):
    return Instruction("t", "chat", prompt, reference, test, entry_point, messages=turns)


ROWS = {
    "prompt and completion": (
        {"prompt": PROMPT, "completion": BODY},
        Instruction("t", "instruction", PROMPT, BODY),
    ),
    "with a test": (
        {"prompt": PROMPT, "completion": BODY, "test": TEST, "entry_point": "add"},
        Instruction("t", "code", PROMPT, BODY, TEST, "add"),
    ),
    "no test in a CSV file's empty field": (
        {"prompt": PROMPT, "completion": BODY, "test": None, "entry_point": None},
        Instruction("t", "instruction", PROMPT, BODY),
    ),
    "HumanEval": (
        {"task_id": "HumanEval/0", "prompt": PROMPT, "canonical_solution": BODY, "test": TEST, "entry_point": "add"},
        Instruction("t", "code", PROMPT, BODY, TEST, "add"),
    ),
    "HumanEval without references": (
        {"task_id": "HumanEval/0", "prompt": PROMPT, "test": TEST, "entry_point": "add"},
        Instruction("t", "code", PROMPT, None, TEST, "add"),
    ),
    "canonical solution without a test": (
        {"prompt": PROMPT, "canonical_solution": BODY},
        Instruction("t", "instruction", PROMPT, BODY),
    ),
    "MBPP": (
        {"task_id": 1, "text": "Add two numbers.", **MBPP},
        Instruction("t", "code", MBPP_PROMPT, BODY, "assert add(1, 2) == 3\n", "add"),
    ),
    "MBPP, sanitized": (
        {"task_id": 1, "prompt": "Add two numbers.", **MBPP},
        Instruction("t", "code", MBPP_PROMPT, BODY, "assert add(1, 2) == 3\n", "add"),
    ),
    "CRUXEval": (
        {"id": "sample_0", "code": SAME.strip(), "input": "[1, 2]", "output": "[1, 2]"},
        Instruction("t", "output", ASSERTED, " [1, 2]\n", None, "f", SAME.strip(), "[1, 2]"),
    ),
    "prompt that ends in an assertion": (
        {"prompt": ASSERTED, "completion": " [1, 2]\n"},
        Instruction("t", "output", ASSERTED, " [1, 2]\n", None, "f", SAME, "[1, 2]"),
    ),
    "assertion after examples": (
        {"prompt": f"{SAME}\nassert f(1) == 1\nassert f(')') == ')'\nassert f(2) == ", "completion": "2\n"},
        Instruction(
            "t", "output", f"{SAME}\nassert f(1) == 1\nassert f(')') == ')'\nassert f(2) == ", "2\n", None, "f",
            f"{SAME}\nassert f(1) == 1\nassert f(')') == ')'", "2",
        ),
    ),
    "chain of thought": (
        {"prompt": CUED, "cot": "Step 1. Give x."},
        Instruction("t", "cot", CUED, "Step 1. Give x."),
    ),
    "prompt that ends in the cue": (
        {"prompt": CUED, "completion": "Step 1. Give x."},
        Instruction("t", "cot", CUED, "Step 1. Give x."),
    ),
    "instruction and answer": (
        {"instruction": "Add.", "answer": "Done.", "output": "Not this."},
        chat(ASKED, "Done.", ("user", "Add.")),
    ),
    "instruction, input and output": (
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        chat("<user>Add.\n\n1 and 2<assistant>", "3", ("user", "Add.\n\n1 and 2")),
    ),
    "instruction, blank input, no answer": (
        {"instruction": "Add.", "input": " "},
        chat(ASKED, None, ("user", "Add.")),
    ),
    "instruction with a test": (
        {"instruction": "Add.", "response": "Done.", "test": TEST, "entry_point": "add"},
        chat(ASKED, "Done.", ("user", "Add."), test=TEST, entry_point="add"),
    ),
    "messages that end with the assistant": (
        {"messages": [SYSTEM, USER, ANSWER]},
        chat("<system>Be brief.<user>Add.<assistant>", "Done.", ("system", "Be brief."), ("user", "Add.")),
    ),
    "messages that end with the user": (
        {"messages": [USER, ANSWER, USER]},
        chat(
            "<user>Add.<assistant>Done.<user>Add.<assistant>", None,
            ("user", "Add."), ("assistant", "Done."), ("user", "Add."),
        ),
    ),
    "text": ({"text": "x = 1\n"}, Instruction("t", "text", "x = 1\n")),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_every_format_is_read(name):
    row, wanted = ROWS[name]
    assert instruction_of(row, "rows.jsonl:1", "t", render) == wanted


STOPS = {
    "with a test": COMPLETION_STOP,
    "MBPP": COMPLETION_STOP,
    "chain of thought": STEPS_STOP,
    "CRUXEval": LINE_STOP,
    "prompt that ends in an assertion": LINE_STOP,
    "prompt and completion": END_MARKS,
    "instruction with a test": END_MARKS,
}


@pytest.mark.parametrize("name", STOPS)
def test_the_kind_decides_what_ends_an_answer(name):
    assert ROWS[name][1].stop == STOPS[name]


@pytest.mark.parametrize(
    ("name", "is_testable"),
    [
        ("with a test", True),
        ("CRUXEval", True),
        ("instruction with a test", True),
        ("prompt and completion", False),
        ("chain of thought", False),
        ("instruction and answer", False),
    ],
)
def test_what_can_be_verified(name, is_testable):
    assert ROWS[name][1].is_testable is is_testable


def test_question_and_reference_are_compared_with_evaluation_files():
    assert ROWS["with a test"][1].text() == PROMPT + BODY
    assert ROWS["messages that end with the assistant"][1].text() == "<system>Be brief.<user>Add.<assistant>Done."
    assert ROWS["text"][1].text() == "x = 1\n"


BAD = {
    "no field": ({}, r"the fields \(none\) fit no instruction"),
    "unknown fields": ({"question": "Add."}, "the fields question fit no instruction; needed: prompt"),
    "prompt alone": ({"prompt": PROMPT}, "the fields prompt fit no instruction"),
    "nothing but empty fields": ({"prompt": None, "text": None}, "fit no instruction"),
    "a number for the prompt": ({"prompt": 1, "completion": BODY}, "prompt is int, not text"),
    "a blank prompt": ({"prompt": " \n", "completion": BODY}, "prompt is blank"),
    "a list for the completion": ({"prompt": PROMPT, "completion": [BODY]}, "completion is list, not text"),
    "half a surrogate pair": ({"prompt": "\ud800", "completion": BODY}, "half of a surrogate pair"),
    "a test and no entry point": ({"prompt": PROMPT, "completion": BODY, "test": TEST}, "test without entry_point"),
    "a chat's test and no entry point": ({"instruction": "Add.", "test": TEST}, "test without entry_point"),
    "a blank test": ({"prompt": PROMPT, "completion": BODY, "test": "", "entry_point": "add"}, "test is blank"),
    "a blank entry point": (
        {"prompt": PROMPT, "completion": BODY, "test": TEST, "entry_point": ""},
        "entry_point is blank",
    ),
    "text for the messages": ({"messages": "Add."}, "messages is not a list of objects with role and content"),
    "a message without content": ({"messages": [{"role": "user"}]}, "messages is not a list of objects"),
    "a message that is text": ({"messages": ["Add."]}, "messages is not a list of objects"),
    "content that is no text": ({"messages": [USER | {"content": None}]}, "a message without content"),
    "content in parts": ({"messages": [USER | {"content": [{"type": "text"}]}]}, "holds content that is not text"),
    "no message": ({"messages": []}, "messages holds no question"),
    "an answer alone": ({"messages": [ANSWER]}, "messages holds no question"),
    "a list for the instruction": ({"instruction": ["Add."]}, "instruction is list, not text"),
    "a list for the input": ({"instruction": "Add.", "input": [1, 2]}, "input is list, not text"),
    "a number for the answer": ({"instruction": "Add.", "output": 3}, "output is int, not text"),
    "blank text": ({"text": " "}, "text is blank"),
    "code that is not Python": ({"code": "def f(", "input": "1", "output": "1"}, "code is not Python"),
    "MBPP tests of another function": (
        {"text": "Add.", **MBPP, "test_list": ["assert sub(1, 2) == 3"]},
        "calls no function",
    ),
    "no JSON": ('{"prompt": ', "not JSON"),
    "no object": ([1], "got list, not an object"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_one_line_that_names_file_and_line(name, tmp_path):
    row, words = BAD[name]
    file = tmp_path / "rows.jsonl"
    good, bad = json.dumps({"text": "fine"}), row if isinstance(row, str) else json.dumps(row)
    file.write_text(f"{good}\n\n{bad}\n{good}\n")
    with pytest.raises(DataError, match=words) as caught:
        read_instructions([file], render)
    assert str(caught.value).startswith(f"{file}:3: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("row", [{"messages": [USER]}, {"instruction": "Add.", "answer": "Done."}])
def test_a_chat_needs_a_template(row, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(OptionError, match=r"rows\.jsonl:1: this is a chat, but the model has no chat template"):
        read_instructions([file], None)


def test_what_is_no_chat_needs_no_template(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": PROMPT, "completion": BODY}) + "\n")
    assert read_instructions([file], None)[0].prompt == PROMPT


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot be read"), ("", "no instructions found; give rows with prompt"), ("\n \n", "no instr")],
)
def test_a_file_with_nothing_in_it_is_refused(content, words, tmp_path):
    file = tmp_path / "rows.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=words) as caught:
        read_instructions([file], render)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit):
    with pytest.raises(OptionError, match=f"`limit`: got {limit}, allowed 1 or more"):
        read_instructions([], render, limit)


def texts_file(path, *texts):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_the_limit_is_of_each_file_and_the_order_stays(tmp_path):
    files = [texts_file(tmp_path / "b.jsonl", "1", "2", "3"), texts_file(tmp_path / "a.jsonl", "4", "5")]
    found = read_instructions(files, render, 2)
    assert [(one.task_id, one.prompt) for one in found] == [
        ("b.jsonl:0", "1"),
        ("b.jsonl:1", "2"),
        ("a.jsonl:0", "4"),
        ("a.jsonl:1", "5"),
    ]


def test_files_of_one_name_and_a_file_given_twice_have_ids_of_their_own(tmp_path):
    first, second = texts_file(tmp_path / "a" / "rows.jsonl", "1"), texts_file(tmp_path / "b" / "rows.jsonl", "2")
    found = read_instructions([first, second, first], render)
    assert [one.task_id for one in found] == ["rows.jsonl:0", "rows.jsonl#2:0", "rows.jsonl#3:0"]
    assert [one.prompt for one in found] == ["1", "2", "1"]


def test_a_csv_file_is_read_too(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text('prompt,completion,test\n"def f():\n","    return ""1""\n",\n')
    assert read_instructions([file], None) == [
        Instruction("rows.csv:0", "instruction", "def f():\n", '    return "1"\n')
    ]


def test_a_program_is_the_prompt_and_the_whole_answer():
    one = ROWS["with a test"][1]
    more = f"{BODY}\n\ndef helper():\n    pass\n"
    assert one.job(more) == Job(PROMPT + more, TEST, "add")


def test_a_chats_program_is_its_block_of_code():
    one = ROWS["instruction with a test"][1]
    assert one.job(f"Here:\n```python\n{PROMPT}{BODY}```\nDone.") == Job(PROMPT + BODY, TEST, "add")
    assert one.job("```python\n```") is None


# Output prediction


@pytest.fixture(scope="module")
def sandbox():
    try:
        return replace(Sandbox.detect(), wall_factor=1.0)
    except SandboxError as error:
        pytest.skip(f"no namespaces on this machine: {error}")


def prediction(call="1", code=SAME):
    return Instruction("t", "output", f"{code}\nassert f({call}) ==", None, None, "f", code, call)


RIGHT = [  # (arguments, answer) of the function that returns its argument
    ("1", " 1\n"),
    ("1", "1"),
    ("[1, 2]", " [1,2]"),
    ("True", " True"),
    ("None", " None"),
    ("'a'", ' "a"'),
    ("'\\n'", " '\\n'"),
    ("(1,)", " (1,)"),
    ("{1: [2.5]}", " {1: [2.5]}"),
    ("{1: 2, 3: 4}", " {3: 4, 1: 2}"),
    ("{3, 1}", " {1, 3}"),
    ("set()", " set()"),
    ("b'a'", " b'a'"),
    ("16", " 0x10"),
    ("[1,\n2]", " [1, 2]"),
    ("1", " 1  # one\nassert f(2) == 3"),
]
WRONG = [
    ("1", " 2"),
    ("1", " True"),
    ("True", " 1"),
    ("1", " 1.0"),
    ("[1]", " [True]"),
    ("[1, True]", " [True, 1]"),
    ("(1, [2])", " (1, [2.0])"),
    ("{1: 2}", " {True: 2}"),
    ("{'a': {1}}", " {'a': {True}}"),
    ("[1]", " (1,)"),
    ("'a'", " b'a'"),
    ("None", " 'None'"),
    ("''", " []"),
    ("0", " 0x" + "f" * 5000),
]
NO_LITERAL = ["", "\n 1", "x", "f(1)", "1 + 1", "1 == 1", "not None", "lambda: 1", "(yield)", "[1", "1; 2", "a := 1"]


@pytest.fixture(scope="module")
def verdicts(sandbox):
    """All predictions in one go: (arguments, answer) to whether it passed; None where nothing is to run."""
    jobs = {pair: prediction(pair[0]).job(pair[1]) for pair in RIGHT + WRONG}
    asked = [pair for pair, job in jobs.items() if job is not None]
    found = sandbox.run_many([jobs[pair] for pair in asked])
    return dict.fromkeys(jobs) | {pair: verdict.passed for pair, verdict in zip(asked, found, strict=True)}


@pytest.mark.parametrize("pair", RIGHT, ids=str)
def test_a_right_prediction_passes(verdicts, pair):
    assert verdicts[pair] is True


@pytest.mark.parametrize("pair", WRONG, ids=lambda pair: str(pair)[:40])
def test_a_wrong_prediction_or_one_of_another_type_does_not_pass(verdicts, pair):
    assert not verdicts[pair]


@pytest.mark.parametrize("answer", NO_LITERAL)
def test_what_is_no_literal_is_wrong_and_nothing_is_run(answer):
    assert prediction().job(answer) is None


def test_the_given_code_decides_and_not_the_reference(sandbox):
    wrong = replace(prediction("[3, 1]", "def f(x):\n    return sorted(x)\n"), reference=" [3, 1]\n")
    assert [one.passed for one in sandbox.run_many([wrong.job(" [1, 3]"), wrong.job(wrong.reference)])] == [True, False]


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("def f(x):\n    raise ValueError(x)\n", " 1"),
        ("def g(x):\n    return x\n", " 1"),
        ("def f(x):\n    return object()\n", " 1"),
        ("def f(x):\n    return (x for x in [1])\n", " [1]"),
        ("def f(x):\n    return frozenset([x])\n", " {1}"),
        ("from collections import Counter\ndef f(x):\n    return Counter('a')\n", " {'a': 1}"),
        ("class E:\n    __eq__ = lambda *a: True\n    __hash__ = None\ndef f(x):\n    return E()\n", " 1"),
        ("class E(int):\n    __eq__ = lambda *a: True\n    __hash__ = int.__hash__\ndef f(x):\n    return E()\n", " 1"),
        ("class E:\n    __eq__ = lambda *a: True\n    __hash__ = None\ndef f(x):\n    return [E()]\n", " [1]"),
    ],
)
def test_code_that_returns_no_such_value_makes_no_prediction_right(sandbox, code, answer):
    assert not sandbox.run_many([prediction(code=code).job(answer)])[0].passed


HOSTILE = [
    "__import__('os').system('touch {canary}')",
    "open('{canary}', 'w').close()",
    "[open('{canary}', 'w')]",
    "{{1: open('{canary}', 'w')}}",
    'f\'{{open("{canary}", "w")}}\'',
    "(lambda: open('{canary}', 'w'))()",
    "1 if open('{canary}', 'w') else 2",
    "1 # \ropen('{canary}', 'w')",
    "1) == typed(open('{canary}', 'w')",
    "1\\\nopen('{canary}', 'w')",
    '\'open("{canary}", "w")\'',
    '\'1) and open("{canary}", "w"\'',
    "'\\')\\nopen(\"{canary}\", \"w\")\\n(\\''",
    "'''\\n'''",
    "'{{' '}}' '%s' '\\x00' '\\ud800'",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_prediction_is_wrong_and_never_executed(text, tmp_path):
    """At the level that isolates nothing: there the canary would be seen."""
    canary = tmp_path / "canary"
    job = prediction().job(" " + text.format(canary=canary))
    if job is not None:
        assert not Sandbox("rlimits", jail.bare_launcher).run_many([job])[0].passed
    assert not canary.exists()


def test_the_canary_can_be_seen(tmp_path):
    canary = tmp_path / "canary"
    test = f"def check(candidate):\n    assert candidate(open({str(canary)!r}, 'w')) == 1\n"
    Sandbox("rlimits", jail.bare_launcher).run_many([Job(SAME, test, "f")])
    assert canary.exists()


@pytest.mark.parametrize(
    "text", ["[" * 10_000, "-" * 9_000 + "1", "9" * 5_000, "{[]}", "\0", "'\ud800'", "1" * 20_000, "1e999"]
)
def test_text_that_is_hard_to_read_raises_nothing(text):
    job = prediction().job(text)
    assert job is None or job.program == f"{SAME}\n"


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [("HumanEval.jsonl", "code", 164), ("MBPP_test.jsonl", "code", 500), ("cruxeval.jsonl", "output", 800)],
)
def test_public_files_are_read(name, kind, count):
    file = Path(os.environ.get("FLAB_DATA", Path(__file__).parents[3] / "shared" / "data")) / name
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    found = read_instructions([file], None)
    assert ({one.kind for one in found}, len(found)) == ({kind}, count)
    assert all(one.is_testable and one.reference for one in found)
