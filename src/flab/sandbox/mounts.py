"""Read the table of mounts of this process (proc(5), mountinfo)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mount:
    """One mount: where it is, the type of its file system, and that file system's options."""

    point: str
    kind: str
    options: tuple[str, ...]


def mount_table() -> list[Mount]:
    """List all mounts. The list is empty if the system has no such table."""
    table = Path("/proc/self/mountinfo")
    if not table.exists():
        return []
    found = []
    for line in table.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        # The number of optional fields before the hyphen varies, so the line is split at the hyphen and each part is
        # read separately.
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2) if after.count(" ") > 1 else (after.partition(" ")[0], "", "")
        found.append(Mount(before.split()[4].replace("\\040", " "), kind, tuple(options.split(","))))
    return found
