"""Read the bytes or the text of a regular file. Unpack and decode it, or refuse it and say what it looks like.

:mod:`flab.data.rows` reads the rows.
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

from flab.errors import DataError
from flab.files import read_regular

GZIP = b"\x1f\x8b"
PARQUET = b"PAR1"
# The first bytes of what people give by mistake, and what to do instead.
FOREIGN = (
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive: unpack it first, or pack it with gzip"),
    (b"\xfd7zXZ", "an xz archive: unpack it first, or pack it with gzip"),
    (b"BZh", "a bzip2 archive: unpack it first, or pack it with gzip"),
    (b"%PDF", "a PDF: save its text as .txt"),
    (b"ARROW1", "an Arrow file: save it as Parquet or JSON lines"),
    (b"SQLite format 3", "a database: save its rows as JSON lines"),
    (b"\x80\x04", "a Python pickle, which can run code: save it as JSON lines"),
    (b"\x7fELF", "a program: give text"),
    (b"\xff\xfe", "UTF-16 text: save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text: save it as UTF-8"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run git lfs pull"),
    (b"<!DOCTYPE html", "a web page, perhaps of a failed download: fetch the file itself"),
    (b"<html", "a web page, perhaps of a failed download: fetch the file itself"),
)
# A file that unpacks to more than this, and to more than 200 times its size, is not read as text.
BOMB_BYTES = 64 * 2**20
BOMB_RATIO = 200


def read_bytes(path: Path) -> bytes:
    """Return the content of a regular file, unpacked if it is packed with gzip.

    Raises:
        DataError: the file is missing, unreadable, not a regular file, a damaged archive, or one that unpacks to far too much.
    """
    try:
        data = read_regular(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); give a text file.") from None
    return _unzip(path, data) if data.startswith(GZIP) else data


def _unzip(path: Path, data: bytes) -> bytes:
    limit = max(BOMB_BYTES, BOMB_RATIO * len(data))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
            # One byte more than allowed tells a file of exactly the limit from a larger one, without unpacking
            # the rest.
            found = packed.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: is damaged or truncated ({error}); pack or fetch it again.") from None
    if len(found) > limit:
        raise DataError(f"{path}: unpacks to more than {limit >> 20} MiB; unpack it first if it is what you want.")
    return found


def decode(path: Path, data: bytes) -> str:
    """Return the text of bytes in UTF-8, without a byte order mark; line ends stay as they are.

    Raises:
        DataError: the bytes are in another encoding, an archive or a binary file; says what they look like.
    """
    for magic, what in FOREIGN:
        if data[: len(magic)].lower() == magic.lower():
            raise DataError(f"{path}: cannot be read: it looks like {what}.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "binary" if b"\0" in data[:4096] else "in another encoding, e.g. Latin-1"
        raise DataError(
            f"{path}: cannot be read: it is not UTF-8 text (byte {error.start}), perhaps {kind}; save it as UTF-8."
        ) from None
