"""The content of a file, by its form: rows (JSON lines, a JSON array, CSV, TSV, Parquet), or source code and plain text.

Each row comes with its place. Text is kept as it is, including line ends and blanks inside a field. The name of a file only
decides what its content leaves open: whether text is code, and which sign separates the fields of a table. The meaning of a
row is not known here.
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

from flab.data.forms import NEEDED, has_form
from flab.data.unpack import PARQUET, decode, read_bytes
from flab.errors import DataError

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row]]
# Characters of a CSV field. The csv module's own limit is 131,072.
FIELD_LIMIT = 2**31 - 1
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")
CODE_SUFFIXES = set(
    ".py .pyi .c .h .cc .cpp .hpp .cs .go .java .js .jsx .ts .tsx .rs .rb .php .swift .kt .scala .sh .sql .lua .r .jl "
    ".pl".split()
)
TEXT_SUFFIXES = CODE_SUFFIXES | {".md", ".txt"}
LINE_SUFFIXES = {".jsonl", ".ndjson", ".parquet"}  # rows for sure
TABLE_SUFFIXES = {".json", ".csv", ".tsv"}  # rows, or the settings of a program
ROW_SUFFIXES = LINE_SUFFIXES | TABLE_SUFFIXES
FOLDER_SUFFIXES = ROW_SUFFIXES | {".txt", ".arrow", ".zip"}  # what a data set's folder may hold
PACKED = ".gz"
HALF_PAIR = re.compile("[\ud800-\udfff]")  # JSON can write half of a pair, which no tokenizer accepts
HOW = "give JSON lines, a JSON array, CSV, TSV or Parquet with rows, or source code and plain text under their usual suffix"


def suffix_of(path: Path) -> str:
    """Return the suffix in lower case. For a name that ends in ``.gz`` it is the suffix of the packed file."""
    name = path.name.lower()
    return Path(name.removesuffix(PACKED)).suffix


def read_file(path: Path) -> Rows | str:
    """Return the rows of a file, read as they are asked for, or its text if it is source code or plain text.

    Raises:
        DataError: the file is unreadable, malformed, or neither; says what it looks like.
    """
    data = read_bytes(path)
    if data.startswith(PARQUET):
        return _parquet_rows(path, data)
    text = decode(path, data)
    suffix = suffix_of(path)
    # Code may begin like JSON, so only rows that mean something are taken for rows.
    if suffix in CODE_SUFFIXES:
        return _rows_in_code(path, text) or text
    if text.lstrip()[:1] in ("{", "["):
        return _json_rows(path, text)
    separator = _separator(text, suffix)
    if separator is not None:
        return _table_rows(path, text, separator)
    if suffix in TEXT_SUFFIXES:
        return text
    if not text.strip():
        return iter(())
    if suffix in ROW_SUFFIXES:
        raise DataError(f"{path}:{_first_line(text)}: not JSON: it looks like plain text; {HOW}.")
    raise DataError(f"{path}: looks like plain text, and its name does not say what kind; {HOW} (.py, .txt, ...).")


def read_rows(source: str, split: str, limit: int | None) -> list[tuple[str, Row]]:
    """Return at most ``limit`` rows of a file, a folder or a hub data set with their places ("FILE:LINE", "ID row N").

    Raises:
        DataError: the file is missing or not readable, has no rows, or has a malformed one.
    """
    path = Path(source)
    if path.exists() and not path.is_dir():
        found = read_file(path)
        if isinstance(found, str):
            raise DataError(
                f"{path}: holds source code or plain text, not rows; give JSON lines, JSON, CSV or Parquet."
            )
        rows = found
    elif path.is_dir() and not any(suffix_of(file) in FOLDER_SUFFIXES for file in path.rglob("*")):
        raise DataError(
            f"{path}: a folder without any file of rows; give a file with rows, or the folder of a data set"
        )
    elif source.strip() and (path.is_dir() or is_hub_id(source)):
        rows = _hub_rows(source, split, limit)
    else:
        raise DataError(f"{source}: cannot be read (no such file); give a file with rows, or a hub data set id")
    return list(islice(rows, limit))


def is_hub_id(source: str) -> bool:
    """Return whether the text can be the id of a hub data set, with or without ``:CONFIG``."""
    suffix = suffix_of(Path(source))
    return bool(HUB_ID.fullmatch(source)) and suffix not in ROW_SUFFIXES | {".txt"}


def _first_line(text: str) -> int:
    """Return the number of the first line that is not blank."""
    return text[: len(text) - len(text.lstrip())].count("\n") + 1


def _rows_in_code(path: Path, text: str) -> Rows | None:
    """Return the rows in a file with a name of source code; None if it is source code."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        rows = list(_json_rows(path, text))
    except DataError:
        return None
    return iter(rows) if rows and has_form(rows[0][1]) else None


def _json_rows(path: Path, text: str) -> Rows:
    """Return rows of JSON lines, of one array, or of objects that span several lines."""
    first = _first_line(text)
    try:
        # A whole object on the first line means JSON lines. Anything else is one array, or objects that span
        # lines.
        value = _parsed(text.split("\n", first)[first - 1], path, first)
    except DataError:
        value = None  # it spans lines
    if isinstance(value, dict):
        _refuse_container(path, value, rest=text.split("\n", first)[first:])
        # Only a line feed ends a line, and blank lines are not rows.
        lines = ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())
        return (_object(_parsed(line, path, number), f"{path}:{number}") for number, line in lines)
    if text.lstrip().startswith("["):
        values = enumerate(_parsed(text, path), start=1)
        return (_object(value, f"{path}:item {number}") for number, value in values)
    return _object_rows(path, text)


def _parsed(text: str, path: Path, line: int | None = None) -> Any:
    """Return the value of a JSON text; DataError names the line of the mistake (``line`` if the text is a single one)."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{line or error.lineno}: not JSON ({error.msg}); each line must be one object"
        ) from None
    except (ValueError, RecursionError):
        raise DataError(
            f"{path}:{line or 1}: not JSON (nested too deeply, or a number too long); each line must be one object"
        ) from None


def _object_rows(path: Path, text: str) -> Rows:
    """Return rows of successive objects, each on any number of lines."""
    decoder = json.JSONDecoder()
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        number = text.count("\n", 0, at) + 1
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg}); each line must be one object") from None
        except (ValueError, RecursionError):
            raise DataError(f"{path}:{number}: not JSON (nested too deeply, or a number too long)") from None
        row = _object(value, f"{path}:{number}")
        _refuse_container(path, row[1], rest=[text[end:]])
        yield row
        at = end


def _object(value: Any, where: str) -> tuple[str, Row]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: got {type(value).__name__}, not an object; each row must be one object")
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:  # the parser takes a few levels more than the writer
        raise DataError(f"{where}: not a row (nested too deeply)") from None
    if half := HALF_PAIR.search(text):
        raise DataError(
            f"{where}: holds \\u{ord(half[0]):x}, half of a surrogate pair, which is not a character; remove it"
        )
    return where, value


def _refuse_container(path: Path, row: Row, rest: list[str]) -> None:
    """Refuse a single object: name the list in it that holds the rows, or say that it is a notebook."""
    if any(part.strip() for part in rest) or has_form(row):
        return
    if "cells" in row and "nbformat" in row:
        raise DataError(f"{path}: looks like a Jupyter notebook: export its code as .py.")
    lists = [name for name, value in row.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if lists:
        raise DataError(
            f"{path}: is a single object whose rows seem to be under {lists[0]!r}: save only that list, as JSON lines or array."
        )


def _separator(text: str, suffix: str) -> str | None:
    """Return the sign that separates the fields of a table; None if the text is not a table."""
    header = text.lstrip().partition("\n")[0]
    by_name = {".csv": ",", ".tsv": "\t"}.get(suffix)
    # A header counts only if its names are known. Otherwise any line of prose with a comma would be one.
    for sign in filter(None, (by_name, "\t", ",")):
        names = [name.strip().strip('"') for name in header.split(sign)]
        if len(names) > 1 and has_form(dict.fromkeys(names, "x")):
            return sign
    return by_name


def _table_rows(path: Path, text: str, separator: str) -> Rows:
    """Return rows of a CSV or TSV file with a header. An empty field counts as missing."""
    # The limit is global to the csv module, so it is put back afterwards.
    usual = csv.field_size_limit(FIELD_LIMIT)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        yield from _table_records(path, reader, "TSV" if separator == "\t" else "CSV")
    finally:
        csv.field_size_limit(usual)


def _table_records(path: Path, reader: Any, kind: str) -> Rows:
    header: list[str] | None = None
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{where}: not {kind} ({error}); quote each field that holds quotes or line ends"
            ) from error
        if not record:
            continue
        if header is None:
            header = [name.strip() for name in record]
            if twice := sorted({name for name in header if header.count(name) > 1}):
                raise DataError(f"{where}: the header names {', '.join(twice)} twice; each column needs its own name")
        elif len(record) != len(header):
            raise DataError(f"{where}: {len(record)} fields, the header has {len(header)}; quote fields with commas")
        else:
            yield where, {name: value or None for name, value in zip(header, record, strict=True)}


def _parquet_rows(path: Path, data: bytes) -> Rows:
    """Return rows of a Parquet file; a missing field is None."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(io.BytesIO(data))
        # Batch by batch, because a Parquet file unpacks to many times its size.
        for batch in table.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:row {number}", row
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: is not a complete Parquet file ({reason:.200}); fetch or write it again.") from None


def _hub_rows(source: str, split: str, limit: int | None) -> Rows:
    """Return rows of a hub data set ``ID`` or ``ID:CONFIG``, or of a local folder that ``datasets`` can load."""
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
            f"give a file with rows ({NEEDED}), or a hub id, ID:CONFIG where it has several"
        ) from error
    for number, row in enumerate(rows):
        yield f"{source} row {number}", row
