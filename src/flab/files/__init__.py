"""Files and folders in and out: regular files only; one gate for every output path; outputs that appear whole or not at all.

Every output passes the gate (:func:`check_file`, :func:`check_result`, :func:`check_folder`, :func:`check_place`) before the
work. No output replaces an input, lies in one or in a model's folder, or replaces anything else without ``--overwrite``. A
folder is only replaced if flab wrote everything in it. This module imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flab.errors import DataError, FlabError, OptionError, OutputError
from flab.files.temporary import held_file, held_folder, sweep, temporary_name

PathLike = str | os.PathLike[str]
# The files that flab writes into a model's folder. Of a source's other files, only legal texts and templates are copied.
LEGAL = re.compile(r"(LICEN[SC]E|NOTICE|COPYING|COPYRIGHT|USE_POLICY)[\w.-]*", re.IGNORECASE)
LEGAL_SUFFIXES = {"", ".txt", ".md", ".rst", ".pdf"}
TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "tokenizer.model",
)  # fmt: skip
OWN_FILES = ("plan.json", "kept_tokens.json", "proof.json", "recovery.json")
OWN_MARKS = ("plan.json", "proof.json")  # a folder without them was not written by flab
CARD = "README.md"
CARD_MARK = "<!-- written by flab report"
CONFIGS = ("config.json", "generation_config.json", "model.safetensors.index.json")
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
# Constants of renameat2(2).
RENAME_EXCHANGE = 2
AT_FDCWD = -100
NOT_KNOWN_HERE = (errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP)


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file; reading a pipe or a device would wait forever, or never end.

    Raises:
        OSError: the file is missing, not readable or not a regular file; ``strerror`` says which.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, not a file", str(path))
    return path.read_bytes()


# --- the gate ---


def check_file(path: Path, overwrite: bool = False, inputs: Iterable[PathLike] = ()) -> None:
    """Fail before the work if a file must not, or cannot, be written at ``path``.

    Raises:
        OptionError: a folder is there, or none to hold it; it is read, or lies in what is read or in a model's folder; or it
            exists and ``overwrite`` is off.
    """
    if path.is_dir() or not path.parent.is_dir():
        problem = "is a folder" if path.is_dir() else f"cannot be written: no folder {path.parent}"
        raise OptionError(f"the output {path} {problem}: give the name of a file in a folder that exists.")
    check_place(path, inputs)
    check_free(path, overwrite)
    if path.exists() and not path.is_file():
        raise OptionError(f"the output {path} is a pipe, a socket or a device: give the name of a file.")
    _check_writable(path)


def check_result(path: Path, overwrite: bool = False, inputs: Iterable[PathLike] = ()) -> None:
    """Check a file of results in the same way. It may replace an older one that flab wrote."""
    check_file(path, overwrite or is_result(path), inputs)


def is_result(path: Path) -> bool:
    """Return whether the file holds a JSON object that names the version of flab that wrote it."""
    try:
        value = read_json(path)
    except DataError:
        return False
    versions = value.get("versions")
    return "flab" in value or (isinstance(versions, dict) and "flab" in versions)


def check_folder(path: Path, overwrite: bool | None, inputs: Iterable[PathLike] = ()) -> None:
    """Fail before the work if a model's folder must not, or cannot, be written at ``path``.

    Raises:
        OptionError: it is an input, holds one, or lies in one or in a model's folder; it exists and ``overwrite`` is not true;
            or it holds files that flab did not write.
    """
    inputs = list(inputs)
    check_place(path, inputs)
    for source in _existing(inputs):
        if path.resolve() in source.resolve().parents:
            raise OptionError(f"the output {path} holds {source}, which is an input: choose another.")
    check_free(path, overwrite)
    if path.exists():
        _check_own(path, foreign_files)
    _check_writable(path)


def check_place(path: Path, inputs: Iterable[PathLike] = ()) -> None:
    """Raise OptionError if ``path`` is one of the inputs or lies in one, or lies in any model's folder."""
    target = path.resolve()
    for source in _existing(inputs):
        is_model = (source / "config.json").exists()
        name = "the source model, which flab never changes" if is_model else f"{source}, which is an input"
        # Resolved, so that a link into the model's folder is seen for what it is.
        if source.resolve() in target.parents or (is_model and source.resolve() == target):
            raise OptionError(f"the output {path} is in {name}: choose another.")
        if source.resolve() == target or (path.exists() and path.samefile(source)):
            raise OptionError(f"the output {path} is one of the inputs: choose another.")
    for folder in target.parents:
        if is_model_folder(folder):
            raise OptionError(f"the output {path} is in the folder of a model ({folder}): choose another place.")


def check_free(path: Path, overwrite: bool | None) -> None:
    """Raise OptionError if ``path`` exists and must not be replaced. None means that there is no option to replace it."""
    if path.exists() and not overwrite:
        way = "remove it" if overwrite is None else "pass `overwrite` to replace it"
        raise OptionError(f"the output {path} exists: {way}, or choose another.")


def check_space(path: Path, size_bytes: int) -> None:
    """Raise OutputError if the disk that is to hold ``path`` has less room than the output needs."""
    holder = next(parent for parent in path.resolve().parents if parent.is_dir())
    free = shutil.disk_usage(holder).free
    if free < size_bytes:
        raise OutputError(
            f"{path} needs about {size_bytes / 1e6:,.1f} MB and its disk has {free / 1e6:,.1f} MB left: free space, or "
            "choose another output."
        )


def is_model_folder(folder: Path) -> bool:
    """Return whether the folder holds a model: a config and weights."""
    if not (folder / "config.json").is_file():
        return False
    return any(path.suffix in (".safetensors", ".bin", ".gguf") for path in folder.iterdir())


def foreign_files(folder: Path) -> list[str]:
    """Return the names in a folder that flab did not write, or all of them if it did not write the folder."""
    names = sorted(path.name for path in folder.iterdir())
    if not all(mark in names for mark in OWN_MARKS):
        return names
    return [name for name in names if not _is_own(folder / name)]


def _is_own(path: Path) -> bool:
    """Return whether flab writes a file of this name into a model's folder."""
    if path.name == CARD:
        return path.is_file() and CARD_MARK in path.read_text(encoding="utf-8", errors="replace")
    known = path.name in (*CONFIGS, *TOKENIZER_FILES, *TEMPLATES, *OWN_FILES)
    return known or is_legal(path.name) or WEIGHTS.fullmatch(path.name) is not None


def is_legal(name: str) -> bool:
    """Return whether a file is a licence, a notice or a policy, which travel with a model."""
    return LEGAL.fullmatch(name) is not None and Path(name).suffix.lower() in LEGAL_SUFFIXES


def _check_own(path: Path, foreign: Callable[[Path], list[str]]) -> None:
    if not path.is_dir():
        raise OptionError(f"the output {path} is a file: choose another, or remove it.")
    if names := foreign(path):
        listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise OptionError(
            f"{path} holds files that flab did not write ({listed}): flab does not overwrite it. Move them, or choose another "
            "output."
        )


def _check_writable(path: Path) -> None:
    """Raise OptionError if the nearest folder that exists cannot take a new file."""
    holder = next(parent for parent in path.absolute().parents if parent.exists())
    if not holder.is_dir() or not os.access(holder, os.W_OK | os.X_OK):
        raise OptionError(f"cannot write {path}: no new files can be created in {holder}. Choose another output.")


def _existing(inputs: Iterable[PathLike]) -> list[Path]:
    """Return the inputs that exist locally, which hub ids do not."""
    return [path for path in (Path(one).expanduser() for one in inputs) if path.exists()]


# --- writing ---


def cannot_write(path: Path, error: OSError, kept: str = "") -> FlabError:
    """Return the error of a disk, with the file and what to do about it."""
    reason = error.strerror or str(error) or type(error).__name__
    return OutputError(f"cannot write {path} ({reason}){kept}. Free space on its disk, or choose another output.")


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole, through a temporary name beside it. Raises as :func:`new_file` does."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield an empty file beside ``path`` that becomes ``path`` if the block succeeds, and is removed if it fails.

    Leftovers of killed runs are removed.

    Raises:
        OutputError: the disk is full, or the place cannot be written.
    """
    temporary, held = None, -1
    try:
        sweep(path)
        temporary, held = held_file(path)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            os.close(held)


@contextlib.contextmanager
def new_folder(
    path: Path, overwrite: bool = False, foreign: Callable[[Path], list[str]] = foreign_files
) -> Iterator[Path]:
    """Yield a temporary sibling folder that becomes ``path`` if the block succeeds, and is removed if it fails.

    ``foreign`` returns the names in an old ``path`` that flab did not write; if there are any, the old folder stays.

    Raises:
        OptionError: ``path`` exists and ``overwrite`` is off, holds what flab did not write, or cannot be made.
        OutputError: the disk is full.
    """
    check_free(path, overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        temporary, held = held_folder(path)
    except OSError as error:
        raise OptionError(f"cannot write beside {path} ({error.strerror}): choose another output folder.") from None
    try:
        yield temporary
        if path.exists():
            _check_own(path, foreign)
        replace_folder(temporary, path)
    except OSError as error:
        raise cannot_write(path, error, ": nothing was left behind") from None
    except Exception as error:
        # safetensors says in an error of its own that the disk is full.
        text = str(error).lower()
        if type(error).__name__ == "SafetensorError" and ("no space left" in text or "os error 28" in text):
            full = OSError(errno.ENOSPC, "no space left on device")
            raise cannot_write(path, full, ": nothing was left behind") from None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(held)


@contextlib.contextmanager
def scratch_folder(path: Path | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``, or among the system's, for the block. Removes leftovers of killed runs."""
    path = path or Path(tempfile.gettempdir()) / "scratch"
    sweep(path)
    temporary, held = held_folder(path, 0o700)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(held)


def discard(folder: Path) -> None:
    """Remove a folder under a temporary name, so that a killed process leaves it whole or for :func:`sweep` to remove."""
    temporary = temporary_name(folder)
    folder.rename(temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(temporary: Path, path: Path) -> None:
    """Put ``temporary`` at ``path``. An old ``path`` gets the temporary name; it is never left half removed."""
    if not path.exists():
        temporary.rename(path)
        return
    try:
        # Where the system can exchange two names in one step, there is no moment without an output. Elsewhere
        # the old folder moves aside first; ``sweep`` puts it back if the process dies between the two renames.
        _exchange(temporary, path)
    except OSError as error:
        if error.errno not in NOT_KNOWN_HERE:
            raise
        old = temporary.with_suffix(".old")
        path.rename(old)
        try:
            temporary.rename(path)
        except BaseException:
            old.rename(path)
            raise
        old.rename(temporary)


def _exchange(one: Path, other: Path) -> None:
    """Exchange two names in one step. Raises OSError if the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))


def as_path(value: str | os.PathLike[str]) -> Path:
    """Return a path with ``~`` expanded."""
    return Path(value).expanduser()


def read_json(path: Path, otherwise: str = "give the folder of a finished run") -> dict[str, Any]:
    """Read a JSON object. If the file holds none, the DataError ends with ``otherwise``, which says what to do next."""
    try:
        value = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); {otherwise}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds a {type(value).__name__}, not an object; {otherwise}")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a file as a whole with an object."""
    write_text(path, json.dumps(value, indent=1) + "\n")
