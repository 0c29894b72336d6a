"""Whether flab's verdicts equal Python's and EvalPlus's, answer by answer.

    pip install --no-deps evalplus psutil
    python benchmarks/verdicts.py RUN/results.json [RUN/results.json ...] [--data ../shared/data/HumanEval.jsonl]

Each answer of a run is judged three times: by flab's sandbox; by a plain ``python`` that executes program and tests and
ends without an error; and by EvalPlus's own checker (``evalplus.eval.untrusted_check``, Liu et al. 2023) on the calls in
the tests whose arguments are literals, with what the reference returns as the expected value. The references are judged
in the same way, and so are mutants of them, in each of which one constant or comparison is changed: answers that nearly
pass. All of it happens inside flab's jail, the last two without flab's harness. Prints Markdown: counts, and
every disagreement with its reason. EvalPlus's data is not downloaded.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import subprocess
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flab.sandbox import Job, Sandbox, jail, missing
from flab.sandbox.packages import INSIDE, entries

PLAIN = """import json, sys
program, test, entry_point = json.load(sys.stdin)
names = {'__name__': 'candidate'}
exec(program, names)
exec(test, names)
names['check'](names[entry_point])
"""
EVALPLUS = """import copy, json, os, sys
sys.path.append(sys.argv[1])
os.environ['OPENBLAS_NUM_THREADS'] = '1'
import evalplus.eval
from evalplus.eval import untrusted_check
evalplus.eval.query_maximum_memory_bytes = lambda: None  # it reads /proc, which the jail lacks
for line in sys.stdin:
    program, reference, entry_point, inputs = json.loads(line)
    names, inputs = {}, eval(inputs)
    exec(reference, names)
    expected = [names[entry_point](*copy.deepcopy(one)) for one in inputs]
    found, details = untrusted_check('humaneval', program, inputs, entry_point, expected, 0, [0.5] * len(inputs))
    wrong = next((at for at, right in enumerate(details) if not right), len(details))
    print(json.dumps([found, repr(inputs[wrong])[:80] if found != 'pass' and wrong < len(inputs) else '']), flush=True)
"""


@dataclass(frozen=True)
class Case:
    """One answer, with the reference and the tests of its problem."""

    task_id: str
    program: str
    reference: str
    test: str
    entry_point: str


def literal_calls(test: str) -> list[list[Any]]:
    """List the arguments of the calls of ``candidate`` in a check, as far as they are literals."""
    found = []
    for node in ast.walk(ast.parse(test)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "candidate":
            try:
                found.append([ast.literal_eval(one) for one in node.args])
            except ValueError:
                continue
    return found


def read_cases(results: Path | None, data: Path) -> list[Case]:
    """Join the answers of a run with their problems; the references without a run."""
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").split("\n") if line.strip()]
    problems = {str(row["task_id"]): row for row in rows}
    answers = [(name, row["canonical_solution"]) for name, row in problems.items()]
    if results is not None:
        task = next(one for one in json.loads(results.read_text(encoding="utf-8"))["tasks"] if one["kind"] == "code")
        answers = [(row["task_id"], row["text"]) for row in task["rows"] if row["task_id"] in problems]
    return [
        Case(
            task_id=name,
            program=problems[name]["prompt"] + text,
            reference=problems[name]["prompt"] + problems[name]["canonical_solution"],
            test=problems[name]["test"],
            entry_point=problems[name]["entry_point"],
        )
        for name, text in answers
    ]


SWAPPED = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}


def mutants(cases: list[Case]) -> list[Case]:
    """Change one place of each reference: the middle one of its whole numbers and comparisons; none where there is none."""
    found = []
    for case in cases:
        tree = ast.parse(case.reference)
        places = [node for node in ast.walk(tree) if _is_place(node)]
        if not places:
            continue
        node = places[len(places) // 2]
        if isinstance(node, ast.Constant):
            node.value += 1
        elif isinstance(node, ast.Compare):
            node.ops[0] = SWAPPED[type(node.ops[0])]()
        found.append(replace(case, program=ast.unparse(tree)))
    return found


def _is_place(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare):
        return type(node.ops[0]) in SWAPPED
    return isinstance(node, ast.Constant) and type(node.value) is int


def by_python(sandbox: Sandbox, case: Case) -> tuple[bool, str]:
    """Execute program and tests in a plain interpreter; return whether it ended well, and its last words."""
    command = [*sandbox.launcher(()), str(jail.interpreter()), "-s", "-S", "-B", "-c", PLAIN]
    payload = json.dumps([case.program, case.test, case.entry_point])
    try:
        done = subprocess.run(
            command, input=payload, text=True, capture_output=True, timeout=20, env=jail.LAUNCH_ENV, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return False, "no end within 20 s"
    return done.returncode == 0, (done.stderr.strip().splitlines() or [""])[-1][:100]


def by_evalplus(sandbox: Sandbox, cases: list[Case]) -> list[tuple[bool | None, str]]:
    """Ask EvalPlus's checker about all answers; None where no call of the tests has literal arguments."""
    spec = importlib.util.find_spec("evalplus")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    lent = (*entries(("numpy", "psutil")), ("evalplus", spec.submodule_search_locations[0]))
    command = [*sandbox.launcher(lent), str(jail.interpreter()), "-s", "-S", "-B", "-c", EVALPLUS, INSIDE]
    calls = [literal_calls(case.test) for case in cases]
    asked = [
        json.dumps([case.program, case.reference, case.entry_point, repr(inputs)])
        for case, inputs in zip(cases, calls, strict=True)
        if inputs
    ]
    done = subprocess.run(
        command, input="\n".join(asked) + "\n", text=True, capture_output=True, env=jail.LAUNCH_ENV, check=False
    )
    lines = done.stdout.splitlines()
    if len(lines) != len(asked):
        raise SystemExit(f"EvalPlus answered {len(lines)} of {len(asked)}: {done.stderr[-500:]}")
    answers = iter(map(json.loads, lines))
    found: list[tuple[bool | None, str]] = []
    for inputs in calls:
        word, wrong = next(answers) if inputs else (None, "no literal call")
        found.append((None if word is None else word == "pass", f"{word} {wrong}".strip()))
    return found


def compare(name: str, sandbox: Sandbox, cases: list[Case], with_evalplus: bool) -> None:
    """Judge the answers in all three ways; print the counts and the disagreements."""
    verdicts = sandbox.run_many([Job(case.program, case.test, case.entry_point) for case in cases], name)
    plain = [by_python(sandbox, case) for case in cases]
    theirs = by_evalplus(sandbox, cases) if with_evalplus else [(None, "not installed")] * len(cases)
    print(f"\n## {name}: {len(cases)} answers")
    print(f"- flab: {sum(one.passed for one in verdicts)} pass; plain Python: {sum(one for one, _ in plain)}", end="")
    counts = Counter(one for one, _ in theirs)
    print(f"; EvalPlus: {counts[True]} of {counts[True] + counts[False]}\n")
    print("| task | flab | plain Python | EvalPlus |\n|---|---|---|---|")
    for case, one, (right, words), (agreed, reason) in zip(cases, verdicts, plain, theirs, strict=True):
        if one.passed != right or agreed not in (None, one.passed):
            ours = "pass" if one.passed else f"{one.outcome}: {one.detail[:100]}"
            print(f"| {case.task_id} | {ours} | {'pass' if right else words} | {reason} |")


def main() -> None:
    """Compare the references, and the answers of all runs given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="*", help="results.json of a run on the problems of --data")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "HumanEval.jsonl")
    parser.add_argument("--limit", type=int, default=None, help="answers of each run")
    options = parser.parse_args()
    sandbox = Sandbox.detect()
    absent = missing(["evalplus", "numpy", "psutil"])
    if absent:
        print(f"EvalPlus is left out: {', '.join(absent)} not installed")
    references = read_cases(None, options.data)[: options.limit]
    compare("references", sandbox, references, not absent)
    compare("mutants of the references", sandbox, mutants(references), not absent)
    for path in options.results:
        name = f"{path.parent.name}/{path.name}"
        compare(name, sandbox, read_cases(path, options.data)[: options.limit], not absent)


if __name__ == "__main__":
    main()
