"""Output files that appear whole or not at all, and the check of their place before the work."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from flab.errors import OptionError


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file; reading a pipe or a device would wait for ever, or never end.

    Raises:
        OSError: not there, not readable, or no regular file; ``strerror`` says which.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, not a file", str(path))
    return path.read_bytes()


def write_text(path: Path, text: str) -> None:
    """Replace a file whole, through a temporary name beside it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_file(path: Path, overwrite: bool = True) -> None:
    """Fail before the work, not after it.

    Raises:
        OptionError: a folder is there, none to hold it is, or the file exists and ``overwrite`` is off.
    """
    if path.is_dir() or not path.parent.is_dir():
        problem = "is a folder" if path.is_dir() else f"cannot be written: no folder {path.parent}"
        raise OptionError(f"--output {path} {problem}: give the name of a file in a folder that exists.")
    check_free(path, overwrite)


def check_free(path: Path, overwrite: bool) -> None:
    """OptionError where a file or folder is there that was not to be replaced."""
    if path.exists() and not overwrite:
        raise OptionError(f"the output {path} exists: pass --overwrite to replace it, or choose another.")


def check_outside(path: Path, source: Path) -> None:
    """OptionError where an output is the source model or lies in it."""
    if source.resolve() in (path.resolve(), *path.resolve().parents):
        raise OptionError(f"the output {path} is in the source model, which flab never changes: choose another.")
