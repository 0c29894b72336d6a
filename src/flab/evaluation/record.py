"""A run's folder and its files, and whether the run in it is finished: the same command then answers from the folder, before
anything is loaded. No torch.

``generations.jsonl`` grows as answers are made. ``run.json`` records what was done, when and on which machine, and digests of
the question (:func:`asked`) and of ``results.json``. That file holds the scores, and nothing that differs between a resumed
and an uninterrupted run. A model's files are identified by name, size and time of change, without reading them. A copied
model is therefore measured again, but its stored answers are found.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flab.errors import DataError, FlabError
from flab.evaluation.tasks import TaskFile, parse_task_argument
from flab.files import PathLike, as_path, read_json, write_json
from flab.models.options import Options
from flab.progress import say
from flab.version import __version__

GENERATIONS = "generations.jsonl"
RUN = "run.json"
RESULTS = "results.json"
NOT_IDENTITY = {"path"}  # the model's path does not change its answers


def open_run(folder: Path, facts: Mapping[str, Any]) -> None:
    """Create the folder and its ``run.json``. Prints a line if it holds a run with other settings.

    Raises:
        DataError: it cannot be created, or it holds something else.
    """
    check_run_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be created ({error.strerror}); give another folder.") from None
    before = read_json(folder / RUN) if (folder / RUN).is_file() else None
    if before is not None and before.get("fingerprint") != facts["fingerprint"]:
        changed = ", ".join(changes(before, facts)) or "the tasks"
        say(f"{folder} holds a run that differs in {changed}: its answers stay in {GENERATIONS} and are not used")
    # The record of the same run is kept, because it contains the time at which the run began.
    if before is None or before.get("fingerprint") != facts["fingerprint"]:
        write_json(folder / RUN, run_json(facts, {}, None))


def check_run_folder(folder: Path) -> None:
    """Fail before the work unless a run's folder is new, empty, or holds a run."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; give a folder for the run, or a name that ends in .json")
    known = any((folder / name).exists() for name in (RUN, GENERATIONS))
    if folder.is_dir() and not known and any(path.suffix != ".tmp" for path in folder.iterdir()):
        raise DataError(f"{folder} is a folder but holds no run; give a new folder")


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the names of the settings in which two runs differ."""
    found = [] if before.get("generator") == after.get("generator") else ["generator"]
    for part in ("settings", "identity", "versions"):
        old = before.get(part) or {}
        new = after.get(part) or {}
        names = (name for name in dict.fromkeys([*old, *new]) if name not in NOT_IDENTITY)
        found += [name for name in names if old.get(name) != new.get(name)]
    return found


def run_json(facts: Mapping[str, Any], clock: Mapping[str, float], sandbox_level: str | None) -> dict[str, Any]:
    """Return the facts, and what may differ when the run is repeated: times, hardware, the sandbox's level."""
    stamps = {name: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(value)) for name, value in clock.items()}
    values = list(clock.values())
    seconds = {name: round(b - a, 2) for name, a, b in zip(("generate", "score"), values, values[1:], strict=False)}
    hardware = {"machine": platform.machine(), "system": platform.platform(), "cpus": os.cpu_count()}
    return {**facts, "times": stamps, "seconds": seconds, "hardware": hardware, "sandbox_level": sandbox_level}


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
