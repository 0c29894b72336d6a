"""Make a training file: decontaminate, answer, verify, choose, deduplicate and balance, and count each step.

Answers are kept in ``OUT.generations.jsonl`` as they are made, so a stopped run continues and another strategy reuses them.
The rows and their sidecar ``OUT.meta.json`` appear whole or not at all. torch is imported when the model is opened, after
the files were read.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flab.data.contamination import holding, tokens_of
from flab.data.samples import read_samples, sha256_of
from flab.errors import DataError, OptionError
from flab.evaluation import evaluate
from flab.evaluation.evaluate import read_tasks, text_of
from flab.files import check_file, check_place, write_json, write_text
from flab.models.engines.store import Shard
from flab.models.options import Options
from flab.recovery.instructions import Instruction, instructions_of, read_asked
from flab.recovery.own_answers import ask, outcomes, sandbox_to_verify, verdicts, verify_references
from flab.recovery.own_texts import write_texts
from flab.recovery.strategies import STRATEGIES, Answer, Known, Making
from flab.sandbox import Sandbox
from flab.version import __version__


def make_data(
    model: str | Path,
    instructions: Sequence[str | Path],
    out: str | Path,
    making: Making | None = None,
    options: Options | None = None,
    against: Sequence[str | Path] = (),
    text: Sequence[str | Path] = (),
    limit: int | None = None,
    shard: str | None = None,
) -> dict[str, Any]:
    """Write the training rows to ``out``; returns the sidecar. With ``shard`` only that part of the answers is made.

    Args:
        model: the original, which writes the answers.
        instructions: files of instructions, see ``flab.recovery.instructions``.
        against: evaluation files; instructions and texts that overlap with them are left out.
        text: plain text or source files, for continued pre-training.

    Raises:
        DataError, OptionError, CheckpointError, SandboxError
    """
    making = making or Making()
    options = options or Options()
    out = Path(out)
    part = _part(shard, making)
    strategy = STRATEGIES[making.strategy]
    _check_out(out, options.overwrite or part is not None, (model, *instructions, *text, *against))
    problems = problems_of(against)
    plain = [Instruction(str(path), "text", sample.text) for path in text for sample in read_samples(Path(path))]
    given = read_asked(instructions, limit)
    subject = evaluate.open_subject(model, options)
    asked, texts, steps = _without_evaluation(instructions_of(given, subject.render) + plain, problems)
    sandbox = sandbox_to_verify(asked, options.unsandboxed)
    facts = {"model": subject.identity["sha256"], "dtype": subject.identity["dtype"], "flab": __version__}
    own: dict[str, list[Answer]] = {}
    written: list[dict[str, Any]] = []
    file = out.with_suffix(".generations.jsonl")
    progress = dict[str, Any]()
    if strategy.asks:
        tries = making.tries if strategy.tries else 0
        own, progress = ask(subject.generator, asked, making, tries, sandbox, file, facts, part)
        steps.append(count("answer", asked, **({} if part else outcomes(asked, own))))
    if making.own_texts:
        made = write_texts(subject.generator, asked, making, file, facts, subject.render, part)
        written, left_out = own_rows(made, problems)
        steps.append(count("write own texts", written, unended=making.own_texts - len(made), contaminated=left_out))
    if part is not None:
        return progress
    rows, more = target_rows(asked, own, written, texts, problems, making, sandbox)
    steps += more
    if not rows:
        raise DataError(f"{', '.join(map(str, instructions))}: nothing is left to train on: {json.dumps(steps)}")
    files = {"instructions": instructions, "against": against, "text": text}
    facts["model_path"] = subject.identity["path"]
    inputs = {name: _digests(paths) for name, paths in files.items()} | {"limit": limit, "making": asdict(making)}
    level = sandbox.level if sandbox is not None else None
    meta = {"format": 1, **facts, **inputs, "sandbox": level, "steps": steps, **totals(rows)}
    _write(out, rows, meta)
    return meta | {"output": str(out)}


def _without_evaluation(
    asked: list[Instruction], problems: Sequence[tuple[str, str]]
) -> tuple[list[Instruction], list[str], list[dict[str, Any]]]:
    """Leave out what overlaps with ``problems``; return the instructions, the plain texts and the counts."""
    steps = [count("read", asked)]
    kept, left_out = decontaminate(asked, problems)
    steps.append(count("decontaminate", kept, contaminated=left_out))
    texts = [one.prompt for one in kept if one.kind == "text"]
    if texts:
        kept = [one for one in kept if one.kind != "text"]
        steps.append(count("set text aside", kept, text=len(texts)))
    return kept, texts, steps


def target_rows(
    asked: Sequence[Instruction],
    own: Mapping[str, Sequence[Answer]],
    written: Sequence[dict[str, Any]],
    texts: Sequence[str],
    problems: Sequence[tuple[str, str]],
    making: Making,
    sandbox: Sandbox | None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Turn answers into rows: verify the references, choose, deduplicate, balance, add text. Returns the counts too."""
    references = verify_references(asked, sandbox)
    steps = [count("verify references", asked, **verdicts(references))]
    rows, taken = choose(asked, own, references, making)
    steps.append(count("choose", rows, **taken))
    if problems:
        rows, left_out = own_rows(rows, problems)
        steps.append(count("decontaminate answers", rows, contaminated=left_out))
    rows, doubles = deduplicate([*rows, *written])
    steps.append(count("deduplicate", rows, doubles=doubles))
    rows, surplus = balance(rows, making)
    steps.append(count("balance", rows, surplus=surplus))
    if texts:
        rows = add_text(rows, texts, making)
        steps.append(count("add text", rows))
    return rows, steps


def totals(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the number of rows, in all, by kind and by source."""
    kinds, sources = (dict(Counter(row[name] for row in rows)) for name in ("kind", "source"))
    return {"rows": len(rows), "kinds": kinds, "sources": sources}


def _check_out(out: Path, overwrite: bool, read: Sequence[str | Path]) -> None:
    # Both names are checked, because data.json has the same sidecar as data.jsonl.
    for file in (out, out.with_suffix(".meta.json")):
        check_file(file, overwrite, read)
    check_place(out.with_suffix(".generations.jsonl"), read)


def _part(shard: str | None, making: Making) -> Shard | None:
    part = Shard.parse(shard) if shard is not None else None
    if part is not None and not STRATEGIES[making.strategy].asks:
        raise OptionError(f"`shard` {part}: strategy {making.strategy} asks the model nothing; leave `shard` out.")
    return part


def _digests(paths: Sequence[str | Path]) -> list[dict[str, str | None]]:
    """Return paths with the digest of the file, or of all files in the folder; None for a hub id."""
    found = {}
    for path in map(Path, paths):
        found[str(path)] = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    return [{"path": path, "sha256": sha256_of(files) if files else None} for path, files in found.items()]


def count(step: str, rows: Sequence[Any], **more: int) -> dict[str, Any]:
    """Return one line of the sidecar: how many are left after a step, and what it found."""
    return {"step": step, "left": len(rows), **more}


def problems_of(against: Sequence[str | Path]) -> list[tuple[str, str]]:
    """Return names and texts of all problems of the evaluation files."""
    tasks = read_tasks([str(path) for path in against], None, (), 0) if against else []
    return [(f"{task.name}/{item.task_id}", text_of(item)) for task in tasks for item in task.items]


def decontaminate(asked: list[Instruction], problems: Sequence[tuple[str, str]]) -> tuple[list[Instruction], int]:
    """Leave out texts with a whole evaluation problem or a fifth of its 13-grams (``flab.data.contamination``)."""
    found = holding(problems, [one.text() for one in asked])
    return [one for at, one in enumerate(asked) if at not in found], len(found)


def own_rows(written: list[dict[str, Any]], problems: Sequence[tuple[str, str]]) -> tuple[list[dict[str, Any]], int]:
    """Return what the original wrote, without rows that contain an evaluation problem it remembered."""
    found = holding(problems, [row["prompt"] + row["completion"] for row in written])
    return [row for at, row in enumerate(written) if at not in found], len(found)


def choose(
    asked: Sequence[Instruction], own: Mapping[str, Sequence[Answer]], references: Mapping[str, Answer], making: Making
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return the rows that the strategy chooses, how many instructions gave none, and the counts by source."""
    rows: list[dict[str, Any]] = []
    found: Counter[str] = Counter()
    for one in asked:
        known = Known(own.get(one.task_id, ()), references.get(one.task_id), one.is_testable, making.untested)
        chosen = [answer for answer in STRATEGIES[making.strategy].choose(known) if answer.text.strip()]
        found.update(answer.source for answer in chosen)
        found["dropped"] += not chosen
        rows += [_row(one, answer) for answer in chosen]
    return rows, dict(found)


def _row(one: Instruction, answer: Answer) -> dict[str, Any]:
    row = {
        "task_id": one.task_id,
        "kind": one.kind,
        "prompt": one.prompt,
        "completion": answer.text,
        "source": answer.source,
        "verified": answer.right,
    }
    return row | ({"test": one.test, "entry_point": one.entry_point} if one.kind == "code" else {})


def deduplicate(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """Keep the first of rows that differ only in case, white space and quotes."""
    first: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        first.setdefault(tuple(tokens_of(row["prompt"] + row["completion"])), row)
    return list(first.values()), len(rows) - len(first)


def balance(rows: Sequence[dict[str, Any]], making: Making) -> tuple[list[dict[str, Any]], int]:
    """Keep as many rows as the shares of the kinds allow, drawn by seed, in their order. Drops kinds not named."""
    if not making.mix:
        return list(rows), 0
    by_kind = {kind: [at for at, row in enumerate(rows) if row["kind"] == kind] for kind, _ in making.mix}
    # The kind that is scarcest for its share decides how many rows there can be in all.
    total = sum(weight for _, weight in making.mix)
    size = min(len(by_kind[kind]) * total / weight for kind, weight in making.mix)
    if not size:
        missing = [kind for kind, found in by_kind.items() if not found]
        raise DataError(f"`mix`: no row of kind {', '.join(missing)} is left; take it out of the mix.")
    kept: set[int] = set()
    for kind, weight in making.mix:
        kept.update(random.Random(making.seed).sample(by_kind[kind], round(size * weight / total)))
    return [row for at, row in enumerate(rows) if at in kept], len(rows) - len(kept)


def add_text(rows: Sequence[dict[str, Any]], texts: Sequence[str], making: Making) -> list[dict[str, Any]]:
    """Add plain text after the rows, drawn by seed, until it makes up the wanted share of all characters."""
    # Plain text is a share s of all characters: with R characters of rows that is R * s / (1 - s).
    room = (
        sum(len(row["prompt"]) + len(row["completion"]) for row in rows) * making.text_share / (1 - making.text_share)
    )
    order = list(dict.fromkeys(texts))
    chosen = []
    used = 0
    random.Random(making.seed).shuffle(order)
    for text in order:
        if rows and used >= room:
            break
        chosen.append(text[: int(room - used)] if rows else text)
        used += len(text)
    return [
        *rows,
        *({"kind": "text", "source": "text", "verified": None, "text": text} for text in chosen if text.strip()),
    ]


def _write(out: Path, rows: Sequence[dict[str, Any]], meta: Mapping[str, Any]) -> None:
    """Write the sidecar, then the rows, so that there are never rows without it."""
    write_json(out.with_suffix(".meta.json"), meta)
    write_text(out, "".join(json.dumps(row) + "\n" for row in rows))
