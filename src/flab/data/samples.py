"""Calibration and corpus text: samples of rows and of source files, hashed, described. No torch, no tokens.

:mod:`flab.data.rows` recognises the content of a file, and :mod:`flab.data.forms` the meaning of a row. Nothing is skipped: a
row that cannot be used is an error.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flab import assets
from flab.data.forms import ANSWERS, NEEDED, Message, alpaca, chat_of, has_form, is_chat, spoken
from flab.data.mbpp import is_mbpp, problem_fields
from flab.data.rows import HOW, LINE_SUFFIXES, TABLE_SUFFIXES, TEXT_SUFFIXES, read_file, suffix_of
from flab.errors import DataError
from flab.files import read_regular
from flab.progress import say_once

BUNDLED = "bundled instruction samples"


@dataclass(frozen=True)
class Sample:
    """One calibration text: a prompt and its answer. Plain text has an empty prompt.

    A chat also has its ``messages``, for the model's template; ``prompt`` and ``completion`` hold them as plain text. In a
    template the completion may include its own end (``is_ended``), and the tokenizer's special tokens may not belong before
    the text (``special_tokens``).
    """

    prompt: str
    completion: str
    test: str | None = None
    entry_point: str | None = None
    task_id: str = ""
    messages: tuple[Message, ...] = ()
    is_ended: bool = False
    special_tokens: bool = True

    @property
    def text(self) -> str:
        """Prompt and completion as the model sees them."""
        return self.prompt + self.completion


@dataclass(frozen=True)
class Source:
    """The origin of samples, so that a plan can require the same data again."""

    name: str
    sha256: str

    def to_json(self) -> dict[str, str]:
        return {"path": self.name, "sha256": self.sha256}


def sha256_of(paths: Iterable[Path]) -> str:
    """Return one digest over the contents of the files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            data = read_regular(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error}); give a file.") from None
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()


def files_under(path: Path) -> list[Path]:
    """Return the file itself, or all files with rows, source code or plain text below a folder, sorted.

    Tables (``.json``, ``.csv``, ``.tsv``) in a folder count only if their first row has a known form; others are the settings
    of programs.

    Raises:
        DataError: the path is missing, or the folder has no such file.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist: {HOW}, or a folder of them.")
    if not path.is_dir():
        return [path]
    files = sorted(p for p in path.rglob("*") if p.is_file())
    tables = [p for p in files if suffix_of(p) in TABLE_SUFFIXES]
    # A folder of source code contains files such as package.json, which must not be taken for rows.
    left_out = {p for p in tables if not _is_data(p)}
    found = [p for p in files if suffix_of(p) in TEXT_SUFFIXES | LINE_SUFFIXES | TABLE_SUFFIXES and p not in left_out]
    if not found:
        raise DataError(f"{path} holds no rows and no source files (*.jsonl, *.py, *.js, ...): give another folder.")
    if left_out:
        names = ", ".join(sorted(str(p.relative_to(path)) for p in left_out)[:3])
        say_once(f"{path}: {len(left_out)} files hold no usable rows and are left out: {names}")
    return found


def _is_data(path: Path) -> bool:
    """Return whether the first row of a table has one of the known forms."""
    try:
        rows = read_file(path)
        return not isinstance(rows, str) and has_form(next(rows)[1])
    except (DataError, StopIteration):
        return False


def read_samples(path: Path) -> list[Sample]:
    """Return all samples of a file or folder.

    Raises:
        DataError: a file is missing, empty, not UTF-8 or malformed; names file and line.
    """
    samples = [sample for file in files_under(path) for sample in _samples_of(file)]
    if not samples:
        raise DataError(f"{path} is empty: expected rows with {NEEDED}, or source code.")
    return samples


def _samples_of(path: Path) -> list[Sample]:
    """Return the samples of one file: one for each row, or one for all of its source code."""
    found = read_file(path)
    if isinstance(found, str):
        return [Sample("", found, task_id=path.name)] if found.strip() else []
    return [sample_of(row, where, number) for number, (where, row) in enumerate(found, 1)]


def sample_of(row: Mapping[str, Any], where: str, number: int = 1) -> Sample:
    """Read one row, which is the ``number``-th of its file.

    Raises:
        DataError: its fields have no known form, or hold no text.
    """
    identity = str(next((row[name] for name in ("task_id", "id") if row.get(name) is not None), number))
    test = _field(row, "test", where) if row.get("test") is not None else None
    entry_point = _field(row, "entry_point", where) if row.get("entry_point") is not None else None
    if is_chat(row):
        messages = chat_of(row, where)
        # The last turn is the answer if it is the assistant's. A chat that ends with the user has no answer.
        answer = [messages.pop()] if messages[-1]["role"] == "assistant" else []
        prompt = "".join(f"{spoken(message)}\n\n" for message in messages)
        return Sample(prompt, "".join(map(spoken, answer)), test, entry_point, identity, (*messages, *answer))
    if row.get("instruction") is not None:
        asked, reply = alpaca(row, where)
        turns: list[Message] = [{"role": "user", "content": asked}]
        turns += [{"role": "assistant", "content": reply}] if reply is not None else []
        return Sample(f"{asked}\n\n", reply or "", test, entry_point, identity, tuple(turns))
    if "entry_point" not in row and is_mbpp(row):
        row = problem_fields(dict(row), where)
        test = row["test"]
        entry_point = row["entry_point"]
    if row.get("text") is not None and row.get("prompt") is None:
        return Sample("", _field(row, "text", where), task_id=identity)
    answer_name = next((name for name in ANSWERS if row.get(name) is not None), "canonical_solution")
    prompt, completion = (_field(row, name, where) for name in ("prompt", answer_name))
    return Sample(prompt, completion, test, entry_point, identity)


def _field(row: Mapping[str, Any], name: str, where: str) -> str:
    """Return the text of a field. Only an answer may be empty."""
    value = row.get(name)
    if not isinstance(value, str) or (not value and name != "completion"):
        got = "missing" if value is None else f"{value!r:.40}"
        raise DataError(f"{where}: field {name!r} is {got}, expected text. Rows hold {NEEDED}.")
    return value


def calibration_samples(path: Path | None) -> tuple[list[Sample], Source]:
    """Return the user's samples, or the bundled ones if ``path`` is None."""
    where = path if path is not None else assets.calibration_path()
    samples = read_samples(where)
    return samples, Source(str(where.resolve()) if path is not None else BUNDLED, sha256_of(files_under(where)))


def general_samples() -> tuple[list[Sample], Source]:
    """Return the running Python's standard library without the modules that are reserved for measuring."""
    files = assets.train_stdlib()
    samples = [
        Sample("", text, task_id=p.name)
        for p in files
        if (text := p.read_text(encoding="utf-8", errors="replace")).strip()
    ]
    # The sources differ from one Python to the next, so a plan has to name the version that it was made with.
    version = ".".join(map(str, sys.version_info[:3]))
    return samples, Source(f"standard library of Python {version}", sha256_of(files))
