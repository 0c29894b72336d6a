"""A run's folder and its files.

``generations.jsonl`` grows as answers are made. ``run.json`` records what was done, when and on which machine.
``results.json`` holds the scores, and nothing that differs between a resumed and an uninterrupted run.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flab.errors import DataError
from flab.files import read_json, write_json
from flab.progress import say

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
