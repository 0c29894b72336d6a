"""Calibration and corpus text: read from files, hashed, described. No torch, no tokens.

A calibration file is JSONL (``prompt`` with ``completion`` or ``canonical_solution``, optional ``test`` and
``entry_point``; or ``text``) or a plain source file. Nothing is skipped: a row that cannot be used is an error.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flab import assets
from flab.errors import DataError

SOURCE_SUFFIXES = set(
    ".py .pyi .c .h .cc .cpp .hpp .cs .go .java .js .jsx .ts .tsx .rs .rb .php .swift .kt .scala .sh .sql .lua .r .jl "
    ".pl .md .txt".split()
)
BUNDLED = "bundled instruction samples"


@dataclass(frozen=True)
class Sample:
    """One calibration text: what is asked and what is answered; plain text has an empty prompt."""

    prompt: str
    completion: str
    test: str | None = None
    entry_point: str | None = None
    task_id: str = ""

    @property
    def text(self) -> str:
        """Prompt and completion as the model sees them."""
        return self.prompt + self.completion


@dataclass(frozen=True)
class Source:
    """Where samples came from, so that a plan can demand the same data again."""

    name: str
    sha256: str

    def to_json(self) -> dict[str, str]:
        return {"path": self.name, "sha256": self.sha256}


def sha256_of(paths: Iterable[Path]) -> str:
    """One digest over the contents of the files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def files_under(path: Path) -> list[Path]:
    """The file itself, or every source or JSONL file below a folder, sorted.

    Raises:
        DataError: nothing there, or no such file in the folder.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path} does not exist: give a JSONL file, a source file or a folder of them.")
    found = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in SOURCE_SUFFIXES | {".jsonl"})
    if not found:
        raise DataError(f"{path} holds no JSONL and no source files (*.py, *.js, ...): give another folder.")
    return found


def read_samples(path: Path) -> list[Sample]:
    """All samples of a file or folder.

    Raises:
        DataError: missing, empty, not UTF-8, or malformed; names file and line.
    """
    samples = [sample for file in files_under(path) for sample in _read_file(file)]
    if not samples:
        raise DataError(f"{path} is empty: expected JSONL rows with prompt + completion or text, or source code.")
    return samples


def _read_file(path: Path) -> list[Sample]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}): expected JSONL or source code.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    if path.suffix.lower() != ".jsonl":
        return [Sample("", text, task_id=path.name)] if text.strip() else []
    return [_row(line, path, number) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _row(line: str, path: Path, number: int) -> Sample:
    where = f"{path}, line {number}"
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}).") from None
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: a {type(row).__name__}, expected an object with prompt + completion, or text.")
    if "text" in row and "prompt" not in row:
        return Sample("", _field(row, "text", where), task_id=str(row.get("task_id", number)))
    answer = "completion" if "completion" in row else "canonical_solution"
    test = _field(row, "test", where) if row.get("test") is not None else None
    entry_point = _field(row, "entry_point", where) if row.get("entry_point") is not None else None
    identity = str(row.get("task_id", number))
    return Sample(_field(row, "prompt", where), _field(row, answer, where), test, entry_point, identity)


def _field(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or (not value and name != "completion"):
        got = "missing" if value is None else f"{value!r:.40}"
        raise DataError(
            f"{where}: field {name!r} is {got}, expected text. "
            "Rows hold prompt + completion (or canonical_solution), or text."
        )
    return value


def calibration_samples(path: Path | None) -> tuple[list[Sample], Source]:
    """The user's samples, or the bundled ones where ``path`` is None."""
    where = path if path is not None else assets.calibration_path()
    samples = read_samples(where)
    return samples, Source(str(where.resolve()) if path is not None else BUNDLED, sha256_of(files_under(where)))


def general_samples() -> tuple[list[Sample], Source]:
    """The running Python's standard library, less the modules kept apart to measure on."""
    files = assets.train_stdlib()
    samples = [
        Sample("", text, task_id=p.name)
        for p in files
        if (text := p.read_text(encoding="utf-8", errors="replace")).strip()
    ]
    version = ".".join(map(str, sys.version_info[:3]))
    return samples, Source(f"standard library of Python {version}", sha256_of(files))
