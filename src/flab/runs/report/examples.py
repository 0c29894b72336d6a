"""Show a few problems side by side: the prompt, the answers of the original and the smaller model, and their outcomes.

The problems are the first of each outcome in the order of the file, so they are not hand-picked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flab.errors import FlabError
from flab.evaluation.tasks import Prediction, TaskFile, read_task
from flab.runs.report.blocks import Answer, Block, Example, Gap, Heading, Text
from flab.runs.report.inputs import ORIGINAL, AbsentError, Inputs, results_of
from flab.runs.report.scores import main_task
from flab.runs.report.words import name_of

Json = Mapping[str, Any]

WANTED = {"lost": 2, "won": 2, "both": 2, "neither": 1}
TITLES = {
    "lost": "Only the original passes",
    "won": "Only the smaller model passes",
    "both": "Both pass",
    "neither": "Neither passes",
}
LONGEST = 2000  # the characters of a prompt or an answer that a page shows


def examples(inputs: Inputs, tasks: list[dict[str, Any]] | None) -> dict[str, Any]:
    """Return the first problems of each outcome in the main task, each with its prompt and both answers."""
    chosen = main_task(tasks)
    smaller = inputs.results.get(inputs.smaller)
    original = inputs.results.get(ORIGINAL)
    if chosen is None or smaller is None or original is None:
        raise AbsentError(
            inputs.earlier(results_of(ORIGINAL), results_of(inputs.smaller))
            or "two models are needed, but one was not evaluated: `flab run RECIPE -o RUN` resumes where it stopped"
        )
    one, two = (_task(run, chosen["name"]) for run in (original, smaller))
    if one is None or two is None or one["sha256"] != two["sha256"]:
        raise AbsentError(
            f"the two models were not asked the same {chosen['name']}: `flab run RECIPE -o RUN` asks both"
        )
    prompts, reason = _prompts(one)
    problems = [_problem(outcome, row, other, prompts.get(row["task_id"])) for outcome, row, other in _chosen(one, two)]
    return {
        "task": chosen["name"],
        "smaller": inputs.smaller,
        "prompts_missing": reason,
        "source": name_of(one["source"]),
        "problems": problems,
    }


def _task(run: Json, name: str) -> Json | None:
    return next((task for task in run["tasks"] if task["name"] == name), None)


def _chosen(one: Json, two: Json) -> list[tuple[str, Json, Json]]:
    """Return the rows of both models by outcome. Only the first sample of a problem counts."""
    theirs = {row["task_id"]: row for row in two["rows"] if row["sample"] == 0}
    found: dict[str, list[tuple[str, Json, Json]]] = {outcome: [] for outcome in WANTED}
    for row in one["rows"]:
        other = theirs.get(row["task_id"])
        if row["sample"] == 0 and other is not None:
            outcome = OUTCOMES[bool(row["passed"]), bool(other["passed"])]
            found[outcome].append((outcome, row, other))
    return [row for outcome, rows in found.items() for row in rows[: WANTED[outcome]]]


OUTCOMES = {(True, False): "lost", (False, True): "won", (True, True): "both", (False, False): "neither"}


def _problem(outcome: str, row: Json, other: Json, prompt: str | None) -> dict[str, Any]:
    answers = {name: {"text": _short(one["text"]), "passed": bool(one["passed"]), "outcome": one["outcome"],
                      "detail": _short(one.get("detail") or "", 200)}
               for name, one in ((ORIGINAL, row), ("smaller", other))}  # fmt: skip
    return {"task_id": row["task_id"], "outcome": outcome, "prompt": prompt, **answers}


def _short(text: str, longest: int = LONGEST) -> str:
    left = len(text) - longest
    return text if left <= 0 else f"{text[:longest]}\n… {left:,} characters more"


def _prompts(task: Json) -> tuple[dict[str, str], str | None]:
    """Return the prompts from the task's own file, or the reason why they cannot be shown if it has changed."""
    source = Path(task["source"])
    name = name_of(task["source"])
    if not source.is_file():
        return {}, f"{name}, the file of the problems, is no longer in its place, so the prompts are not shown"
    try:
        read = read_task(source, task["kind"], task["count"])
    except (FlabError, OSError, UnicodeError) as error:
        return {}, f"the prompts cannot be read from {name} ({type(error).__name__}), so they are not shown"
    if read.sha256 != task["sha256"]:
        return {}, f"{name} has changed since the models were asked, so its prompts are not shown"
    return _texts(read), None


def _texts(task: TaskFile) -> dict[str, str]:
    asked = {}
    for item in task.items:
        text = f"{item.code}\n\n{item.entry_point}({item.input})" if isinstance(item, Prediction) else item.prompt
        asked[item.task_id] = _short(text)
    return asked


def blocks(report: Json) -> Iterator[Block]:
    """Return the problems, grouped under their outcomes."""
    found = report["examples"]
    intro = (
        f"Of “{found['task']}” the first problems of each outcome, in the order of the file. The answers are unedited."
    )
    yield Text(intro, small=True)
    if found["prompts_missing"]:
        yield Gap(found["prompts_missing"])
    last = None
    for one in found["problems"]:
        if one["outcome"] != last:
            yield Heading(TITLES[one["outcome"]])
        last = one["outcome"]
        yield _block(one, found["smaller"])


def _block(one: Json, smaller: str) -> Example:
    answers = []
    for name, label in ((ORIGINAL, ORIGINAL), ("smaller", smaller)):
        made = one[name]
        outcome = "passed" if made["passed"] else f"failed, {made['outcome']}"
        answers.append(Answer(label, made["passed"], outcome, made["text"], "" if made["passed"] else made["detail"]))
    return Example(one["task_id"], one["prompt"], answers)
