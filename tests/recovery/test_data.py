"""Making a training file: whose words are taken, what is counted, what resumes, what is refused, what never counts."""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from flab.cli import app
from flab.data.contamination import tokens_of
from flab.data.samples import read_samples
from flab.errors import DataError, OptionError, OutputError, SandboxError
from flab.evaluation.evaluate import Subject
from flab.evaluation.prompts import sample_seed
from flab.models.engines.protocol import FakeGenerator
from flab.models.options import Options
from flab.recovery.data import add_text, balance, deduplicate, make_data
from flab.recovery.own_answers import TASK
from flab.recovery.strategies import Making
from flab.sandbox import Sandbox, Verdict
from support import pico

TEST = "def check(candidate):\n    assert candidate() == 1\n"
GOLD, FALSE_GOLD = "    return 1  # gold\n", "    return 0  # gold\n"
RIGHT, LATER, WRONG = "    return 1  # own\n", "    return 1  # later\n", "    return 0  # own\n"
RAMBLE = "    return 1\n" + "#" * 600
IDENTITY = {"path": "/models/a", "sha256": "a" * 64, "dtype": "float32"}
SEEDS = {sample_seed(0, TASK, f"rows.jsonl:{row}", n): n for row in range(40) for n in range(6)}


class KnownSandbox:
    """Runs nothing: a program that returns 1 passes."""

    level = "known"

    def run_many(self, jobs, description=""):
        right = ["return 1" in job.program and "*args, **keywords" not in job.program for job in jobs]  # no stub
        return [Verdict(one, "passed" if one else "assertion") for one in right]


def render(messages):
    return "".join(f"<{message['role']}>{message['content']}" for message in messages) + "<assistant>"


def prompt_of(name):
    return f"def {name}():\n"


def code(name, reference=GOLD):
    row = {"prompt": prompt_of(name), "completion": reference, "test": TEST, "entry_point": name}
    return {key: value for key, value in row.items() if value is not None}


def steps_of(name, reference="Step 1. Given."):
    return {"prompt": f"# {name}\nHow to solve:\n", "completion": reference}


def answers_of(told):
    """Answer by prompt, and by the number of the try where there is a list; the last one stays."""

    def answer(request):
        own = told.get(request.prompt, WRONG)
        return own if isinstance(own, str) else own[min(SEEDS[request.seed], len(own) - 1)]

    return answer


class Counting(FakeGenerator):
    """Counts the batches, and fails at one of them like a process that is killed."""

    def __init__(self, answers, fails_at=None):
        super().__init__(answers)
        self.fails_at, self.batches = fails_at, 0

    def generate(self, requests, decoding):
        self.batches += 1
        if self.batches == self.fails_at:
            raise KeyboardInterrupt
        return super().generate(requests, decoding)

    @property
    def asked(self):
        return [(request.prompt, request.seed) for request in self.requests]


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def make(monkeypatch, tmp_path):
    """Make data of the rows with known answers; returns what ``make_data`` does."""

    def run(rows, told=None, out="data.jsonl", generator=None, identity=None, sandbox=None, **more):
        generator = generator or FakeGenerator(answers_of(told or {}))
        subject = Subject(generator, render, IDENTITY | (identity or {}))
        monkeypatch.setattr("flab.evaluation.evaluate.open_subject", lambda model, options: subject)
        found = SimpleNamespace(detect=lambda allowed: sandbox or KnownSandbox())
        monkeypatch.setattr("flab.recovery.own_answers.Sandbox", found)
        options = Options(overwrite=more.pop("overwrite", False))
        given = {name: more.pop(name) for name in ("against", "text", "limit", "shard") if name in more}
        files = [write_rows(tmp_path / "rows.jsonl", rows)] if isinstance(rows, list) else rows["files"]
        making = Making(**{"batch_size": 2, "tries": 2, **more})
        return make_data("model", files, tmp_path / out, making, options, **given)

    return run


def targets(path):
    """Task id to the completions that a model would be trained on, and whose they are."""
    found = {}
    for row in read_rows(path):
        found.setdefault(row["task_id"].partition(":")[2], []).append((row["source"], row["completion"]))
    return found


ROWS = [
    code("at_once"),
    code("later"),
    code("never"),
    code("hopeless", FALSE_GOLD),
    code("empty"),
    code("cut_off"),
    code("no_reference", None),
    steps_of("untestable"),
    steps_of("silent"),
    steps_of("rambling"),
    steps_of("blank", " "),
]
TOLD = {
    prompt_of("at_once"): f"{RIGHT}\n\ndef more():\n    pass\n",
    prompt_of("later"): [WRONG, LATER, RIGHT],
    prompt_of("empty"): ["\n", ""],
    prompt_of("cut_off"): RAMBLE,
    prompt_of("no_reference"): RIGHT,
    "# untestable\nHow to solve:\n": "Step 1. Own.\n\nmore",
    "# silent\nHow to solve:\n": " ",
    "# rambling\nHow to solve:\n": "Step 1. " + "and " * 200,
    "# blank\nHow to solve:\n": "Step 1. Own.",
}
OWN_CODE = {"0": ("self", RIGHT + "\n\n"), "1": ("self", LATER), "6": ("self", RIGHT)}
GOLD_CODE = dict.fromkeys("01245", ("reference", GOLD))
GIVEN = dict.fromkeys("789", ("reference", "Step 1. Given."))
SAID = {"7": ("self", "Step 1. Own.\n"), "10": ("self", "Step 1. Own.")}
BEST_CODE = GOLD_CODE | OWN_CODE
GREEDY_CODE = {"0": OWN_CODE["0"], "6": OWN_CODE["6"]} | dict.fromkeys("123", ("self", WRONG))
CHOSEN = {
    ("verified-self", "reference"): [BEST_CODE | GIVEN],
    ("verified-self", "self"): [BEST_CODE | SAID],
    ("verified-self", "drop"): [BEST_CODE],
    ("reference", "reference"): [GOLD_CODE | GIVEN],
    ("reference", "drop"): [GOLD_CODE | GIVEN],
    ("self", "reference"): [GREEDY_CODE | SAID],
    ("self", "drop"): [GREEDY_CODE | SAID],
    ("mixed", "reference"): [OWN_CODE, GOLD_CODE | GIVEN],
    ("mixed", "self"): [OWN_CODE | SAID, GOLD_CODE],
    ("mixed", "drop"): [OWN_CODE, GOLD_CODE],
}


@pytest.mark.parametrize(("strategy", "untested"), CHOSEN)
def test_whose_words_become_the_targets(make, tmp_path, strategy, untested):
    report = make(ROWS, TOLD, strategy=strategy, untested=untested)
    wanted = {}
    for part in CHOSEN[strategy, untested]:
        for name, one in part.items():
            wanted.setdefault(name, []).append(one)
    assert targets(tmp_path / "data.jsonl") == wanted
    assert_adds_up(report, tmp_path / "data.jsonl")


def assert_adds_up(report, path):
    """Every step follows from the one before it, and the totals from the rows."""
    rows = read_rows(path)
    steps = {step["step"]: step for step in report["steps"]}

    def found(name):
        return {key: value for key, value in steps.get(name, {}).items() if key not in ("step", "left")}

    def left(*names):
        return next(steps[name]["left"] for name in names if name in steps)

    assert left("decontaminate") == left("read") - found("decontaminate")["contaminated"]
    assert left("set text aside", "decontaminate") == left("decontaminate") - found("set text aside").get("text", 0)
    assert left("verify references") == left("set text aside", "decontaminate")
    if "answer" in steps:
        assert left("answer") == left("verify references") == sum(found("answer").values())
    assert sum(found("verify references").values()) <= left("verify references")
    assert set(found("verify references")) <= {"right", "wrong", "untested"}
    taken = found("choose")
    assert left("choose") == taken.get("self", 0) + taken.get("reference", 0)
    written = steps.get("write own texts", {}).get("left", 0)
    remembered = found("decontaminate answers").get("contaminated", 0)
    assert left("decontaminate answers", "choose") == left("choose") - remembered
    assert left("deduplicate") == left("decontaminate answers", "choose") + written - found("deduplicate")["doubles"]
    assert left("balance") == left("deduplicate") - found("balance")["surplus"]
    texts = [row for row in rows if row["kind"] == "text"]
    assert left("add text", "balance") == left("balance") + len(texts) == len(rows) == report["rows"]
    assert report["kinds"] == Counter(row["kind"] for row in rows)
    assert report["sources"] == Counter(row["source"] for row in rows)
    meta = json.loads(path.with_suffix(".meta.json").read_text())
    assert meta | {"output": str(path)} == json.loads(json.dumps(report))


def test_the_steps_are_counted(make):
    assert make(ROWS, TOLD)["steps"] == [
        {"step": "read", "left": 11},
        {"step": "decontaminate", "left": 11, "contaminated": 0},
        {"step": "answer", "left": 11, "right at once": 2, "right later": 1, "wrong": 4, "untested": 2,
         "untested, no answer": 2},
        {"step": "verify references", "left": 11, "right": 5, "wrong": 2, "untested": 3},
        {"step": "choose", "left": 9, "self": 3, "reference": 6, "dropped": 2},
        {"step": "deduplicate", "left": 9, "doubles": 0},
        {"step": "balance", "left": 9, "surplus": 0},
    ]  # fmt: skip


def test_a_row_tells_where_it_came_from_and_is_read_by_the_training(make, tmp_path):
    make([code("at_once"), steps_of("untestable")], TOLD)
    first, second = read_rows(tmp_path / "data.jsonl")
    assert first == {
        "task_id": "rows.jsonl:0",
        "kind": "code",
        "prompt": prompt_of("at_once"),
        "completion": RIGHT + "\n\n",
        "source": "self",
        "verified": True,
        "test": TEST,
        "entry_point": "at_once",
    }
    assert (second["kind"], second["verified"], "test" in second) == ("cot", None, False)
    samples = read_samples(tmp_path / "data.jsonl")
    assert [one.text for one in samples] == [
        first["prompt"] + first["completion"],
        second["prompt"] + second["completion"],
    ]


def test_the_sidecar_says_what_was_read_and_how(make, tmp_path):
    text = tmp_path / "more.py"
    text.write_text("x = 1\n")
    report = make([code("at_once")], TOLD, text=[text], limit=1, tries=1)
    assert (report["model"], report["dtype"], report["model_path"]) == ("a" * 64, "float32", "/models/a")
    assert [one["path"] for one in (*report["instructions"], *report["text"])] == [
        str(tmp_path / "rows.jsonl"),
        str(text),
    ]
    assert all(len(one["sha256"]) == 64 for one in (*report["instructions"], *report["text"]))
    assert (report["making"]["tries"], report["limit"], report["sandbox"]) == (1, 1, "known")


def test_any_text_is_kept_as_it_was_made(make, tmp_path):
    strange = "    return 1  # é\u2028\x00\x85\r ends\n"
    make([code("strange")], {prompt_of("strange"): strange + "def more"}, max_new_tokens=600)
    assert targets(tmp_path / "data.jsonl") == {"0": [("self", strange)]}


def test_an_empty_answer_is_wrong_even_where_the_prompt_alone_passes(make, tmp_path):
    whole = {"prompt": "def one():\n    return 1\n", "completion": " ", "test": TEST, "entry_point": "one"}
    report = make([whole, code("two")], {whole["prompt"]: "\n"}, tries=0)
    assert list(targets(tmp_path / "data.jsonl")) == ["1"]
    assert {step["step"]: step for step in report["steps"]}["answer"]["wrong"] == 2


def test_no_try_is_asked_for_where_none_is_needed_or_wanted(make):
    for told, tries, asked in ((RIGHT, 4, 1), (WRONG, 0, 1), (WRONG, 3, 4), ([WRONG, RIGHT], 5, 2)):
        generator = FakeGenerator(answers_of({prompt_of("one"): told}))
        make([code("one")], generator=generator, tries=tries, out=f"{tries}.jsonl")
        assert len(generator.requests) == asked


def test_the_reference_alone_asks_nothing(make, tmp_path):
    generator = FakeGenerator([])
    make(ROWS, generator=generator, strategy="reference")
    assert generator.requests == []
    assert not (tmp_path / "data.generations.jsonl").exists()


def test_nothing_left_is_one_line_and_no_file(make, tmp_path):
    with pytest.raises(DataError, match=r"rows\.jsonl: nothing is left to train on: .*dropped") as caught:
        make([code("hopeless", FALSE_GOLD)])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data.jsonl").exists()
    assert not (tmp_path / "data.meta.json").exists()


def test_a_row_whose_test_passes_any_program_is_named_by_its_line(make, tmp_path):
    class Sandboxes(KnownSandbox):
        def run_many(self, jobs, description=""):
            return [Verdict(passed := "blind" in job.test, "passed" if passed else "assertion") for job in jobs]

    blind = code("blind") | {"test": "def check(candidate):\n    blind = 1\n"}
    file = tmp_path / "rows.jsonl"
    file.write_text("\n" + json.dumps(code("one")) + "\n\n" + json.dumps(blind) + "\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:4: its test passes any program"):
        make({"files": [file]}, sandbox=Sandboxes())


# Files of one name, doubles, shares


def test_files_of_one_name_do_not_take_each_others_answers(make, tmp_path):
    first = write_rows(tmp_path / "a" / "rows.jsonl", [code("one", "    return 1  # a\n"), code("same")])
    second = write_rows(tmp_path / "b" / "rows.jsonl", [code("two", "    return 1  # b\n"), code("same")])
    report = make({"files": [first, second, first]}, generator=FakeGenerator(lambda _: WRONG), mix=())
    assert [(row["prompt"], row["completion"]) for row in read_rows(tmp_path / "data.jsonl")] == [
        (prompt_of("one"), "    return 1  # a\n"),
        (prompt_of("same"), GOLD),
        (prompt_of("two"), "    return 1  # b\n"),
    ]
    assert_adds_up(report, tmp_path / "data.jsonl")
    assert {step["step"]: step for step in report["steps"]}["deduplicate"]["doubles"] == 3


def test_rows_that_differ_in_case_space_and_quotes_are_one(make, tmp_path):
    rows = [
        {"prompt": "Say 'a'", "completion": "  x = 'A'\n"},
        {"prompt": "say", "completion": '"A"\nX="a"'},
        {"prompt": "Say 'a'", "completion": "x = 'B'"},
    ]
    report = make(rows, strategy="reference")
    assert list(targets(tmp_path / "data.jsonl")) == ["0", "2"]
    assert_adds_up(report, tmp_path / "data.jsonl")


def test_own_words_that_equal_the_reference_are_taken_once(make, tmp_path):
    make([code("same", RIGHT)], {prompt_of("same"): RIGHT}, strategy="mixed")
    assert targets(tmp_path / "data.jsonl") == {"0": [("self", RIGHT)]}


def test_deduplication_keeps_the_first_and_the_order():
    rows = [{"prompt": text, "completion": "", "n": n} for n, text in enumerate(["a b", "c", "A  B", "d", "C", "ab"])]
    kept, doubles = deduplicate(rows)
    assert ([row["n"] for row in kept], doubles) == ([0, 1, 3, 5], 2)


def rows_of(**counts):
    return [
        {"kind": kind, "n": n, "prompt": "", "completion": ""} for kind, most in counts.items() for n in range(most)
    ]


@pytest.mark.parametrize(
    ("counts", "mix", "wanted"),
    [
        ({"code": 10, "cot": 4}, (), {"code": 10, "cot": 4}),
        ({"code": 10, "cot": 4}, (("code", 2.0), ("cot", 1.0)), {"code": 8, "cot": 4}),
        ({"code": 10, "cot": 4}, (("code", 1.0), ("cot", 1.0)), {"code": 4, "cot": 4}),
        ({"code": 10, "cot": 4}, (("code", 0.5), ("cot", 0.5)), {"code": 4, "cot": 4}),
        ({"code": 10, "cot": 4}, (("cot", 1.0),), {"cot": 4}),
        ({"code": 3, "cot": 30, "output": 9}, (("code", 1.0), ("cot", 4.0)), {"code": 3, "cot": 12}),
        ({"code": 7, "cot": 7, "chat": 7}, (("code", 3.0), ("cot", 2.0), ("chat", 1.0)), {"code": 7, "cot": 5, "chat": 2}),
    ],
)  # fmt: skip
def test_the_shares_of_the_kinds(counts, mix, wanted):
    rows = rows_of(**counts)
    kept, surplus = balance(rows, Making(mix=mix))
    assert Counter(row["kind"] for row in kept) == wanted
    assert len(kept) + surplus == len(rows)
    assert kept == [row for row in rows if row in kept]
    assert balance(rows, Making(mix=mix)) == (kept, surplus)


def test_another_seed_draws_other_rows():
    rows, mix = rows_of(code=40, cot=4), (("code", 1.0), ("cot", 1.0))
    assert balance(rows, Making(mix=mix, seed=1))[0] != balance(rows, Making(mix=mix, seed=2))[0]


def test_a_kind_of_the_mix_that_has_no_row_is_refused(make, tmp_path):
    with pytest.raises(DataError, match="`mix`: no row of kind output, chat is left; take it out of the mix"):
        make(ROWS, TOLD, mix=(("code", 1.0), ("output", 1.0), ("chat", 1.0)))
    assert not (tmp_path / "data.jsonl").exists()


def test_a_mix_in_the_whole_way(make, tmp_path):
    report = make(ROWS, TOLD, mix=(("code", 1.0), ("cot", 1.0)))
    assert report["kinds"] == {"code": 3, "cot": 3}
    assert_adds_up(report, tmp_path / "data.jsonl")


def characters(rows, *names):
    return sum(len(row.get(name, "")) for row in rows for name in names)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
def test_text_is_its_share_of_the_characters(share):
    rows = [{"prompt": "p" * 40, "completion": "c" * 60} for _ in range(10)]
    made = add_text(rows, [f"{n:05}" * 10 for n in range(400)], Making(text_share=share))
    text, other = characters(made, "text"), characters(made, "prompt", "completion")
    assert made[:10] == rows
    assert other == 1000
    assert text / (text + other) == pytest.approx(share, abs=0.001)


def test_text_is_drawn_by_seed_once_and_all_of_it_where_it_is_little():
    rows = [{"prompt": "p" * 400, "completion": "c" * 600}]
    texts = ["a" * 50, "b" * 50, "a" * 50, "  \n"]
    assert sorted(row["text"] for row in add_text(rows, texts, Making())[1:]) == ["a" * 50, "b" * 50]
    many = [f"{n:05}" * 10 for n in range(400)]
    assert add_text(rows, many, Making(seed=1)) == add_text(rows, many, Making(seed=1))
    assert add_text(rows, many, Making(seed=1)) != add_text(rows, many, Making(seed=2))
    assert [row["text"] for row in add_text([], ["a", "b"], Making())] in (["a", "b"], ["b", "a"])


def test_text_comes_from_rows_and_from_files(make, tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "a.py").write_text("a = 1\n")
    (folder / "b.py").write_text("b = 2\n")
    report = make([code("at_once"), {"text": "c = 3\n"}], TOLD, text=[folder], text_share=0.9)
    texts = [row["text"] for row in read_rows(tmp_path / "data.jsonl") if row["kind"] == "text"]
    assert sorted(texts) == ["a = 1\n", "b = 2\n", "c = 3\n"]
    assert_adds_up(report, tmp_path / "data.jsonl")
    assert [one.prompt for one in read_samples(tmp_path / "data.jsonl")] == [prompt_of("at_once"), "", "", ""]


def test_text_alone_needs_no_answers_and_no_sandbox(make, tmp_path):
    report = make([{"text": "a = 1\n"}], generator=FakeGenerator([]))
    assert (report["kinds"], report["sandbox"]) == ({"text": 1}, None)
    assert_adds_up(report, tmp_path / "data.jsonl")


# Texts of the original's own


def write(told):
    """Answers to instructions as ``told``; what begins otherwise is gone on with."""
    known = answers_of(told)
    return lambda request: known(request) if request.seed in SEEDS else f"{request.prompt!r} {request.seed % 97} ends\n"


def test_own_texts_are_rows_of_their_own_and_counted(make, tmp_path):
    report = make(ROWS, generator=FakeGenerator(write(TOLD)), own_texts=12)
    rows = [row for row in read_rows(tmp_path / "data.jsonl") if row["kind"] == "own"]
    assert {(row["source"], row["verified"]) for row in rows} == {("self", None)}
    asked = [row["prompt"] for row in ROWS]
    assert all(any(prompt.startswith(row["prompt"]) for prompt in asked) for row in rows)
    assert all(row["completion"].startswith(repr(row["prompt"])) for row in rows)
    step = next(step for step in report["steps"] if step["step"] == "write own texts")
    assert step == {"step": "write own texts", "left": 12, "unended": 0, "contaminated": 0}
    assert report["kinds"]["own"] == len(rows)
    assert_adds_up(report, tmp_path / "data.jsonl")


def test_own_texts_have_a_share_in_a_mix(make, tmp_path):
    report = make(ROWS, generator=FakeGenerator(write(TOLD)), own_texts=12, mix=(("code", 1.0), ("own", 2.0)))
    assert report["kinds"] == {"code": 6, "own": 12}
    assert_adds_up(report, tmp_path / "data.jsonl")


def test_own_texts_that_do_not_end_or_hold_an_evaluation_problem_go(make, tmp_path):
    file = write_rows(tmp_path / "evaluation.jsonl", [HELD_OUT])
    texts = iter([PROBLEM + SOLUTION, "x" * 2000, "fine\n", " "])
    known = answers_of(TOLD)
    generator = FakeGenerator(lambda request: known(request) if request.seed in SEEDS else next(texts))
    report = make(ROWS, generator=generator, own_texts=4, against=[file], batch_size=1, max_new_tokens=600)
    step = next(step for step in report["steps"] if step["step"] == "write own texts")
    assert step == {"step": "write own texts", "left": 1, "unended": 2, "contaminated": 1}
    own = [row["completion"] for row in read_rows(tmp_path / "data.jsonl") if row["kind"] == "own"]
    assert own == ["fine\n"]


def test_own_texts_resume_and_come_in_parts(make, tmp_path):
    whole = Counting(write(TOLD))
    make(ROWS, generator=whole, out="whole.jsonl", own_texts=7)
    killed = Counting(write(TOLD), whole.batches - 1)
    with pytest.raises(KeyboardInterrupt):
        make(ROWS, generator=killed, out="killed.jsonl", own_texts=7)
    again = Counting(write(TOLD))
    make(ROWS, generator=again, out="killed.jsonl", own_texts=7)
    assert killed.asked + again.asked == whole.asked
    for number in (1, 2):
        make(ROWS, generator=FakeGenerator(write(TOLD)), out="parts.jsonl", own_texts=7, shard=f"{number}/2")
    merged = FakeGenerator([])
    make(ROWS, generator=merged, out="parts.jsonl", own_texts=7)
    assert merged.requests == []
    for name in ("killed.jsonl", "parts.jsonl"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


# Evaluation files


PROBLEM = '''def pass_validity(p):
    """Return true if the password is long enough, has a digit, and holds one of the special characters.
    """
'''
SOLUTION = """    if len(p) < 6 or not re.search("[0-9]", p):
        return False
    return any(symbol in p for symbol in "$#@")
"""
HELD_OUT = {"task_id": "E/0", "prompt": PROBLEM, "canonical_solution": SOLUTION, "test": "x", "entry_point": "f"}
TOKENS = tokens_of(PROBLEM + SOLUTION)
WHOLE = "x = 1\n" + (PROBLEM + SOLUTION).upper().replace("    ", "\t").replace('"""', "'''")
LEAKS = {
    "the same row": ({"prompt": PROBLEM, "completion": SOLUTION, "test": TEST, "entry_point": "f"}, True),
    "in other spacing and case": ({"prompt": WHOLE, "completion": "pass\n"}, True),
    "in the reference": ({"prompt": "Write it.\n", "completion": PROBLEM + SOLUTION}, True),
    "in a chat": ({"messages": [{"role": "user", "content": PROBLEM}, {"role": "assistant", "content": SOLUTION}]}, True),
    "in text": ({"text": f"# notes\n{PROBLEM}{SOLUTION}# end\n"}, True),
    "the question alone": ({"prompt": PROBLEM, "completion": "    return bool(p)\n"}, True),
    "half of it": ({"prompt": " ".join(TOKENS[len(TOKENS) // 2 :]), "completion": "x"}, True),
    "an idiom of it": ({"prompt": " ".join(TOKENS[8:22]), "completion": "x"}, False),
    "its test's words": ({"prompt": "Return true if the password is fine.", "completion": "x"}, False),
    "another problem": ({"prompt": 'def double(x):\n    """Double the number."""\n', "completion": "    return 2 * x\n"}, False),
}  # fmt: skip


@pytest.mark.parametrize("argument", ["{file}", "code:{file}"])
def test_what_holds_an_evaluation_problem_is_left_out_and_never_asked(make, tmp_path, argument):
    rows = [row for row, _ in LEAKS.values()]
    file = write_rows(tmp_path / "evaluation.jsonl", [HELD_OUT])
    generator = FakeGenerator(lambda _: "own words\n")
    report = make(rows, generator=generator, against=[argument.format(file=file)])
    kept = [row["prompt"] for row, leaks in LEAKS.values() if not leaks]
    assert [row["prompt"] for row in read_rows(tmp_path / "data.jsonl")] == kept
    assert set(generator.prompts) == set(kept)
    assert report["steps"][1] == {"step": "decontaminate", "left": len(kept), "contaminated": len(LEAKS) - len(kept)}
    assert_adds_up(report, tmp_path / "data.jsonl")


def test_without_evaluation_files_they_all_stay(make, tmp_path):
    report = make([row for row, _ in LEAKS.values()], strategy="reference")
    assert report["steps"][1] == {"step": "decontaminate", "left": len(LEAKS), "contaminated": 0}


def test_a_text_file_that_holds_an_evaluation_problem_is_left_out(make, tmp_path):
    file = write_rows(tmp_path / "evaluation.jsonl", [HELD_OUT])
    (tmp_path / "leak.py").write_text(f"import re\n\n\n{PROBLEM}{SOLUTION}")
    (tmp_path / "clean.py").write_text("a = 1\n")
    texts = [tmp_path / "leak.py", tmp_path / "clean.py"]
    report = make([code("at_once")], TOLD, against=[file], text=texts, text_share=0.9)
    assert [row["text"] for row in read_rows(tmp_path / "data.jsonl") if row["kind"] == "text"] == ["a = 1\n"]
    assert_adds_up(report, tmp_path / "data.jsonl")


def test_an_answer_that_holds_an_evaluation_problem_is_left_out(make, tmp_path):
    """The original may know it by heart."""
    file = write_rows(tmp_path / "evaluation.jsonl", [HELD_OUT])
    told = {"# untestable\nHow to solve:\n": PROBLEM + SOLUTION, "# other\nHow to solve:\n": "Step 1. Own."}
    rows = [steps_of("untestable"), steps_of("other")]
    report = make(rows, told, untested="self", against=[file], max_new_tokens=1000)
    assert list(targets(tmp_path / "data.jsonl")) == ["1"]
    step = next(step for step in report["steps"] if step["step"] == "decontaminate answers")
    assert step == {"step": "decontaminate answers", "left": 1, "contaminated": 1}
    assert_adds_up(report, tmp_path / "data.jsonl")


def test_an_evaluation_file_that_is_not_there_is_refused_before_anything_is_asked(make, tmp_path):
    generator = FakeGenerator([])
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        make([code("at_once")], generator=generator, against=[tmp_path / "missing.jsonl"])
    assert generator.requests == []


# Stopped, repeated, shared, in parts


def test_killed_at_any_batch_it_goes_on_and_gives_the_same_bytes(make, tmp_path):
    whole = Counting(answers_of(TOLD))
    make(ROWS, generator=whole, out="whole.jsonl")
    assert whole.batches > 8
    for fails_at in range(1, whole.batches + 1):
        killed, again = Counting(answers_of(TOLD), fails_at), Counting(answers_of(TOLD))
        out = f"killed-{fails_at}.jsonl"
        with pytest.raises(KeyboardInterrupt):
            make(ROWS, generator=killed, out=out)
        assert not (tmp_path / out).exists()
        make(ROWS, generator=again, out=out)
        assert (tmp_path / out).read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
        assert killed.asked + again.asked == whole.asked


def test_killed_after_the_greedy_answers_only_tries_are_asked_for(make):
    greedy = [seed for seed, n in SEEDS.items() if n == 0]
    killed = Counting(answers_of(TOLD), 7)  # 11 rows are 6 batches
    with pytest.raises(KeyboardInterrupt):
        make(ROWS, generator=killed)
    assert {request.seed for request in killed.requests} <= set(greedy)
    again = Counting(answers_of(TOLD))
    make(ROWS, generator=again)
    assert again.requests
    assert not {request.seed for request in again.requests} & set(greedy)


def test_a_repeated_run_and_other_strategies_ask_nothing_anew(make, tmp_path):
    make(ROWS, TOLD)
    first = (tmp_path / "data.jsonl").read_bytes()
    silent = FakeGenerator([])
    for changes in (
        {"strategy": "self"},
        {"strategy": "mixed"},
        {"strategy": "reference"},
        {"untested": "self"},
        {"tries": 1},
        {"mix": (("code", 1.0),)},
        {"text_share": 0.5},
        {},
    ):
        make(ROWS, generator=silent, overwrite=True, **changes)
    assert silent.requests == []
    assert (tmp_path / "data.jsonl").read_bytes() == first


def test_a_strategy_with_tries_asks_for_them_alone_after_one_without(make):
    make(ROWS, TOLD, strategy="self")
    more = FakeGenerator(answers_of(TOLD))
    make(ROWS, generator=more, overwrite=True)
    assert {SEEDS[request.seed] for request in more.requests} == {1, 2}


def test_a_new_row_is_asked_alone(make):
    make(ROWS, TOLD)
    more = FakeGenerator(answers_of({prompt_of("new"): RIGHT}))
    make([*ROWS, code("new")], generator=more, overwrite=True, batch_size=2)
    assert more.prompts.count(prompt_of("new")) == 1
    assert len(more.requests) <= 2  # the batch that it is in


CHANGES = {
    "another model": {"identity": {"sha256": "b" * 64}},
    "another dtype": {"identity": {"dtype": "bfloat16"}},
    "another seed": {"seed": 1},
    "another temperature": {"temperature": 0.5},
    "another top_p": {"top_p": 0.5},
    "a longer answer": {"max_new_tokens": 600},
    "another batch size": {"batch_size": 3},
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_decides_the_answers_decides_which_are_read(make, tmp_path, name):
    make([code("one"), code("two")], {}, tries=0)
    before = (tmp_path / "data.generations.jsonl").read_bytes()
    again = FakeGenerator(lambda _: RIGHT)
    make([code("one"), code("two")], generator=again, tries=0, overwrite=True, **CHANGES[name])
    assert len(again.requests) == 2
    assert (tmp_path / "data.generations.jsonl").read_bytes().startswith(before)
    assert {row["source"] for row in read_rows(tmp_path / "data.jsonl")} == {"self"}


def test_another_place_of_the_model_does_not_matter(make):
    make([code("one")], {prompt_of("one"): RIGHT})
    again = FakeGenerator([])
    make([code("one")], generator=again, overwrite=True, identity={"path": "/elsewhere"})
    assert again.requests == []


@pytest.mark.parametrize(
    "changed", [code("other"), {"prompt": prompt_of("one"), "completion": GOLD}], ids=["prompt", "stop"]
)
def test_a_changed_row_is_asked_anew(make, changed):
    """Its prompt, or the kind that decides what ends an answer."""
    make([code("one")], {prompt_of("one"): RIGHT})
    again = FakeGenerator(lambda _: RIGHT)
    make([changed], generator=again, overwrite=True)
    assert again.prompts == [changed["prompt"]]


@pytest.mark.parametrize("count", [2, 3, 20])
def test_parts_and_then_the_whole_give_the_same_bytes(make, tmp_path, count):
    make(ROWS, TOLD, out="whole.jsonl")
    asked = []
    for number in range(1, count + 1):
        generator = Counting(answers_of(TOLD))
        report = make(ROWS, generator=generator, shard=f"{number}/{count}")
        asked += generator.asked
        assert report["file"] == str(tmp_path / f"data.generations.{number}-of-{count}.jsonl")
        assert (report["shard"], report["wanted"]) == (f"{number}/{count}", len(ROWS))
        assert not (tmp_path / "data.jsonl").exists()
    assert report["generated"] == len(ROWS)
    assert len(set(asked)) == len(asked)
    merged = FakeGenerator([])
    make(ROWS, generator=merged)
    assert merged.requests == []
    assert (tmp_path / "data.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_what_a_missing_part_lacks_is_asked_when_merging(make, tmp_path):
    make(ROWS, TOLD, out="whole.jsonl")
    report = make(ROWS, TOLD, shard="2/2")
    assert report["generated"] == 5
    rest = FakeGenerator(answers_of(TOLD))
    make(ROWS, generator=rest)
    assert rest.requests
    assert (tmp_path / "data.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_part_does_not_touch_the_output(make, tmp_path):
    (tmp_path / "data.jsonl").write_text("mine")
    make(ROWS, TOLD, shard="1/2")
    assert (tmp_path / "data.jsonl").read_text() == "mine"


def test_a_part_of_what_asks_nothing_is_refused_and_replaces_nothing(make, tmp_path):
    (tmp_path / "data.jsonl").write_text("mine")
    with pytest.raises(OptionError, match="`shard` 1/2: strategy reference asks the model nothing"):
        make(ROWS, shard="1/2", strategy="reference")
    assert (tmp_path / "data.jsonl").read_text() == "mine"


def test_an_output_with_the_signs_of_a_pattern_in_its_name(make, tmp_path):
    for number in (1, 2):
        make(ROWS, TOLD, out="data[1]*.jsonl", shard=f"{number}/2")
    merged = FakeGenerator([])
    make(ROWS, generator=merged, out="data[1]*.jsonl")
    assert merged.requests == []


# Where it goes


def place_of(kind, tmp_path):
    """An output that cannot be, and what the message says."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "there.jsonl").write_text("mine")
    return {
        "a folder": ("folder", "is a folder: give the name of a"),
        "the folder itself": (".", "is a folder"),
        "below nothing": ("missing/data.jsonl", "cannot be written: no folder"),
        "below a file": ("there.jsonl/data.jsonl", "cannot be written: no folder"),
        "there already": ("there.jsonl", "exists: pass `overwrite` to replace it"),
    }[kind]


@pytest.mark.parametrize("kind", ["a folder", "the folder itself", "below nothing", "below a file", "there already"])
def test_an_output_that_cannot_be_is_refused_before_anything_is_asked(make, tmp_path, kind):
    out, words = place_of(kind, tmp_path)
    generator = FakeGenerator([])
    with pytest.raises(OptionError, match=words) as caught:
        make(ROWS, generator=generator, out=out)
    assert "\n" not in str(caught.value)
    assert generator.requests == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "rows.jsonl", "there.jsonl"]
    assert (tmp_path / "there.jsonl").read_text() == "mine"


@pytest.mark.parametrize("role", ["instructions", "text", "against"])
def test_a_file_that_is_read_is_never_the_output(make, tmp_path, role):
    source = write_rows(tmp_path / "source.jsonl", [HELD_OUT if role == "against" else code("one")])
    (tmp_path / "link.jsonl").symlink_to(source)
    before, given = source.read_bytes(), {} if role == "instructions" else {role: [source]}
    rows = {"files": [source]} if role == "instructions" else ROWS
    for out in ("source.jsonl", "link.jsonl"):
        with pytest.raises(OptionError, match="is one of the inputs"):
            make(rows, TOLD, out=out, overwrite=True, **given)
    assert source.read_bytes() == before


def test_another_outputs_sidecar_is_not_replaced_unasked(make, tmp_path):
    make([code("one")], strategy="reference", out="data.jsonl")
    before = (tmp_path / "data.meta.json").read_bytes()
    with pytest.raises(OptionError, match=r"data\.meta\.json exists: pass `overwrite`"):
        make([code("two"), code("three")], strategy="reference", out="data.json")
    assert (tmp_path / "data.meta.json").read_bytes() == before


def test_overwriting_replaces_rows_and_sidecar(make, tmp_path):
    make([code("one")], strategy="reference")
    make([code("two")], strategy="reference", overwrite=True)
    assert [row["prompt"] for row in read_rows(tmp_path / "data.jsonl")] == [prompt_of("two")]
    assert json.loads((tmp_path / "data.meta.json").read_text())["rows"] == 1


def test_a_sidecar_that_cannot_be_written_is_refused_before_the_work(make, tmp_path):
    (tmp_path / "data.meta.json").mkdir()
    with pytest.raises(OptionError, match=r"data\.meta\.json is a folder"):
        make(ROWS, TOLD, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.meta.json", "rows.jsonl"]


def test_a_write_that_fails_at_the_last_step_keeps_the_old_rows(make, tmp_path, monkeypatch):
    make([code("one")], strategy="reference")
    before = (tmp_path / "data.jsonl").read_bytes()
    real = Path.replace

    def fail(self, target):
        if Path(target).name == "data.jsonl":
            raise OSError(28, "No space left on device", str(target))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OutputError, match="No space left"):
        make([code("two")], strategy="reference", overwrite=True)
    assert (tmp_path / "data.jsonl").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_a_folder_of_data_has_a_digest(make, tmp_path):
    """``datasets`` loads folders that hold no source file, such as one of Parquet files."""
    from datasets import Dataset

    folder = tmp_path / "set"
    folder.mkdir()
    Dataset.from_list([code("at_once")]).to_parquet(folder / "train.parquet")
    report = make({"files": [folder]}, strategy="reference")
    assert len(report["instructions"][0]["sha256"]) == 64


# The sandbox of every day


@pytest.fixture(scope="module")
def small_sandbox():
    """A sandbox with small limits."""

    class Small(Sandbox):
        def run_many(self, jobs, description="", cpu_seconds=1.0):
            return super().run_many(jobs, description, 1.0)

    try:
        found = Sandbox.detect()
    except SandboxError as error:
        pytest.skip(f"no namespaces on this machine: {error}")
    return replace(Small(found.level, found.launcher), wall_factor=1.0, memory_bytes=2**29, workers=2)


SUM = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(2, 2) == 4\n"
HOSTILE = {
    "leaving": "    import sys\n    sys.exit(0)\n",
    "leaving at import": "    return 0\nimport os; os._exit(0)\n",
    "raising SystemExit at import": "    return 0\nraise SystemExit(0)\n",
    "an endless loop": "    while True: pass\n",
    "equal to everything": "    return type('E', (), {'__eq__': lambda *a: True, '__hash__': None})()\n",
    "an integer equal to everything": "    return type('E', (int,), {'__eq__': lambda *a: True, '__hash__': None})()\n",
    "an own check": "    return 0\ncheck = lambda candidate: None\n",
    "an own assertion error": "    return 0\nAssertionError = type('A', (Exception,), {})\n",
    "another assertion error for all": "    return 0\nimport builtins; builtins.AssertionError = KeyError\n",
    "saying that it passed": "    return 0\nimport os; os.write(1, b'passed'); os.write(2, b'passed')\n",
    "closing the docstring": '    """\n    return 3\n    """\n',
    "memory": "    return 'x' * 10**10\n",
    "nothing": "    pass\n",
    "no Python": "    return return\n",
}


def test_hostile_answers_never_count_as_right(make, tmp_path, small_sandbox):
    """In code and, inside a fence, in a chat's answer; the right one beside them shows that a pass is possible."""
    body, bodies = "    return a + b\n", HOSTILE | {"right": "    return a + b\n"}
    names, loops = list(bodies), {"an endless loop"}
    asked = {name: f"# {name}\ndef add(a, b):\n" for name in names}
    rows = [{"prompt": asked[n], "completion": "    return 0\n", "test": SUM, "entry_point": "add"} for n in names]
    rows += [{"instruction": n, "answer": "None.", "test": SUM, "entry_point": "add"} for n in names if n not in loops]
    told = {asked[n]: bodies[n] for n in names}
    told |= {render([{"role": "user", "content": n}]): f"```python\ndef add(a, b):\n{bodies[n]}```" for n in names}
    report = make(rows, told, sandbox=small_sandbox, tries=0)
    steps = {step["step"]: step for step in report["steps"]}
    assert steps["answer"] == {"step": "answer", "left": len(rows), "right at once": 2, "wrong": len(rows) - 2}
    assert [(row["completion"], row["verified"]) for row in read_rows(tmp_path / "data.jsonl")] == [
        (body, True),
        (f"```python\ndef add(a, b):\n{body}```", True),
    ]


def test_output_prediction_the_whole_way(make, tmp_path, small_sandbox):
    canary = tmp_path / "canary"
    given = "def f(x):\n    return [x, x]\n"
    rows = [{"code": given, "input": str(n), "output": f"[{n}, {n}]"} for n in range(5)]
    prompts = [f"{given}\n\nassert f({n}) ==" for n in range(5)]
    answers = [" [0,0]", " [True, 1]", " [2, 2]\nassert f(0) == 0", f" open({str(canary)!r}, 'w')", " [0, 0]"]
    report = make(rows, dict(zip(prompts, answers, strict=True)), sandbox=small_sandbox, tries=1)
    assert targets(tmp_path / "data.jsonl") == {
        "0": [("self", " [0,0]")],
        "1": [("reference", " [1, 1]\n")],
        "2": [("self", " [2, 2]\n")],
        "3": [("reference", " [3, 3]\n")],
        "4": [("reference", " [4, 4]\n")],
    }
    assert not canary.exists()
    assert_adds_up(report, tmp_path / "data.jsonl")


def test_a_reference_with_helpers_below_is_verified_as_it_is_trained_on(make, tmp_path, small_sandbox):
    whole = "    return half(2 * a) + b\n\n\ndef half(x):\n    return x // 2\n"
    broken = "    return a + b\n\n\ndef half(x:\n"
    rows = [
        {"prompt": f"# {n}\ndef add(a, b):\n", "completion": text, "test": SUM, "entry_point": "add"}
        for n, text in enumerate((whole, broken))
    ]
    make(rows, sandbox=small_sandbox, strategy="reference")
    assert targets(tmp_path / "data.jsonl") == {"0": [("reference", whole)]}


# The command line


@pytest.fixture
def flab(monkeypatch, capsys):
    """Run ``flab data`` in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["flab", "data", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as caught:
                app.main()
        finally:
            signal.signal(signal.SIGTERM, before)
        return caught.value.code, *capsys.readouterr()

    return run


def test_a_model_from_the_command_line(flab, pico_folder, tmp_path, small_sandbox):
    model, out = pico_folder("qwen2"), tmp_path / "data.jsonl"
    rows = [row | {"test": TEST, "entry_point": "one"} for row in [{"prompt": "def one():\n", "completion": GOLD}]]
    rows += [{"instruction": "Say x.", "answer": "x"}, {"text": pico.CODE[0]}]
    source = write_rows(tmp_path / "rows.jsonl", [*rows, *pico.calibration_rows(4)])
    common = (model, "--instructions", source, "--tries", 1, "--max-new-tokens", 4, "--json")
    parts = [flab(*common, "-o", out, "--shard", f"{number}/2") for number in (1, 2)]
    assert [code for code, _, _ in parts] == [0, 0]
    assert json.loads(parts[1][1])["generated"] == 6
    status, printed, _ = flab(*common, "-o", out)
    assert status == 0
    report = json.loads(printed)
    assert report["kinds"] == {"code": 1, "chat": 1, "instruction": 4, "text": 1}
    assert report["sources"] == {"reference": 6, "text": 1}
    assert read_rows(out)[1]["prompt"] == "<|im_start|>user\nSay x.<|im_end|>\n<|im_start|>assistant\n"
    assert_adds_up(report, out)
    assert len(read_samples(out)) == 7
    assert_one_line(flab(*common, "-o", out), "exists: pass --overwrite")


def assert_one_line(result, words):
    status, out, err = result
    lines = [line for line in err.splitlines() if line.strip()]
    assert (status, out, len(lines)) == (2, "", 1)
    assert lines[0].startswith("flab: ")
    assert words in lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--instructions", "missing.jsonl"], "missing.jsonl: cannot be read"),
        ([], "--instructions: got none"),
        (["--instructions", "{rows}", "--strategy", "best"], "--strategy: got 'best'"),
        (["--instructions", "{rows}", "--mix", "code"], "--mix: got 'code', allowed KIND=SHARE"),
        (["--instructions", "{rows}", "--mix", "code=inf"], "--mix: got code=inf"),
        (["--instructions", "{rows}", "--mix", "=1"], "--mix: got =1"),
        (["--instructions", "{rows}", "--limit", "0"], "--limit: got 0"),
        (["--instructions", "{rows}", "--shard", "3/2"], "--shard: got '3/2', allowed I/N"),
        (["--instructions", "{rows}", "--top-p", "7"], "--top-p: got 7.0"),
        (["--instructions", "{rows}", "--text", "missing.py"], "missing.py does not exist"),
        (["--instructions", "{rows}", "--against", "missing.jsonl"], "missing.jsonl: cannot be read"),
        (
            ["--instructions", "{rows}", "--against", "{rows}"],
            "rows.jsonl:1: the fields prompt, completion fit no task",
        ),
    ],
)
def test_careless_use_is_one_line(flab, pico_folder, tmp_path, arguments, words):
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "x", "completion": "y"}])
    given = [argument.format(rows=rows) for argument in arguments]
    assert_one_line(flab(pico_folder("qwen2"), *given, "-o", tmp_path / "data.jsonl"), words)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
