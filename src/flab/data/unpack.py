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
from flab.files.foreign import HEAD_BYTES, Foreign, foreign_file, foreign_head

GZIP = b"\x1f\x8b"
PARQUET = b"PAR1"
# A file that unpacks to more than this, and to more than 200 times its size, is not read as text.
BOMB_BYTES = 64 * 2**20
BOMB_RATIO = 200


def read_bytes(path: Path) -> bytes:
    """Return the content of a regular file, unpacked if it is packed with gzip.

    Raises:
        DataError: the file is missing, unreadable, not a regular file, a damaged archive, one that unpacks to far too much, or
            of a known kind that is neither text nor rows.
    """
    # A model given by mistake may be larger than memory, so the first bytes are looked at before the rest is read.
    _refuse(path, foreign_file(path))
    try:
        data = read_regular(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); give a text file.") from None
    if not data.startswith(GZIP):
        return data
    data = _unzip(path, data)
    _refuse(path, foreign_head(data[:HEAD_BYTES]))
    return data


def _refuse(path: Path, found: Foreign | None) -> None:
    if found is not None:
        raise DataError(f"{path}: cannot be read: it looks like {found}.")


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
        DataError: the bytes are in another encoding, or of a binary file.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "binary" if b"\0" in data[:4096] else "in another encoding, e.g. Latin-1"
        raise DataError(
            f"{path}: cannot be read: it is not UTF-8 text (byte {error.start}), perhaps {kind}; save it as UTF-8."
        ) from None
