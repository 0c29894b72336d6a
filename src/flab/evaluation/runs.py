"""A run: one model on several tasks. Generates missing answers, scores them, and writes the results.

No model is loaded here; the caller gives the generator and ``identity``, the facts about the model.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from flab.errors import OptionError
from flab.evaluation.code import gold_ceiling, score_code
from flab.evaluation.cot import score_cot
from flab.evaluation.output import score_output
from flab.evaluation.prompts import Render, Settings, answer_for, requests_for
from flab.evaluation.record import GENERATIONS, NOT_IDENTITY, RESULTS, RUN, installed, open_run, run_json
from flab.evaluation.robustness import robustness_summary
from flab.evaluation.score import Score
from flab.evaluation.soundness import require_sound
from flab.evaluation.tasks import Kind, TaskFile
from flab.files import write_json
from flab.models.engines.protocol import Generation, Generator, Request, generate_all
from flab.models.engines.store import Key, Shard, Store, fill, fingerprint, stored
from flab.sandbox import Sandbox
from flab.version import __version__

FORMAT = 1
# The text of an exception may hold an object's address, which differs from process to process.
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,16}\b")
Wanted = list[tuple[Key, Request]]


SCORERS: dict[Kind, Callable[[TaskFile, Sequence[Sequence[Generation]], Sandbox | None], Score]] = {
    "code": score_code,
    "cot": lambda task, made, sandbox: score_cot(task, made),
    "output": lambda task, made, sandbox: score_output(task, made),
}


def run_tasks(
    generator: Generator,
    tasks: Sequence[TaskFile],
    settings: Settings,
    folder: Path | None,
    identity: Mapping[str, Any],
    sandbox: Sandbox | None,
    render: Render | None = None,
    gold: bool = True,
    more: Mapping[str, Any] | None = None,
    shard: Shard | None = None,
) -> dict[str, Any]:
    """Evaluate one model. Returns the content of ``results.json``, with ``more`` added as it is.

    Without a folder nothing is written. Lines of another fingerprint stay in the folder and are not read. With a shard only
    its part is generated, and the report gives the progress of all shards.

    Raises:
        OptionError: two tasks have one name, or the preset does not fit the model.
        DataError: the folder holds no run, or another process writes to it.
    """
    check_names(tasks)
    wanted = [requests_for(task, settings.preset, settings.samples, settings.seed, render) for task in tasks]
    facts = run_facts(generator, tasks, settings, identity, wanted)
    clock = {"started": time.time()}
    # If the tests cannot tell answers apart, hours of generation are wasted, so the tests are tried first.
    if shard is None and sandbox is not None:
        for task in [one for one in tasks if one.kind == "code"]:
            require_sound(task, sandbox)
    if folder is not None:
        open_run(folder, facts)
    # All tasks are generated as one list, so that batches stay full across the end of a file.
    flat = [one for part in wanted for one in part]
    if shard is not None:
        assert folder is not None, "a shard needs a folder"
        return generate_shard(generator, flat, settings, folder / GENERATIONS, facts["fingerprint"], shard)
    made = _generate(generator, flat, settings, folder, facts["fingerprint"])
    clock["generated"] = time.time()
    scores = _scores(tasks, made, settings, sandbox)
    report = {
        **facts,
        "tasks": [
            described | scored | {"gold": gold_of(task, sandbox) if gold else None}
            for task, described, scored in zip(tasks, facts["tasks"], map(_stable, scores), strict=True)
        ],
        "robustness": robustness_of(tasks, scores),
        **(more or {}),
    }
    clock["scored"] = time.time()
    if folder is not None:
        write_json(folder / RESULTS, report)
        write_json(folder / RUN, run_json(facts, clock, sandbox.level if sandbox is not None else None))
    return report


def check_names(tasks: Sequence[TaskFile]) -> None:
    """Raise OptionError for two tasks of one name."""
    for name, count in Counter(task.name for task in tasks).items():
        if count > 1:
            sources = ", ".join(task.source for task in tasks if task.name == name)
            raise OptionError(
                f"{count} tasks are called {name} ({sources}); rename a file, or measure them in two runs"
            )
    assert tasks, "no task"


def run_facts(
    generator: Generator,
    tasks: Sequence[TaskFile],
    settings: Settings,
    identity: Mapping[str, Any],
    wanted: Sequence[Wanted],
) -> dict[str, Any]:
    """Return the facts that determine the texts, and their digest. Batches span all tasks, so it covers the tasks in order."""
    facts: dict[str, Any] = {
        "format": FORMAT,
        "generator": generator.name,
        "settings": asdict(settings),
        "identity": dict(identity),
        "versions": versions(generator.name),
        "tasks": [_described(task, part) for task, part in zip(tasks, wanted, strict=True)],
    }
    decisive = facts | {  # Python runs the tests but does not change the texts
        "versions": {name: value for name, value in facts["versions"].items() if name != "python"},
        "identity": {name: value for name, value in identity.items() if name not in NOT_IDENTITY},
        "tasks": [
            (task.name, task.kind, task.sha256, prompts_digest(part)) for task, part in zip(tasks, wanted, strict=True)
        ],
    }
    return {"fingerprint": fingerprint(decisive)} | facts


def _described(task: TaskFile, wanted: Wanted) -> dict[str, Any]:
    clusters = {"clusters": dict(task.clusters)} if task.clusters else {}
    return clusters | {
        "name": task.name,
        "kind": task.kind,
        "source": task.source,
        "sha256": task.sha256,
        "count": len(task.items),
        "perturbation": task.perturbation,
        "skipped": task.skipped,
        "prompts_sha256": prompts_digest(wanted),
    }


def prompts_digest(wanted: Wanted) -> str:
    """Return the SHA-256 of the prompts and stop strings. It is equal if two models got the same prompts."""
    asked = [[request.prompt, request.stop, request.max_prompt_tokens] for _, request in wanted]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def versions(generator: str) -> dict[str, str]:
    """Return the versions of the libraries that make the texts."""
    makers = ("torch", "transformers", "tokenizers", *(["vllm"] if generator == "vllm" else []))
    found = {name: made for name in makers if (made := installed(name)) is not None}
    return {"flab": __version__, "python": platform.python_version()} | found


def _generate(
    generator: Generator, wanted: Wanted, settings: Settings, folder: Path | None, digest: str
) -> list[Generation]:
    """Return all generations, unprocessed, in the order of the requests."""
    if folder is None:
        return generate_all(generator, [request for _, request in wanted], settings.decoding)
    with Store(folder / GENERATIONS, digest) as store:
        fill(store, generator, wanted, settings.decoding)
        return stored(store, [key for key, _ in wanted])


def generate_shard(
    generator: Generator, wanted: Wanted, settings: Settings, path: Path, digest: str, shard: Shard
) -> dict[str, Any]:
    """Generate one shard's part. Returns its place, and how much of the whole is still missing."""
    with Store(path, digest, shard) as store:
        fill(store, generator, wanted, settings.decoding, shard)
        there = sum(store.get(*key) is not None for key, _ in wanted)
        return {"shard": str(shard), "file": str(store.path), "generated": there, "wanted": len(wanted)}


def _scores(
    tasks: Sequence[TaskFile], made: Sequence[Generation], settings: Settings, sandbox: Sandbox | None
) -> list[Score]:
    answers = iter([answer_for(settings.preset, one) for one in made])
    grouped = [[list(islice(answers, settings.samples)) for _ in task.items] for task in tasks]
    return [SCORERS[task.kind](task, part, sandbox) for task, part in zip(tasks, grouped, strict=True)]


def _stable(score: Score) -> dict[str, Any]:
    """Return summary and rows without the addresses of objects that an exception may name."""
    rows = [row | {"detail": ADDRESS.sub("0x...", row["detail"])} if "detail" in row else row for row in score.rows]
    return {"summary": score.summary, "rows": rows}


def gold_of(task: TaskFile, sandbox: Sandbox | None) -> dict[str, Any] | None:
    """Return the gold ceiling's figures, None for a task that has no references to run."""
    if sandbox is None or not any(problem.canonical_solution is not None for problem in task.problems):
        return None
    return gold_ceiling(task, sandbox).summary


def robustness_of(tasks: Sequence[TaskFile], scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Return each perturbed task with the one it was made from: ours are paired by name, other files by their problems."""
    code = [(task, score) for task, score in zip(tasks, scores, strict=True) if task.kind == "code"]
    return [
        {"clean": clean.name, "perturbed": task.name, "perturbation": task.perturbation}
        | robustness_summary(before, after)
        for at, (task, after) in enumerate(code)
        for place, (clean, before) in enumerate(code)
        if clean is not task and _is_perturbed(task, clean, place < at)
    ]


def _is_perturbed(task: TaskFile, clean: TaskFile, is_later: bool) -> bool:
    """Return whether one task is a perturbed version of the other. Of two files with the same problems, the first is clean."""
    if task.perturbation is not None:
        return task.name == f"{clean.name}~{task.perturbation}"
    if clean.perturbation is not None or not is_later:
        return False
    known = {problem.task_id: problem for problem in clean.problems}
    pairs = [(known[problem.task_id], problem) for problem in task.problems if problem.task_id in known]
    # Ids alone may agree by chance, because many files just number their problems.
    same = sum(a.test == b.test or a.entry_point == b.entry_point for a, b in pairs)
    return 2 * same >= len(task.items) and any(a.prompt != b.prompt for a, b in pairs)
