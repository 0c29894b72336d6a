"""Recognise a finished run: the same command then answers from its folder, before anything is loaded.

``run.json`` keeps a digest of the question (:func:`asked`) and of ``results.json``. A model's files are identified by name,
size and time of change, without reading them. A copied model is therefore measured again, but its stored answers are found.
This module imports neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flab.errors import FlabError
from flab.evaluation.record import RESULTS, RUN
from flab.evaluation.tasks import TaskFile, parse_task_argument
from flab.files import PathLike, as_path, read_json, write_json
from flab.models.options import Options
from flab.version import __version__

ASKED = "asked_sha256"
ANSWERED = "results_sha256"
FINISHED = "{} is finished: these are its results; nothing was run again"
MAKERS = ("torch", "transformers", "tokenizers", "vllm")
GPU = Path("/dev/nvidia0")  # the device that auto chooses may have changed
# The files of a model that name the data that it was fitted to.
SAYS_DATA = (("plan.json", ("calibration", "path")), ("recovery.json", ("data",)))


def asked(
    model: PathLike, tasks: Any, settings: Any, options: Options, against_data: Sequence[PathLike], **more: Any
) -> str | None:
    """Return the digest of a question: the model, the tasks, all settings, and the versions of the libraries.

    The arguments are those of :func:`flab.evaluate`. Returns None if the model or a task is not a local file, because the
    content behind a hub id may have changed.
    """
    tasks = [tasks] if isinstance(tasks, str | os.PathLike | TaskFile) else list(tasks)
    if any(isinstance(task, TaskFile) for task in tasks):
        return None
    files = [
        as_path(model),
        *(as_path(parse_task_argument(str(task))[1]) for task in tasks),
        *map(as_path, against_data),
    ]
    if not all(file.exists() for file in files):
        return None
    files += fitted_to(files[0])
    # Everything that can change an answer or its score, including the versions of the libraries.
    question = {"settings": asdict(settings), "options": asdict(options), "gpu": GPU.exists(), **more}
    made_by = [__version__, *(installed(name) for name in MAKERS)]
    content = [question, made_by, [_stamps(file) for file in files], [str(task) for task in tasks]]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def fitted_to(model: Path) -> list[Path]:
    """Return the data files that a pruned or recovered model's own files name, if they exist."""
    found = []
    for name, keys in SAYS_DATA:
        try:
            value: Any = read_json(model / name)
            for key in keys:
                value = value[key]
            found.append(Path(value))
        except (FlabError, KeyError, TypeError):
            continue
    return [path for path in found if path.exists()]


def installed(name: str) -> str | None:
    """Return the version of a library, or None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _stamps(path: Path) -> list[tuple[str, int, int]]:
    """Return the name, size and time of change of a file, or of all files in a folder."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    stats = [(str(file.resolve()), file.stat()) for file in files]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def finished_run(folder: Path, digest: str | None) -> dict[str, Any] | None:
    """Return the results in a run's folder if they answer exactly this question, else None."""
    if digest is None or not (folder / RUN).is_file() or not (folder / RESULTS).is_file():
        return None
    try:
        record = read_json(folder / RUN)
        same = record.get(ASKED) == digest and record.get(ANSWERED) == _sha256(folder / RESULTS)
        return read_json(folder / RESULTS) if same else None
    except FlabError:
        return None


def remember(folder: Path, digest: str | None) -> None:
    """Record in a finished run's folder which question its results answer."""
    if digest is not None:
        write_json(folder / RUN, read_json(folder / RUN) | {ASKED: digest, ANSWERED: _sha256(folder / RESULTS)})


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
