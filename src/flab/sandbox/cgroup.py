"""Bound the memory of all processes of a run together with control groups, files in memory included.

flab creates its groups below the group of its own process. Only root may do so, or a user to whom the system has
delegated a group (as systemd does). Otherwise only the limits of single processes apply (``docs/sandbox.md``).

Moving a process into a group makes the kernel wait for all cores (about 10 ms), but a process is born in the group of the
thread that starts it. An evaluation therefore creates one group for each worker and, in the first hierarchy (v1), one
thread that enters it once and starts all runs of that group. In the second hierarchy (v2) the memory controller cannot
hold single threads, so each run moves itself.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from flab.sandbox.jail import mount_table
from flab.sandbox.limits import SLACK_BYTES

LIMIT_FILES = {"cgroup": "memory.limit_in_bytes", "cgroup2": "memory.max"}
ENTER = 'group=$1; shift; echo 0 > "$group/cgroup.procs" && exec "$@"'
# How often flab checks whether killed processes are gone, and the pause between two checks in seconds.
TRIES = 500
PAUSE_S = 0.001
Made = TypeVar("Made")


class Group:
    """A control group that serves one run after another. Without a path, there is no group and no common limit."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.starter = _thread_in(path) if path is not None else None
        self.kills = 0  # how many processes the kernel had killed before the current run

    def start(self, act: Callable[[list[str]], Made]) -> Made:
        """Call ``act`` to start a process in this group. Its argument is the words with which the command must begin."""
        if self.starter is not None:
            return self.starter.submit(act, []).result()
        return act([] if self.path is None else ["sh", "-c", ENTER, "sandbox", str(self.path)])

    def overran(self) -> bool:
        """Return whether the kernel killed a process of the current run because the group's memory was used up."""
        return self._num_kills() > self.kills

    def _num_kills(self) -> int:
        if self.path is None:
            return 0
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError):
                lines = (self.path / name).read_text(encoding="ascii").splitlines()
                return sum(int(line.split()[1]) for line in lines if line.split()[:1] == ["oom_kill"])
        return 0

    def empty(self) -> bool:
        """End the processes that a run left in the group. Return whether another run may use it."""
        if self.path is None:
            return True
        for _ in range(TRIES):
            others = self._others()
            if not others:
                self.kills = self._num_kills()
                return True
            # A fork bomb creates processes faster than one pass can kill them, so this is repeated. The memory limit
            # and RLIMIT_NPROC bound how fast it can grow.
            for process in others:
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(PAUSE_S)
        return False

    def _others(self) -> set[int]:
        """List the threads in the group that are not flab's own."""
        assert self.path is not None
        found = {int(word) for word in (self.path / _members(self.path)).read_text(encoding="ascii").split()}
        return found - {int(thread.name) for thread in Path("/proc/self/task").iterdir()} - {0, os.getpid()}

    def close(self) -> None:
        """Remove the group."""
        if self.starter is not None:
            self.starter.shutdown()
        if self.path is not None:
            _remove(self.path)


class Groups:
    """Holds the groups of one evaluation, one for each run in progress."""

    def __init__(self, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self.idle: list[Group] = []

    def __enter__(self) -> Groups:
        return self

    def __exit__(self, *error: object) -> None:
        while self.idle:
            self.idle.pop().close()

    @contextlib.contextmanager
    def lend(self) -> Iterator[Group]:
        """Yield a group in which nothing runs. If it cannot be emptied afterwards, do not use it again."""
        try:
            group = self.idle.pop()
        except IndexError:
            home = group_home()
            group = Group(_make(home, self.memory_bytes) if home is not None else None)
        is_empty = False
        try:
            yield group
            is_empty = group.empty()
        finally:
            if is_empty:
                self.idle.append(group)
            else:
                group.close()


def _members(path: Path) -> str:
    """Return the name of the file that lists a group's members: threads in v1, processes in v2."""
    return "tasks" if (path / "tasks").exists() else "cgroup.procs"


def _thread_in(path: Path) -> ThreadPoolExecutor | None:
    """Return a thread that lives in the group, or None if single threads cannot be moved, as in v2."""
    if _members(path) != "tasks":
        return None
    starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="flab-group")
    try:
        starter.submit(lambda: (path / "tasks").write_text(str(threading.get_native_id()), encoding="ascii")).result()
    except OSError:
        starter.shutdown()
        return None
    return starter


@lru_cache(maxsize=1)
def group_home() -> Path | None:
    """Return the folder in which this machine lets flab create groups, or None. The answer is cached."""
    for path in _candidates():
        _sweep(path)
        made = _make(path, 2**30)
        if made is not None:
            _remove(made)
            return path
    return None


def _sweep(home: Path) -> None:
    """Remove the groups that a killed flab left behind."""
    for path in home.glob("flab-*-*"):
        owner = path.name.split("-")[1]
        if owner.isdigit() and not Path("/proc", owner).exists():
            with contextlib.suppress(OSError):
                path.rmdir()


def _candidates() -> list[Path]:
    """List the groups of this process. In the unified hierarchy add their parents, as a group with processes has no children."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for line in lines:
        number, controllers, own = line.split(":", 2)
        for mount in mount_table():
            if number == "0" and mount.kind == "cgroup2":
                place = Path(mount.point, own.strip("/"))
                found += [one for one in (place, *place.parents) if one.is_relative_to(mount.point)]
            elif "memory" in controllers.split(",") and mount.kind == "cgroup" and "memory" in mount.options:
                found.insert(0, Path(mount.point, own.strip("/")))
    return found


def _make(home: Path, memory_bytes: int) -> Path | None:
    """Create one group with a memory limit. Return None if the system does not allow it."""
    path = home / f"flab-{os.getpid()}-{secrets.token_hex(6)}"
    try:
        path.mkdir()
    except OSError:
        return None
    try:
        limit = next((path / name for name in LIMIT_FILES.values() if (path / name).exists()), None)
        if limit is None or not os.access(path / "cgroup.procs", os.W_OK) or not _may_move(path):
            raise OSError("no memory controller here")
        # This limit covers all processes of the run and their files in /tmp together. RLIMIT_AS bounds each process
        # separately.
        limit.write_text(str(memory_bytes + SLACK_BYTES), encoding="ascii")
        # If swap were allowed, a program could fill the disk without reaching the memory limit.
        swap = path / "memory.swap.max"
        if swap.exists():
            swap.write_text("0", encoding="ascii")
    except OSError:
        _remove(path)
        return None
    return path


def _may_move(path: Path) -> bool:
    """Return whether our processes may enter the group. In v2 the common parent must be writable (cgroups(7), delegation)."""
    return (path / LIMIT_FILES["cgroup"]).exists() or os.access(path.parent / "cgroup.procs", os.W_OK)


def _remove(path: Path) -> None:
    """Remove a group whose processes are dead or dying."""
    for _ in range(50):
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.01)
        else:
            return
