"""A control group for each run, so that the memory of all its processes together is bounded, files in memory included.

It is made below the group of this process where that may be done: by root, or in a group that the system has handed to
the user (systemd does). Where it may not, only the limits of single processes hold; ``docs/sandbox.md`` says so.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from flab.sandbox.mounts import mount_table

SLACK_BYTES = 96 * 2**20  # the interpreter's own pages, its pipes, and the files of the run in /tmp
LIMIT_FILES = {"cgroup": "memory.limit_in_bytes", "cgroup2": "memory.max"}
ENTER = 'group=$1; shift; echo 0 > "$group/cgroup.procs" && exec "$@"'


@dataclass(frozen=True)
class Group:
    """One run's group, or none: the command that enters it, and what became of it."""

    path: Path | None = None

    @property
    def command(self) -> list[str]:
        """Return what enters the group and then runs the rest of its arguments."""
        return [] if self.path is None else ["sh", "-c", ENTER, "sandbox", str(self.path)]

    def overran(self) -> bool:
        """Whether the kernel killed a process of the group because its memory was used up."""
        if self.path is None:
            return False
        text = ""
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError):
                text = text or (self.path / name).read_text(encoding="ascii")
        return any(line.split()[:1] == ["oom_kill"] and line.split()[1] != "0" for line in text.splitlines())


@contextlib.contextmanager
def memory_group(memory_bytes: int) -> Iterator[Group]:
    """Yield a new group, an empty one where none may be made, and remove it afterwards."""
    home = group_home()
    path = _make(home, memory_bytes) if home is not None else None
    try:
        yield Group(path)
    finally:
        if path is not None:
            _remove(path)


@lru_cache(maxsize=1)
def group_home() -> Path | None:
    """Return the folder in which groups can be made here, None where there is none; tried once."""
    for path in _candidates():
        _sweep(path)
        made = _make(path, 2**30)
        if made is not None:
            _remove(made)
            return path
    return None


def _sweep(home: Path) -> None:
    """Remove what a flab that was killed left behind."""
    for path in home.glob("flab-*-*"):
        owner = path.name.split("-")[1]
        if owner.isdigit() and not Path("/proc", owner).exists():
            with contextlib.suppress(OSError):
                path.rmdir()


def _candidates() -> list[Path]:
    """List the groups of this process, and in the unified hierarchy those above it: a group with processes has no others."""
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


def _limit_file(folder: Path) -> Path | None:
    return next((folder / name for name in LIMIT_FILES.values() if (folder / name).exists()), None)


def _make(home: Path, memory_bytes: int) -> Path | None:
    """Make one group with a limit; None where the system does not let us."""
    path = home / f"flab-{os.getpid()}-{secrets.token_hex(6)}"
    try:
        path.mkdir()
    except OSError:
        return None
    try:
        limit = _limit_file(path)
        if limit is None or not os.access(path / "cgroup.procs", os.W_OK) or not _may_move(path):
            raise OSError("no memory controller here")
        limit.write_text(str(memory_bytes + SLACK_BYTES), encoding="ascii")
        swap = path / "memory.swap.max"
        if swap.exists():
            swap.write_text("0", encoding="ascii")
    except OSError:
        _remove(path)
        return None
    return path


def _may_move(path: Path) -> bool:
    """Whether a process of ours may enter: the group above both must be ours to write (cgroups(7), delegation)."""
    return (path / LIMIT_FILES["cgroup"]).exists() or os.access(path.parent / "cgroup.procs", os.W_OK)


def _remove(path: Path) -> None:
    """Remove a group whose processes are dead, or about to be."""
    for _ in range(50):
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.01)
        else:
            return
