"""Temporary names beside an output: locked while their process lives, and removed by the next run if it was killed."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


def temporary_name(path: Path) -> Path:
    """Return a new temporary name beside ``path``."""
    return path.with_name(f".{path.name}.flab-{secrets.token_hex(4)}.tmp")


def held_file(path: Path) -> tuple[Path, int]:
    """Create an empty temporary file beside ``path``. Returns it and its open, locked file descriptor."""

    def made(temporary: Path) -> int:
        return os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)

    return _held(path, made)


def held_folder(path: Path, mode: int = 0o777) -> tuple[Path, int]:
    """Create a temporary folder beside ``path``. Returns it and its open, locked file descriptor."""

    def made(temporary: Path) -> int:
        temporary.mkdir(mode)
        return os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)

    return _held(path, made)


def _held(path: Path, made: Callable[[Path], int], tries: int = 10) -> tuple[Path, int]:
    temporary = temporary_name(path)
    try:
        file = made(temporary)
    except FileNotFoundError:
        if tries == 1 or not path.parent.is_dir():
            raise
        # Another process swept the name before it was locked.
        return _held(path, made, tries - 1)
    # This waits for a sweep that is looking at the name. Without locks in the file system, nothing is locked.
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)
    if temporary.exists() or tries == 1:
        return temporary, file
    os.close(file)
    return _held(path, made, tries - 1)


def sweep(path: Path) -> None:
    """Remove what killed runs left beside ``path`` under temporary names, and put back an old folder that they had moved.

    A temporary name is locked as long as its process lives, so those of running ones stay.
    """
    for suffix in (".old", ".tmp"):
        for left in path.parent.glob(f".{glob.escape(path.name)}.flab-????????{suffix}"):
            with _abandoned(left) as abandoned:
                if not abandoned:
                    continue
                if suffix == ".old" and not path.exists():
                    left.rename(path)
                elif left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)


@contextlib.contextmanager
def _abandoned(path: Path) -> Iterator[bool]:
    """Yield whether the process that held a temporary name is gone; if so, the name is locked for the block."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        yield False
        return
    try:
        # If the lock can be had, the process that held it is gone. Process ids would not do: they are reused,
        # and another machine may share the disk.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except OSError:
        free = False
    try:
        yield free
    finally:
        os.close(file)
