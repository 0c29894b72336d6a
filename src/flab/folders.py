"""Output folders that appear whole or not at all: written under a temporary name, renamed at the end.

It knows nothing of models beyond what marks a folder as one.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from flab.errors import CheckpointError, OptionError
from flab.files import check_free, check_outside


@contextlib.contextmanager
def new_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary sibling folder that becomes ``path`` when the block ends well, and vanishes when it does not.

    Raises:
        OptionError: ``path`` exists and ``overwrite`` is off, or its parent cannot be written.
    """
    check_output(path, overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    except OSError as error:
        raise OptionError(f"cannot write beside {path} ({error.strerror}): choose another output folder.") from None
    try:
        temporary.chmod(0o755)
        yield temporary
        replace_folder(temporary, path)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path} ({error.strerror or error}): nothing was left behind. Free space and repeat."
        ) from None
    except Exception as error:
        if _is_disk_full(error):
            raise CheckpointError(
                f"cannot write {path} (no space left on device): nothing was left behind. Free space and repeat."
            ) from None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_disk_full(error: BaseException) -> bool:
    return isinstance(error, SafetensorError) and ("No space left" in str(error) or "os error 28" in str(error).lower())


def check_output(path: Path, overwrite: bool, source: Path | None = None) -> None:
    """Fail early, before hours of work, when the output is taken."""
    check_free(path, overwrite)
    if source is not None:
        check_outside(path, source)
    if path.exists() and path.is_dir() and any(path.iterdir()) and not (path / "config.json").exists():
        raise OptionError(f"{path} is a folder but no model: flab does not overwrite it. Choose another output.")


def replace_folder(temporary: Path, path: Path) -> None:
    """Rename ``temporary`` to ``path``; an old ``path`` goes only once the new one is whole."""
    if path.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent)) / "old"
        path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old.parent, ignore_errors=True)
    else:
        temporary.rename(path)
