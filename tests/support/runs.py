"""Small tasks with known answers, and a sandbox that runs nothing."""

from __future__ import annotations

from flab.evaluation.tasks import Explanation, Prediction, Problem, make_task
from flab.sandbox import Verdict

TEST = "def check(candidate):\n    assert candidate() == 1\n"
IDENTITY = {"path": "/models/a", "sha256": "a" * 64, "dtype": "float32"}
COT = make_task("cot", "cot", [Explanation("a", "How a?", "Step 1 do it now")], "cot.csv")
OUTPUT = make_task("output", "output", [Prediction("p", "def f(x):\n    return x", "1", "1", "f")], "out.jsonl")


class KnownSandbox:
    """Runs nothing: a program passes if it returns 1."""

    level = "known"

    def run_many(self, jobs, description="", cpu_seconds=5.0):
        passed = ["return 1" in job.program for job in jobs]
        return [Verdict(one, "passed" if one else "name", "" if one else f"<A at {id(one):#014x}>") for one in passed]


def code_task(*names, called="code", prefix="", **more):
    items = [Problem(name, f"{prefix}def {name}():\n", name, TEST, "    return 1\n") for name in names]
    return make_task(called, "code", items, f"{called}.jsonl", **more)
