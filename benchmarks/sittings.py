"""A list of stages that is worked off over several sittings: a finished stage is never run again.

Each stage runs in a process of its own, so that its peak memory is its own. What it found is written to
``OUT/stages/NAME.json`` once it is done, whole or not at all; a stage that was killed has no such file and is run again. A stage
that fails is reported and the others go on. This module knows nothing of what the stages do.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flab.errors import OptionError
from flab.files import read_json, write_json
from flab.models.memory import is_gpu, peak, reset_peak, resident_peak
from flab.progress import say

PR_SET_PDEATHSIG = 1
PARENT = "FLAB_BENCHMARK_PARENT"  # the number of the process that started a stage


@dataclass(frozen=True)
class Stage:
    """One stage: its name, what it does, and the names of the stages whose output it reads."""

    name: str
    work: Callable[[], Mapping[str, Any]]
    after: tuple[str, ...] = ()


def record_of(out: Path, name: str) -> Path:
    """The file that a finished stage leaves."""
    return out / "stages" / (re.sub(r"[^\w.-]+", "-", name) + ".json")


def found(out: Path, name: str) -> dict[str, Any] | None:
    """Return the record of a finished stage, None where it is not done."""
    file = record_of(out, name)
    return read_json(file) if file.is_file() else None


def claim(out: Path, settings: Mapping[str, Any]) -> None:
    """Take a folder for these settings, or go on in it.

    Raises:
        OptionError: the folder was made with other settings, or holds something else.
    """
    file = out / "settings.json"
    plain = json.loads(json.dumps(settings, default=str))
    if file.is_file():
        before = read_json(file)
        differ = sorted(name for name in plain.keys() | before.keys() if plain.get(name) != before.get(name))
        if differ:
            raise OptionError(
                f"-o {out} was made with another {', '.join(differ)}: give a new folder, or the same again."
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OptionError(f"-o {out} exists and holds no benchmark: give a new folder.")
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, plain)


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system releases however this process ends."""
    with (out / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OptionError(f"-o {out} is in use by another process: wait until it ends.") from None
        yield


def chosen(stages: Sequence[Stage], only: Sequence[str]) -> list[Stage]:
    """The stages with these names, or with names that begin with them; all where none is named.

    Raises:
        OptionError: no stage has such a name.
    """
    for name in only:
        if not any(stage.name.startswith(name) for stage in stages):
            raise OptionError(f"--only {name}: no such stage; allowed are {', '.join(stage.name for stage in stages)}.")
    return [stage for stage in stages if not only or stage.name.startswith(tuple(only))]


def listed(stages: Sequence[Stage], out: Path) -> str:
    """One line for each stage: done and how long it took, or to do."""
    lines = []
    for stage in stages:
        record = found(out, stage.name)
        state = f"done in {record['seconds']:.0f} s" if record is not None else "to do"
        lines.append(f"{stage.name:32} {state}")
    return "\n".join(lines)


def run_all(
    stages: Sequence[Stage],
    out: Path,
    start: Callable[[Stage], int],
    after_each: Callable[[], None] = lambda: None,
    jobs: int = 1,
) -> int:
    """Run what is not done, in order; return 1 if a stage failed or could not begin, else 0.

    Args:
        start: runs one stage, by default in a process of its own (:func:`in_a_process`); 0 is success.
        after_each: called after every stage that was run.
        jobs: stages that run at once; more than one only where the device has room for so many models.
    """
    failed = 0
    waiting = [stage for stage in stages if found(out, stage.name) is None]
    running: dict[Future[int], Stage] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            unfinished = {stage.name for stage in [*waiting, *running.values()]}
            for stage in list(waiting):
                if len(running) == jobs:
                    break
                if unfinished.intersection(stage.after):  # a stage that is still to come makes what it needs
                    continue
                waiting.remove(stage)
                missing = [name for name in stage.after if found(out, name) is None]
                if missing:
                    say(f"{stage.name}: not run, because it needs {', '.join(missing)}")
                    failed = 1
                    break  # what waits for this stage can be judged now
                say(f"{stage.name}: begins")
                running[pool.submit(start, stage)] = stage
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                stage = running.pop(future)
                code = future.result()
                if code != 0 or found(out, stage.name) is None:
                    say(f"{stage.name}: failed (exit code {code}); the other stages go on")
                    failed = 1
                after_each()
    return failed


def in_a_process(stage: Stage) -> int:
    """Run one stage by this very command with ``--work NAME``; return its exit code."""
    command = [sys.executable, *sys.argv, "--work", stage.name]
    return subprocess.run(command, env={**os.environ, PARENT: str(os.getpid())}, check=False).returncode


def work(stage: Stage, out: Path, device: str) -> int:
    """Do a stage's work here, and write down what it found, its seconds and its peak memory."""
    reset_peak(device)
    start = time.perf_counter()
    result = dict(stage.work())
    here, method = resident_peak()
    children = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    record = {
        "stage": stage.name,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(time.perf_counter() - start, 2),
        "peak_bytes": max(here, children),
        "peak_method": f"{method}, or of its largest child",
        "peak_device_bytes": peak(device)[0] if is_gpu(device) else None,
        "result": result,
    }
    record_of(out, stage.name).parent.mkdir(exist_ok=True)
    write_json(record_of(out, stage.name), record)
    return 0


def end_with_parent() -> None:
    """Ask the system to end this process when the one that started it ends, or a killed run would go on unseen."""
    with contextlib.suppress(OSError, AttributeError):  # only Linux has it
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = os.environ.get(PARENT)
    if parent is not None and os.getppid() != int(parent):  # it ended before this process could ask
        raise SystemExit(1)
