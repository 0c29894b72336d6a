"""The command that puts a fresh interpreter into Linux namespaces: by bubblewrap, or by the tools of util-linux.

Either way the new root is an empty read-only tmpfs with ``/usr`` (and ``/lib*``, ``/bin``), the interpreter's
folder and ``/dev/null`` bound read-only, a small private ``/tmp``, and nothing else: no home, no project, no
``/proc``, no ``/etc``, no sockets. ``/dev/shm`` is a small private one too. Capabilities are dropped, and a process of
the launcher's stays process 1 of the process namespace: when it or its parent ends, even by SIGKILL, the kernel ends
everything that the program left behind.

It does not run anything and decides nothing: ``sandbox`` does. It needs bwrap, or unshare, umount and
pivot_root; either way mount and setpriv, and root or unprivileged user namespaces.
"""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal

from flab.sandbox.limits import SHM_INODES, SHM_SIZE, TMP_INODES, TMP_SIZE
from flab.sandbox.mounts import mount_table
from flab.sandbox.packages import INSIDE

# Nothing of flab's own environment reaches the program: it may hold tokens, proxies and paths.
LAUNCH_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1"}
# By default glibc reserves 64 MiB for each thread, and the limit is on address space.
LAUNCH_ENV["MALLOC_ARENA_MAX"] = "2"
DIE_WITH_PARENT = ["setpriv", "--pdeathsig", "KILL"]
SYSTEM_FOLDERS = ("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin", "/nix/store", "/gnu/store")
# ``nosuid`` takes the power from set-user-id programs, ``nodev`` from device files that a bound folder may
# hold.
READ_ONLY = "ro,nosuid,nodev"
# The packages to lend: each one's name in the folder of packages, and where it is.
Binds = tuple[tuple[str, str], ...]
Launcher = Callable[[Binds], list[str]]
Level = Literal["bubblewrap", "namespaces", "rlimits"]
# bwrap cannot limit how many files a tmpfs holds, and old ones cannot limit its size. So both file systems are mounted
# again with limits, before the privileges for that are dropped.
LIMIT_TMP = f"""umask 022
mount -i -n -t tmpfs -o remount,nosuid,nodev,size={TMP_SIZE},nr_inodes={TMP_INODES} none /tmp || exit 1
mount -i -n -t tmpfs -o remount,nosuid,nodev,size={SHM_SIZE},nr_inodes={SHM_INODES} none /dev/shm || exit 1
exec "$@"
"""

# The root is built in a tmpfs over /sys, which every system has. After pivot_root the old root is unmounted, so
# there is no path by which the program could climb out, as there is with chroot. "$@" runs as a child of this
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
    """List what the new root holds: the real system folders, and the interpreter's if it is elsewhere."""
    folders = [Path(name) for name in SYSTEM_FOLDERS if Path(name).is_dir() and not Path(name).is_symlink()]
    for prefix in (interpreter().parent.parent, Path(sys.base_prefix).resolve()):
        if prefix != Path("/") and not any(prefix.is_relative_to(folder) for folder in folders):
            folders.append(prefix)
    return folders


def mounts_below(folders: list[Path]) -> list[Path]:
    """List the mount points inside ``folders``: each needs its own read-only remount."""
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
    """Write the lines that make the links of the root; those called as what they lead to, such as ``/bin``, in one call."""
    alike = [link for link in links if link.readlink().name == link.name]
    lines = [f"ln -s {shlex.quote(str(link.readlink()))} .{link}" for link in links if link not in alike]
    if alike:
        lines.append(f"ln -s {' '.join(shlex.quote(str(link.readlink())) for link in alike)} .")
    return "\n".join(lines)


def _lend(name: str, place: str) -> str:
    """Write the lines that show one package in the new root."""
    inside = shlex.quote(f".{INSIDE}/{name}")
    make = f"mkdir -p {inside}" if Path(place).is_dir() else f"mkdir -p .{INSIDE}; : > {inside}"
    return f"{make}; mount -o bind,{READ_ONLY} {shlex.quote(place)} {inside}"


# The bounding set is emptied too: even a set-user-id program could not give a capability back.
PRIVILEGES = ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"]
# The harness needs it to start the loopback of the empty network, which unshare leaves down; then it drops this too.
LOOPBACK = [
    "--bounding-set=-all,+net_admin",
    "--inh-caps=-all,+net_admin",
    "--ambient-caps=-all,+net_admin",
    "--no-new-privs",
]


def _random_user() -> list[str]:
    """Draw a user id for one run, under which a launcher of root's carries on: NPROC counts that run only."""
    # The kernel counts RLIMIT_NPROC per user id over the whole machine, so two runs under one id would use up
    # each other's processes.
    user = str(20_000 + secrets.randbelow(40_000))
    return [f"--reuid={user}", f"--regid={user}", "--clear-groups"]


def _by_bubblewrap(spaces: list[str], capabilities: list[str], drop: list[str], packages: Binds) -> list[str]:
    """Join bwrap, the last touch to /tmp and setpriv into the command before the interpreter."""
    keep = [word for name in capabilities for word in ("--cap-add", name)]
    return [
        *DIE_WITH_PARENT,
        "bwrap",
        *spaces,
        *bubblewrap_root(packages),
        *keep,
        "--",
        "sh",
        "-c",
        LIMIT_TMP,
        "sh",
        "setpriv",
        *drop,
        *PRIVILEGES,
    ]


@lru_cache(maxsize=64)
def bubblewrap_root(packages: Binds = ()) -> list[str]:
    """List bwrap's arguments that make the same root as ``script``."""
    words = "--unshare-pid --unshare-net --unshare-ipc --unshare-uts --unshare-cgroup-try --die-with-parent".split()
    for folder in bound_folders():
        # bwrap copies the modes of parent folders, and a closed one such as /root would keep the program out.
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
    """For root: no user namespace, and a user id drawn for this run."""
    return _by_bubblewrap([], ["CAP_SYS_ADMIN", "CAP_SETPCAP", "CAP_SETUID", "CAP_SETGID"], _random_user(), packages)


def bubblewrap_as_user(packages: Binds = ()) -> list[str]:
    """For everyone else: be root of a new user namespace, which is worth nothing outside it."""
    spaces = ["--unshare-user", "--uid", "0", "--gid", "0"]
    return _by_bubblewrap(spaces, ["CAP_SYS_ADMIN", "CAP_SETPCAP"], [], packages)


def _by_unshare(unshare: list[str], drop: list[str], packages: Binds) -> list[str]:
    """Join unshare, the script and setpriv into the command before the interpreter."""
    spaces = ["--mount", "--pid", "--fork", "--net", "--ipc", "--uts", "--kill-child"]
    shell = ["sh", "-c", script(packages), "sh"]
    return [*DIE_WITH_PARENT, "unshare", *unshare, *spaces, *shell, "setpriv", *drop, *LOOPBACK]


def unshare_as_root(packages: Binds = ()) -> list[str]:
    """For root: build as root, and continue as a user id drawn for this run."""
    return _by_unshare([], _random_user(), packages)


def unshare_as_user(packages: Binds = ()) -> list[str]:
    """For everyone else: be root of a new user namespace, which is worth nothing outside it."""
    return _by_unshare(["--user", "--map-root-user"], [], packages)


def bare_launcher(packages: Binds = ()) -> list[str]:
    """No isolation: the limits, the filter and the secret are all there is."""
    return []


def launchers() -> list[tuple[Level, Launcher]]:
    """List the isolating launchers to try here, the better one first."""
    if not sys.platform.startswith("linux"):
        return []
    by_user: list[tuple[Level, Launcher]] = [("bubblewrap", bubblewrap_as_user), ("namespaces", unshare_as_user)]
    by_root: list[tuple[Level, Launcher]] = [("bubblewrap", bubblewrap_as_root), ("namespaces", unshare_as_root)]
    if os.geteuid() != 0:
        return by_user
    return [launcher for pair in zip(by_root, by_user, strict=True) for launcher in pair]
