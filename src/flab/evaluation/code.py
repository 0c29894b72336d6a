"""Code generation scored by tests: problems in, pass@1 with an interval and the classes of failure out.

Prompts are used as they are in the file, trailing newline included: stripping it moves the token boundary
before the indentation and can halve a small model's score. Completions are cut at the stop strings and
otherwise left alone: nothing is stripped or repaired. It makes one greedy completion for each problem;
several samples are not its work.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flab.errors import DataError, OptionError
from flab.evaluation.generate import Generation, Generator
from flab.evaluation.metrics import wilson_interval
from flab.evaluation.sandbox import Job, Sandbox, Verdict

# A body ends at the next line that starts in column 0, so a top-level statement can be cut; the generator
# stops at end tokens by itself. Not among them: "\n#", because such a comment may stand in a body; "\nif" and
# "\nfor", for wrapped text in docstrings; "```" in the middle of a line.
COMPLETION_STOP = (
    "\ndef ",
    "\nasync def ",
    "\nclass ",
    "\n@",
    "\nif __name__",
    "\nprint(",
    "\nassert ",
    "\n```",
    "<|endoftext|>",
    "<|file_sep|>",
    "<|fim_",
)
TEXT_FIELDS = ("prompt", "entry_point", "test")


@dataclass(frozen=True)
class Problem:
    """One function to complete, the tests that decide, and the reference solution if there is one."""

    task_id: str
    prompt: str
    entry_point: str
    test: str
    canonical_solution: str | None = None


@dataclass(frozen=True)
class CodeRow:
    """What became of one problem; ``detail`` says where the tests failed."""

    task_id: str
    completion: str
    passed: bool
    outcome: str
    finish_reason: str
    num_tokens: int
    detail: str = ""


@dataclass(frozen=True)
class CodeResult:
    """All rows of one evaluation and the isolation they ran under."""

    rows: tuple[CodeRow, ...]
    sandbox_level: str

    @property
    def passed(self) -> list[bool]:
        """Pass or fail of each problem, in order: what a paired comparison takes."""
        return [row.passed for row in self.rows]

    def summary(self) -> dict[str, Any]:
        """Return pass@1 with its Wilson interval, failures by class, and how many met the token limit."""
        passed, total = sum(self.passed), len(self.rows)
        low, high = wilson_interval(passed, total)
        return {
            "pass@1": passed / total if total else None,
            "passed": passed,
            "total": total,
            "interval_95": [low, high],
            "sandbox_level": self.sandbox_level,
            "failures": dict(Counter(row.outcome for row in self.rows if not row.passed).most_common()),
            "num_truncated": sum(row.finish_reason == "length" for row in self.rows),
        }

    def to_json(self) -> dict[str, Any]:
        """Return plain data for ``json.dump``: the rows, and the summary for readers."""
        rows = [asdict(row) for row in self.rows]
        return {"sandbox_level": self.sandbox_level, "summary": self.summary(), "rows": rows}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CodeResult:
        """Read what ``to_json`` made; the summary is computed again. DataError for anything else."""
        try:
            return cls(tuple(CodeRow(**row) for row in data["rows"]), str(data["sandbox_level"]))
        except (KeyError, TypeError) as error:
            raise DataError(f"not a code result: {error}; give the output of CodeResult.to_json") from error


def read_problems(path: str | Path, limit: int | None = None) -> list[Problem]:
    """Read at most ``limit`` problems from JSONL in HumanEval's format; DataError names file and line."""
    path = Path(path)
    if limit is not None and limit < 1:
        raise OptionError(f"the limit on problems is {limit}; it must be 1 or more, or left out for all")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a JSONL file of problems") from error
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (limit is not None and len(problems) >= limit):
            continue
        problem = _parse_problem(line, f"{path}:{number}")
        if problem.task_id in seen:
            first = seen[problem.task_id]
            where = f"{path}:{number}"
            raise DataError(f"{where}: task_id {problem.task_id!r} is on line {first} too; ids are unique")
        seen[problem.task_id] = number
        problems.append(problem)
    if not problems:
        raise DataError(f"{path}: holds no problem; give a JSONL file with {', '.join(TEXT_FIELDS)} on each line")
    return problems


def _parse_problem(line: str, where: str) -> Problem:
    """Read one line; an id that is missing becomes a hash of the problem, the same on every run."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg}); each line is one problem") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: got {type(row).__name__}, not an object with {', '.join(TEXT_FIELDS)}")
    wrong = [name for name in TEXT_FIELDS if not isinstance(row.get(name), str) or not row[name].strip()]
    if wrong:
        raise DataError(f"{where}: {', '.join(wrong)} missing or not text; a problem has {', '.join(TEXT_FIELDS)}")
    task_id, solution = row.get("task_id"), row.get("canonical_solution")
    if task_id is None:
        content = "\0".join(row[name] for name in TEXT_FIELDS).encode("utf-8", "surrogatepass")
        task_id = hashlib.sha256(content).hexdigest()[:12]
    if isinstance(task_id, bool) or not isinstance(task_id, int | str):
        raise DataError(f"{where}: task_id is {type(task_id).__name__}; allowed are text and whole numbers")
    if solution is not None and not isinstance(solution, str):
        raise DataError(f"{where}: canonical_solution is {type(solution).__name__}, not text")
    return Problem(str(task_id), row["prompt"], row["entry_point"].strip(), row["test"], solution)


def evaluate_code(
    generator: Generator, problems: Sequence[Problem], sandbox: Sandbox, max_new_tokens: int = 256
) -> CodeResult:
    """Complete every problem greedily and run its tests on prompt and completion, joined as they are."""
    generations = generator.generate([problem.prompt for problem in problems], max_new_tokens, COMPLETION_STOP)
    return _score(problems, generations, sandbox, "Running tests")


def gold_ceiling(problems: Sequence[Problem], sandbox: Sandbox) -> CodeResult:
    """Score the file's own reference solutions: what is below 100 % here no model can reach."""
    missing = [problem.task_id for problem in problems if problem.canonical_solution is None]
    if missing:
        raise DataError(f"no canonical_solution for {len(missing)} problems, {missing[0]} first: no gold ceiling")
    solutions = [Generation(problem.canonical_solution or "", 0, "eos") for problem in problems]
    return _score(problems, solutions, sandbox, "Running references")


def _score(
    problems: Sequence[Problem], generations: Sequence[Generation], sandbox: Sandbox, description: str
) -> CodeResult:
    """Run each problem's program and tests."""
    pairs = list(zip(problems, generations, strict=True))
    jobs = [Job(problem.prompt + made.text, problem.test, problem.entry_point) for problem, made in pairs]
    verdicts = sandbox.run_many(jobs, description)
    rows = [_row(*pair, verdict) for pair, verdict in zip(pairs, verdicts, strict=True)]
    return CodeResult(tuple(rows), sandbox.level)


def _row(problem: Problem, made: Generation, verdict: Verdict) -> CodeRow:
    """Join a generation and its verdict; a blank completion that fails is ``empty``."""
    blank = not verdict.passed and not made.text.strip()
    outcome = "empty" if blank else verdict.outcome
    reason, tokens = made.finish_reason, made.num_tokens
    return CodeRow(problem.task_id, made.text, verdict.passed, outcome, reason, tokens, verdict.detail)
