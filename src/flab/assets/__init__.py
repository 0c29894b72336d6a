"""The files bundled with the package: the reference model, its problems, and the corpora it can be given.

Nothing here imports torch. The standard library lists are the running Python's own sources, split by a hash
of the module's path: the reference model was trained on one part and has never seen the other.
"""

from __future__ import annotations

import functools
import hashlib
import sysconfig
from pathlib import Path

HERE = Path(__file__).parent
HELD_OUT_PERCENT = 20
LARGEST_MODULE = 120_000  # bytes; above it are generated tables
SKIPPED_FOLDERS = {
    *("test", "tests", "idlelib", "idle_test", "lib2to3", "turtledemo", "site-packages", "dist-packages"),
    *("pydoc_data", "encodings", "ensurepip", "__pycache__"),
}


def model_path() -> Path:
    """Return the bundled reference model, a stock transformers folder."""
    return HERE / "model"


def problems_path() -> Path:
    """200 code-generation problems in the HumanEval format."""
    return HERE / "problems.jsonl"


def cot_path() -> Path:
    """100 chain-of-thought problems."""
    return HERE / "cot_test.jsonl"


def outputs_path() -> Path:
    """200 output-prediction problems in the CRUXEval format."""
    return HERE / "output_test.jsonl"


def calibration_path() -> Path:
    """Prompts and completions of the calibration split."""
    return HERE / "calibration.jsonl"


def recovery_path() -> Path:
    """Prompts and completions of the recovery split."""
    return HERE / "recovery.jsonl"


def quickstart_path() -> Path:
    """Return the recipe of ``flab demo``, which needs nothing but the files beside it."""
    return HERE / "quickstart.yml"


def held_out_stdlib() -> list[Path]:
    """Standard library sources that the reference model was not trained on."""
    return [path for path in _stdlib(_root()) if _is_held_out(path)]


def train_stdlib() -> list[Path]:
    """Standard library sources that the reference model was trained on."""
    return [path for path in _stdlib(_root()) if not _is_held_out(path)]


def _root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


@functools.cache  # a plan asks several times, and the folder also holds all installed packages
def _stdlib(root: Path) -> tuple[Path, ...]:
    """Return the usable modules in a stable order; platform-specific and very large files are left out."""
    found = (
        path
        for path in root.rglob("*.py")
        if not SKIPPED_FOLDERS & set(path.relative_to(root).parts)
        and not path.name.startswith("_sysconfigdata")
        and path.stat().st_size <= LARGEST_MODULE
    )
    return tuple(sorted(found))


def _is_held_out(path: Path) -> bool:
    name = path.relative_to(_root()).as_posix()
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 100 < HELD_OUT_PERCENT
