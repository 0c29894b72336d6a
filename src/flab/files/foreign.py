"""Name a file by its first bytes, if it is one of those that people give by mistake, and say what to do instead."""

from __future__ import annotations

import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Foreign:
    """A kind of file that is not read: its name with an article, and the next step for a user who has text or rows in it."""

    what: str
    step: str

    def __str__(self) -> str:
        return f"{self.what}: {self.step}"


HEAD_BYTES = 512
TAR = slice(257, 262)  # where a tar archive names itself
GGUF = Foreign("a GGUF file of llama.cpp", "give text or rows, not a model")
SAFETENSORS = Foreign("a file of safetensors weights", "give text or rows, not a model")
PYTORCH = Foreign("a PyTorch file, which can run code", "save its rows as JSON lines")
PICKLE = Foreign("a Python pickle, which can run code", "save it as JSON lines")
OLD_PYTORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # before 1.6: a pickle of a magic number comes first
ZIP = Foreign("a zip archive", "unpack it first")
IMAGE = Foreign("an image", "give text")
UTF16 = Foreign("UTF-16 text", "save it as UTF-8")
WEB_PAGE = Foreign("a web page, perhaps of a failed download", "fetch the file itself")
KINDS = (
    *((b"GGUF" + bytes([version, 0]), GGUF) for version in range(1, 5)),
    (OLD_PYTORCH, PYTORCH),
    *((bytes([0x80, version]), PICKLE) for version in range(2, 6)),
    (b"\x28\xb5\x2f\xfd", Foreign("a Zstandard archive", "unpack it first, or pack it with gzip")),
    (b"\xfd7zXZ", Foreign("an xz archive", "unpack it first, or pack it with gzip")),
    (b"BZh", Foreign("a bzip2 archive", "unpack it first, or pack it with gzip")),
    (b"7z\xbc\xaf", Foreign("a 7z archive", "unpack it first")),
    (b"Rar!\x1a", Foreign("a RAR archive", "unpack it first")),
    (b"%PDF", Foreign("a PDF", "save its text as .txt")),
    (b"{\\rtf", Foreign("an RTF document", "save its text as .txt")),
    (b"\xd0\xcf\x11\xe0", Foreign("an old Office file (.xls, .doc)", "save a sheet as CSV, or a text as .txt")),
    (b"ARROW1", Foreign("an Arrow file", "save it as Parquet or JSON lines")),
    (b"\x93NUMPY", Foreign("a NumPy array", "save its rows as JSON lines")),
    (b"\x89HDF", Foreign("an HDF5 file", "save its rows as JSON lines")),
    (b"SQLite format 3", Foreign("a database", "save its rows as JSON lines")),
    (b"\x89PNG", IMAGE),
    (b"\xff\xd8\xff", IMAGE),
    (b"\x7fELF", Foreign("a program", "give text")),
    (b"\xff\xfe", UTF16),
    (b"\xfe\xff", UTF16),
    (b"version https://git-lfs", Foreign("a Git LFS pointer, not the file itself", "run git lfs pull")),
    (b"<!DOCTYPE html", WEB_PAGE),
    (b"<html", WEB_PAGE),
)
# Office files and PyTorch's are zip archives with a known file inside.
INSIDE_ZIP = (
    ("xl/workbook.xml", Foreign("an Excel workbook", "save the sheet with the rows as CSV")),
    ("word/document.xml", Foreign("a Word document", "save its text as .txt")),
    ("ppt/presentation.xml", Foreign("a PowerPoint presentation", "save its text as .txt")),
    ("META-INF/manifest.xml", Foreign("an OpenDocument file", "save a sheet as CSV, or a text as .txt")),
    ("data.pkl", PYTORCH),
    (".npy", Foreign("NumPy arrays", "save their rows as JSON lines")),
)


def foreign_file(path: Path) -> Foreign | None:
    """Return what a file is; None if it is none of these kinds, not a regular file, or not readable."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return None
        with path.open("rb") as handle:
            head = handle.read(HEAD_BYTES)
    except OSError:  # whoever reads it says why
        return None
    found = foreign_head(head)
    return _inside_zip(path) if found == ZIP else found


def foreign_head(head: bytes) -> Foreign | None:
    """Return what a file with these first bytes is; None if it is none of these kinds."""
    for magic, kind in KINDS:
        if head[: len(magic)].lower() == magic.lower():
            return kind
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return ZIP
    # A safetensors file begins with the length of its JSON header, whose upper bytes are zero.
    if head[5:10] == b'\0\0\0{"':
        return SAFETENSORS
    return Foreign("a tar archive", "unpack it first") if head[TAR] == b"ustar" else None


def _inside_zip(path: Path) -> Foreign:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return ZIP
    return next((kind for end, kind in INSIDE_ZIP if any(name.endswith(end) for name in names)), ZIP)
