"""Build the command that starts a fresh interpreter in Linux namespaces, with bubblewrap or with the tools of util-linux.

In both cases the new root is an empty read-only tmpfs. ``/usr`` (and ``/lib*``, ``/bin``), the interpreter's folder and
``/dev/null`` are bound into it read-only. ``/tmp`` and ``/dev/shm`` are small and private. Nothing else is visible: no
home, no project, no ``/proc``, no ``/etc`` and no sockets. Capabilities are dropped. A process of the launcher stays
process 1 of the process namespace. When it or its parent ends, even by SIGKILL, the kernel ends everything that the
program left behind.

This module only writes the command; ``process`` runs it. The command needs bwrap, or unshare, umount and pivot_root. Both
ways need mount, setpriv, and root or unprivileged user namespaces.
"""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from flab.sandbox.limits import SHM_INODES, SHM_SIZE, TMP_INODES, TMP_SIZE
from flab.sandbox.packages import INSIDE

# flab's own environment does not reach the program, because it may contain tokens, proxies and paths.
LAUNCH_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1"}
# By default glibc reserves 64 MiB of address space for each thread, and the limit is on address space.
LAUNCH_ENV["MALLOC_ARENA_MAX"] = "2"
DIE_WITH_PARENT = ["setpriv", "--pdeathsig", "KILL"]
SYSTEM_FOLDERS = ("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin", "/nix/store", "/gnu/store")
# ``nosuid`` disarms set-user-id programs and ``nodev`` disarms device files, both of which a bound folder may
# contain.
READ_ONLY = "ro,nosuid,nodev"
# The packages to lend: the name of each in the folder of packages, and its place on the disk.
Binds = tuple[tuple[str, str], ...]
Launcher = Callable[[Binds], list[str]]
Level = Literal["bubblewrap", "namespaces", "rlimits"]
# bwrap cannot limit the number of files in a tmpfs, and old versions cannot limit its size. Both file systems are
# therefore remounted with limits, before the privileges for that are dropped.
LIMIT_TMP = f"""umask 022
mount -i -n -t tmpfs -o remount,nosuid,nodev,size={TMP_SIZE},nr_inodes={TMP_INODES} none /tmp || exit 1
mount -i -n -t tmpfs -o remount,nosuid,nodev,size={SHM_SIZE},nr_inodes={SHM_INODES} none /dev/shm || exit 1
exec "$@"
"""

# The new root is built in a tmpfs over /sys, a folder that every system has. After pivot_root the old root is
# unmounted. Unlike with chroot, no path is left by which the program could climb out. "$@" runs as a child of this
# shell, which stays process 1 of the namespace.
SCRIPT = """set -e
umask 022
mount -t tmpfs -o size=4m,mode=755,nosuid none /sys
cd /sys
mkdir -p tmp dev/shm old proc {folders}
: > dev/null
{links}
{binds}
{packages}
mount --bind /dev/null dev/null
mount -t tmpfs -o size={tmp_size},nr_inodes={tmp_inodes},mode=1777,nosuid,nodev none tmp
mount -t tmpfs -o size={shm_size},nr_inodes={shm_inodes},mode=1777,nosuid,nodev none dev/shm
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
    """List the folders of the new root: the real system folders, and the interpreter's if it lies elsewhere."""
    folders = [Path(name) for name in SYSTEM_FOLDERS if Path(name).is_dir() and not Path(name).is_symlink()]
    for prefix in (interpreter().parent.parent, Path(sys.base_prefix).resolve()):
        if prefix != Path("/") and not any(prefix.is_relative_to(folder) for folder in folders):
            folders.append(prefix)
    return folders


def mounts_below(folders: list[Path]) -> list[Path]:
    """List the mount points inside ``folders``. Each needs its own read-only remount."""
    points = [Path(mount.point) for mount in mount_table()]
    return [point for point in points if any(folder in point.parents for folder in folders)]


@lru_cache(maxsize=64)
def script(packages: Binds = ()) -> str:
    """Write the shell script that builds the root and then runs its arguments as a child of process 1."""
    folders = bound_folders()
    names = [shlex.quote(str(folder)) for folder in folders]
    links = [Path(name) for name in SYSTEM_FOLDERS if Path(name).is_symlink()]
    return SCRIPT.format(
        folders=" ".join(name.replace("/", "./", 1) for name in names),
        links=_make_links(links),
        binds="\n".join(f"mount -o rbind,{READ_ONLY} {name} ./{name}" for name in names),
        seals="\n".join(f"mount -o remount,bind,{READ_ONLY} {shlex.quote(str(p))}" for p in mounts_below(folders)),
        packages="\n".join(_lend(name, place) for name, place in packages),
        tmp_size=TMP_SIZE,
        tmp_inodes=TMP_INODES,
        shm_size=SHM_SIZE,
        shm_inodes=SHM_INODES,
    )


def _make_links(links: list[Path]) -> str:
    """Write the lines that create the root's links. Links named like their targets, such as ``/bin``, share one call."""
    alike = [link for link in links if link.readlink().name == link.name]
    lines = [f"ln -s {shlex.quote(str(link.readlink()))} .{link}" for link in links if link not in alike]
    if alike:
        lines.append(f"ln -s {' '.join(shlex.quote(str(link.readlink())) for link in alike)} .")
    return "\n".join(lines)


def _lend(name: str, place: str) -> str:
    """Write the line that makes one package visible in the new root."""
    inside = shlex.quote(f".{INSIDE}/{name}")
    make = f"mkdir -p {inside}" if Path(place).is_dir() else f"mkdir -p .{INSIDE}; : > {inside}"
    return f"{make}; mount -o bind,{READ_ONLY} {shlex.quote(place)} {inside}"


# The bounding set is emptied too, so that not even a set-user-id program can give a capability back.
PRIVILEGES = ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"]
# unshare leaves the loopback interface of the empty network down. The harness needs net_admin to start it and then drops
# net_admin too.
LOOPBACK = [f"{word},+net_admin" if word.endswith("-all") else word for word in PRIVILEGES]


def _random_user() -> list[str]:
    """Draw a user id for one run that root starts, so that RLIMIT_NPROC counts the processes of this run only."""
    # The kernel counts RLIMIT_NPROC for each user id over the whole machine. Two runs under one id would share the
    # limit.
    user = str(20_000 + secrets.randbelow(40_000))
    return [f"--reuid={user}", f"--regid={user}", "--clear-groups"]


def _by_bubblewrap(spaces: list[str], capabilities: list[str], drop: list[str], packages: Binds) -> list[str]:
    """Join bwrap, the remount of /tmp and /dev/shm, and setpriv into the command that precedes the interpreter."""
    keep = [word for name in capabilities for word in ("--cap-add", name)]
    shell = ["sh", "-c", LIMIT_TMP, "sh"]
    bwrap = ["bwrap", *spaces, *bubblewrap_root(packages), *keep, "--"]
    return [*DIE_WITH_PARENT, *bwrap, *shell, "setpriv", *drop, *PRIVILEGES]


@lru_cache(maxsize=64)
def bubblewrap_root(packages: Binds = ()) -> list[str]:
    """List the arguments with which bwrap builds the same root as ``script``."""
    words = "--unshare-pid --unshare-net --unshare-ipc --unshare-uts --unshare-cgroup-try --die-with-parent".split()
    for folder in bound_folders():
        # bwrap copies the modes of parent folders, so a private folder such as /root would keep the program out.
        for parent in reversed(folder.parents[:-1]):
            words += ["--perms", "0755", "--dir", str(parent)]
        words += ["--ro-bind", str(folder), str(folder)]
    words += ["--perms", "0755", "--dir", INSIDE] if packages else []
    for name, place in packages:
        words += ["--ro-bind", place, f"{INSIDE}/{name}"]
    for link in map(Path, SYSTEM_FOLDERS):
        words += ["--symlink", str(link.readlink()), str(link)] if link.is_symlink() else []
    words += "--dir /dev --dev-bind /dev/null /dev/null --perms 1777 --tmpfs /dev/shm".split()
    words += "--perms 1777 --tmpfs /tmp --remount-ro / --chdir /tmp".split()
    return words


def bubblewrap_as_root(packages: Binds = ()) -> list[str]:
    """Build the command for root, without a user namespace and with a user id drawn for this run."""
    return _by_bubblewrap([], ["CAP_SYS_ADMIN", "CAP_SETPCAP", "CAP_SETUID", "CAP_SETGID"], _random_user(), packages)


def bubblewrap_as_user(packages: Binds = ()) -> list[str]:
    """Build the command for other users, who become root of a new user namespace. Outside it that grants nothing."""
    spaces = ["--unshare-user", "--uid", "0", "--gid", "0"]
    return _by_bubblewrap(spaces, ["CAP_SYS_ADMIN", "CAP_SETPCAP"], [], packages)


def _by_unshare(unshare: list[str], drop: list[str], packages: Binds) -> list[str]:
    """Join unshare, the script and setpriv into the command that precedes the interpreter."""
    spaces = ["--mount", "--pid", "--fork", "--net", "--ipc", "--uts", "--kill-child"]
    shell = ["sh", "-c", script(packages), "sh"]
    return [*DIE_WITH_PARENT, "unshare", *unshare, *spaces, *shell, "setpriv", *drop, *LOOPBACK]


def unshare_as_root(packages: Binds = ()) -> list[str]:
    """Build the command for root, which continues under a user id drawn for this run."""
    return _by_unshare([], _random_user(), packages)


def unshare_as_user(packages: Binds = ()) -> list[str]:
    """Build the command for other users, who become root of a new user namespace. Outside it that grants nothing."""
    return _by_unshare(["--user", "--map-root-user"], [], packages)


def bare_launcher(packages: Binds = ()) -> list[str]:
    """Return an empty command: without isolation, only the limits, the filter, the guard and the secret protect."""
    return []


def launchers() -> list[tuple[Level, Launcher]]:
    """List the isolating launchers to try on this machine, best first."""
    if not sys.platform.startswith("linux"):
        return []
    by_user: list[tuple[Level, Launcher]] = [("bubblewrap", bubblewrap_as_user), ("namespaces", unshare_as_user)]
    by_root: list[tuple[Level, Launcher]] = [("bubblewrap", bubblewrap_as_root), ("namespaces", unshare_as_root)]
    if os.geteuid() != 0:
        return by_user
    return [launcher for pair in zip(by_root, by_user, strict=True) for launcher in pair]


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
