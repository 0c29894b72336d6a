"""Correct programs pass, as they do in a plain interpreter.

The tables are in ``correct``, ``unusual`` and ``rare``; all are tried in plain Python too. Attacks are in ``test_attacks``.
"""

import json
import subprocess
import sys

import pytest

from flab.sandbox import Job, Sandbox, jail, probe
from support.correct import CORRECT
from support.rare import RARE
from support.unusual import UNUSUAL

LEVELS = [*jail.launchers(), ("rlimits", jail.bare_launcher)]


def checked(body):
    if "def check" in body:
        return body
    return "def check(candidate):\n" + "".join(f"    {line}\n" for line in body.split("\n"))


@pytest.fixture(scope="module", params=LEVELS, ids=[launcher.__name__ for _, launcher in LEVELS])
def sandbox(request):
    found = Sandbox(*request.param)
    if found.level != "rlimits" and (problem := probe(found)) is not None:
        pytest.skip(problem)
    return found


def test_correct_programs_pass(sandbox):
    jobs = [Job(program, checked(test), "f") for program, test in CORRECT.values()]
    verdicts = dict(zip(CORRECT, sandbox.run_many(jobs), strict=True))
    assert {name: one.detail or one.outcome for name, one in verdicts.items() if not one.passed} == {}


@pytest.mark.parametrize("name", CORRECT)
def test_these_hold_in_one_process(name):
    program, test = CORRECT[name]
    names = {"__name__": "one"}
    exec(compile(program, name, "exec", dont_inherit=True), names)
    exec(compile(checked(test), name, "exec", dont_inherit=True), names)
    names["check"](names["f"])


PLAIN = """import json, sys
program, test = json.load(sys.stdin)
module = sys.modules["candidate"] = type(sys)("candidate")
exec(program, vars(module))
exec(test, vars(module))
module.check(module.f)
"""


@pytest.mark.parametrize("name", UNUSUAL | RARE)
def test_unusual_programs_pass_as_in_plain_python(name):
    program, test = (UNUSUAL | RARE)[name]
    verdict = Sandbox.detect(allow_unsandboxed=True).run(program, test, "f")
    assert verdict.passed, verdict.detail
    payload = json.dumps([program, test])
    done = subprocess.run([sys.executable, "-c", PLAIN], input=payload, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "failing"),
    [
        ("HumanEval", 0),
        ("MBPP_test", 0),
        ("CodeHarmony_test", 0),
        ("CodeHarmony_valid", 1),  # of all, 4: three import packages that are not here, one is no Python
        ("recode_format", 0),
        ("recode_nlaugmenter", 6),  # of all, 28: their docstrings have no end
    ],
)
def test_references_pass(data_folder, name, failing):
    """A sixth of each file; ``benchmarks/sandbox.py`` runs all, several times, on a busy machine."""
    path = data_folder / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path}")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()][::6]
    jobs = [Job(row["prompt"] + row["canonical_solution"], row["test"], row["entry_point"]) for row in rows]
    verdicts = Sandbox.detect().run_many(jobs)
    failed = {row["task_id"]: one for row, one in zip(rows, verdicts, strict=True) if not one.passed}
    assert {key: one for key, one in failed.items() if one.outcome != "syntax"} == {}
    assert len(failed) == failing
