"""Rows of a task from a JSONL file, a CSV file or a hub data set, each with the place it came from.

It knows nothing of the kinds of task. Text is taken as it stands: line ends and blanks inside a field are kept.
A row that cannot be read is an error that names file and line.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from flab.errors import DataError

Row = dict[str, Any]
FIELD_LIMIT = 2**31 - 1  # characters of a CSV field; the csv module's own limit is 131072
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")
FILE_SUFFIXES = (".jsonl", ".csv", ".json", ".txt")


def read_rows(source: str, split: str, limit: int | None) -> list[tuple[str, Row]]:
    """Return at most ``limit`` rows with their places ("FILE:LINE", or "ID row N").

    Raises:
        DataError: nothing there, not readable, or a malformed row.
    """
    path = Path(source)
    if path.is_file():
        rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _jsonl_rows(path)
    elif source.strip() and (path.is_dir() or is_hub_id(source)):
        rows = _hub_rows(source, split, limit)
    else:
        raise DataError(f"{source}: cannot be read (no such file); give a JSONL or CSV file, or a hub data set id")
    return list(islice(rows, limit))


def is_hub_id(source: str) -> bool:
    """Whether the text can be the id of a hub data set, with or without ``:CONFIG``."""
    return bool(HUB_ID.fullmatch(source)) and not source.lower().endswith(FILE_SUFFIXES)


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a JSONL or CSV file in UTF-8") from error


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Rows of a JSONL file; blank lines are not rows."""
    for number, line in enumerate(_text_of(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", None) or "nested too deeply, or a number too long"
            raise DataError(f"{where}: not JSON ({reason}); each line is one object") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: got {type(row).__name__}, not an object; each line is one object")
        yield where, row


def _csv_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Rows of a CSV file with a header; an empty field is a missing one."""
    usual = csv.field_size_limit(FIELD_LIMIT)
    try:
        yield from _csv_records(path, csv.reader(io.StringIO(_text_of(path), newline=""), strict=True))
    finally:
        csv.field_size_limit(usual)


def _csv_records(path: Path, reader: Any) -> Iterator[tuple[str, Row]]:
    header: list[str] | None = None
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{where}: not CSV ({error}); quote each field that holds quotes or line ends") from error
        if not record:
            continue
        if header is None:
            header = [name.strip() for name in record]
            _check_header(header, where)
        elif len(record) != len(header):
            raise DataError(f"{where}: {len(record)} fields, the header has {len(header)}; quote fields with commas")
        else:
            yield where, {name: value or None for name, value in zip(header, record, strict=True)}


def _check_header(header: list[str], where: str) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{where}: the header names {', '.join(twice)} twice; each column has a name of its own")


def _hub_rows(source: str, split: str, limit: int | None) -> Iterator[tuple[str, Row]]:
    """Rows of a hub data set ``ID`` or ``ID:CONFIG``, or of a local folder that ``datasets`` can load."""
    import datasets

    identity, _, config = (source, "", "") if Path(source).is_dir() else source.partition(":")
    try:
        table = datasets.load_dataset(identity, config or None, split=split)
        chosen = table.select(range(min(limit, len(table)))) if limit is not None else table
        rows = [dict(row) for row in chosen]
    except Exception as error:  # datasets raises its own errors, those of huggingface_hub, of pyarrow and of Python
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(
            f"{source}: the data set's split {split!r} cannot be loaded ({reason}); "
            "give a JSONL or CSV file, or a hub id, ID:CONFIG where it has several"
        ) from error
    for number, row in enumerate(rows):
        yield f"{source} row {number}", row
