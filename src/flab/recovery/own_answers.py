"""The original model's own answers to instructions: made, stored at once, and verified.

The first answer is greedy. Instructions with a wrong answer get sampled ones. Nothing that a model wrote runs outside the
sandbox.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flab.evaluation.prompts import sample_seed
from flab.evaluation.soundness import faults, refuse
from flab.evaluation.tasks import Problem
from flab.models.engines.protocol import Generation, Generator, Request
from flab.models.engines.store import Key, Shard, Store, fill, fingerprint
from flab.recovery.instructions import Instruction
from flab.recovery.strategies import GREEDY, Answer, Making
from flab.sandbox import Sandbox

TASK = "instructions"


def ask(
    generator: Generator,
    asked: Sequence[Instruction],
    making: Making,
    tries: int,
    sandbox: Sandbox | None,
    file: Path,
    facts: Mapping[str, Any],
    shard: Shard | None = None,
) -> tuple[dict[str, list[Answer]], dict[str, Any]]:
    """Return answers by ``task_id`` from the store in ``file``, and the progress of all shards. Makes missing answers.

    ``facts`` identify the model; together with the settings they decide which stored answers are read.
    """
    # These settings decide the answers; strategies share them.
    names = ("temperature", "top_p", "max_new_tokens", "batch_size", "seed")
    settings = {name: getattr(making, name) for name in names}
    with Store(file, fingerprint({**facts, "making": settings}), shard) as store:
        own = answer(store, generator, shard.part(asked) if shard is not None else asked, making, sandbox, tries)
        there = sum(store.get(*_key(one, GREEDY)) is not None for one in asked)
        return own, {"shard": str(shard), "file": str(store.path), "generated": there, "wanted": len(asked)}


def answer(
    store: Store,
    generator: Generator,
    asked: Sequence[Instruction],
    making: Making,
    sandbox: Sandbox | None,
    tries: int,
) -> dict[str, list[Answer]]:
    """Answer all instructions greedily, then sample answers to the failed ones until they pass or the tries run out."""
    own: dict[str, list[Answer]] = defaultdict(list)
    waiting = list(asked)
    for sample in range(1 + tries):
        wanted = [
            (
                _key(one, sample),
                Request(one.prompt, one.stop, sample_seed(making.seed, TASK, one.task_id, sample)),
            )
            for one in waiting
        ]
        if not wanted:
            break
        fill(store, generator, wanted, making.decoding(sample))
        made = [own_words(store.get(*key)) for key, _ in wanted]
        for one, verdict in zip(waiting, verify(waiting, made, sandbox, "Verifying answers"), strict=True):
            own[one.task_id].append(verdict)
        # Only instructions with a wrong answer are asked again. For one without a test, nothing could tell which of two
        # answers is better.
        waiting = [one for one in waiting if one.is_testable and not own[one.task_id][-1].right]
    return own


def _key(one: Instruction, sample: int) -> Key:
    """Return the key of an answer: it names the prompt and its stop strings, so a row that changes is asked again."""
    digest = hashlib.sha256("\0".join((one.prompt, *one.stop)).encode("utf-8", "surrogatepass")).hexdigest()
    return TASK, f"{one.task_id}-{digest[:12]}", sample


def own_words(made: Generation | None) -> str:
    """Return what the model wrote, with the line end that began the stop string; nothing if the length cut it off."""
    assert made is not None
    if made.finish_reason == "length" or not made.text.strip():
        return ""
    return made.text + ("\n" if made.finish_reason == "stop" else "")


def verify(
    asked: Sequence[Instruction], texts: Sequence[str], sandbox: Sandbox | None, title: str, source: str = "self"
) -> list[Answer]:
    """Run the answers that can be tested. An empty answer is wrong; one without a test is neither right nor wrong."""
    jobs = {
        at: job
        for at, (one, text) in enumerate(zip(asked, texts, strict=True))
        if one.is_testable and text.strip() and (job := one.job(text)) is not None
    }
    found = dict(zip(jobs, sandbox.run_many(list(jobs.values()), title), strict=True)) if sandbox and jobs else {}
    right = [found[at].passed if at in found else None for at in range(len(asked))]
    return [
        Answer(source, text, bool(passed) if one.is_testable or not text.strip() else None)
        for one, text, passed in zip(asked, texts, right, strict=True)
    ]


def outcomes(asked: Sequence[Instruction], own: Mapping[str, Sequence[Answer]]) -> dict[str, int]:
    """Count the instructions that the original answered right at once, right later, wrong, and without a test."""
    found: Counter[str] = Counter()
    for one in asked:
        answers = own[one.task_id]
        at = next((n for n, answer in enumerate(answers) if answer.right), None)
        untested = "untested" if answers[0].right is None else "untested, no answer"
        name = (
            untested
            if not one.is_testable
            else "wrong"
            if at is None
            else "right at once"
            if at == 0
            else "right later"
        )
        found[name] += 1
    return dict(found)


def sandbox_to_verify(asked: Sequence[Instruction], unsandboxed: bool) -> Sandbox | None:
    """Return the sandbox if any answer can be verified; DataError that names tests that would pass any answer."""
    if not any(one.is_testable for one in asked):
        return None
    sandbox = Sandbox.detect(unsandboxed)
    problems = [
        Problem(one.task_id, one.prompt if one.kind == "code" else "", one.entry_point, one.test)
        for one in asked
        if one.test is not None
    ]
    found = faults(problems, sandbox, "the instructions")
    places = {one.task_id: one.where for one in asked}
    refuse({places[task_id]: fault.text for task_id, fault in found.items()}, "instructions")
    return sandbox


def verify_references(asked: Sequence[Instruction], sandbox: Sandbox | None) -> dict[str, Answer]:
    """Return the data set's own answers, verified if that is possible."""
    known = [one for one in asked if one.reference is not None]
    answers = verify(known, [one.reference or "" for one in known], sandbox, "Verifying references", "reference")
    return {one.task_id: answer for one, answer in zip(known, answers, strict=True)}


def verdicts(answers: Mapping[str, Answer]) -> dict[str, int]:
    """Count the answers that are right, wrong, and without a test."""
    names = {True: "right", False: "wrong", None: "untested"}
    return dict(Counter(names[answer.right] for answer in answers.values()))
