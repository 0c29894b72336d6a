"""The command that puts a fresh interpreter into Linux namespaces, with the tools of util-linux only.

The new root is an empty read-only tmpfs with ``/usr`` (and ``/lib*``, ``/bin``), the interpreter's folder and
``/dev/null`` bound read-only, a small private ``/tmp``, and nothing else: no home, no project, no ``/proc``,
no ``/etc``, no sockets. The old root is detached, capabilities are dropped, and a shell stays process 1 of
the process namespace: when it or its parent ends, the kernel ends everything that the program left behind.

It does not run anything and decides nothing: ``sandbox`` does. It needs unshare, mount, umount, pivot_root
and setpriv, and either root or unprivileged user namespaces.
"""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

TMP_SIZE = "32m"
TMP_INODES = 4096
LAUNCH_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1"}
SYSTEM_FOLDERS = ("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin", "/nix/store", "/gnu/store")
READ_ONLY = "ro,nosuid,nodev"
Launcher = Callable[[], list[str]]

SCRIPT = """set -e
umask 022
mount -t tmpfs -o size=4m,mode=755,nosuid none /sys
cd /sys
mkdir -p tmp dev old proc {folders}
: > dev/null
{links}
{binds}
mount --bind /dev/null dev/null
mount -t tmpfs -o size={tmp_size},nr_inodes={tmp_inodes},mode=1777,nosuid,nodev none tmp
mount --rbind /proc proc
pivot_root . old
umount -l /old /proc
{seals}
mount -o remount,ro,nosuid /
cd /tmp
"$@"
exit $?
"""


def interpreter() -> Path:
    """Return the real interpreter behind a virtual environment."""
    return Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()


def bound_folders() -> list[Path]:
    """List what the new root holds: the real system folders, and the interpreter's where it is elsewhere."""
    folders = [Path(name) for name in SYSTEM_FOLDERS if Path(name).is_dir() and not Path(name).is_symlink()]
    for prefix in (interpreter().parent.parent, Path(sys.base_prefix).resolve()):
        if prefix != Path("/") and not any(prefix.is_relative_to(folder) for folder in folders):
            folders.append(prefix)
    return folders


def mounts_below(folders: list[Path]) -> list[Path]:
    """List the mount points inside ``folders``: each needs its own read-only remount."""
    table = Path("/proc/self/mountinfo")
    if not table.exists():
        return []
    lines = table.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    points = [Path(line.split()[4].replace("\\040", " ")) for line in lines]
    return [point for point in points if any(folder in point.parents for folder in folders)]


@lru_cache(maxsize=1)
def script() -> str:
    """Write the shell script that builds the root and then runs its arguments as a child of process 1."""
    folders = bound_folders()
    names = [shlex.quote(str(folder)) for folder in folders]
    links = [Path(name) for name in SYSTEM_FOLDERS if Path(name).is_symlink()]
    return SCRIPT.format(
        folders=" ".join(name.replace("/", "./", 1) for name in names),
        links="\n".join(f"ln -s {shlex.quote(str(link.readlink()))} .{link}" for link in links),
        binds="\n".join(f"mount -o rbind,{READ_ONLY} {name} ./{name}" for name in names),
        seals="\n".join(f"mount -o remount,bind,{READ_ONLY} {shlex.quote(str(p))}" for p in mounts_below(folders)),
        tmp_size=TMP_SIZE,
        tmp_inodes=TMP_INODES,
    )


def _jail(unshare: list[str], drop: list[str]) -> list[str]:
    """Join unshare, the script and setpriv into the command before the interpreter."""
    spaces = ["--mount", "--pid", "--fork", "--net", "--ipc", "--uts", "--kill-child"]
    privileges = ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    return ["unshare", *unshare, *spaces, "sh", "-c", script(), "sh", "setpriv", *drop, *privileges]


def root_launcher() -> list[str]:
    """For root: build as root, then become a user id drawn for this run: NPROC counts this run only."""
    user = str(20_000 + secrets.randbelow(40_000))
    return _jail([], [f"--reuid={user}", f"--regid={user}", "--clear-groups"])


def user_launcher() -> list[str]:
    """For everyone else: be root of a new user namespace, which is worth nothing outside it."""
    return _jail(["--user", "--map-root-user"], [])


def bare_launcher() -> list[str]:
    """No isolation: the resource limits, the fresh process and the secret are all there is."""
    return []


def launchers() -> list[Launcher]:
    """List the isolating launchers to try here, the better one first."""
    if not sys.platform.startswith("linux"):
        return []
    return [root_launcher, user_launcher] if os.geteuid() == 0 else [user_launcher]
