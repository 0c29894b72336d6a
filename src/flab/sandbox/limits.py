"""The limits of a run, all in one place; ``docs/sandbox.md`` lists them for users.

``runner`` passes them on. ``harness`` sets the limits of each process inside, and adds
:data:`flab.sandbox.harness.GRACE_S` to the CPU time. ``jail`` mounts ``/tmp`` and ``/dev/shm``. ``cgroup`` limits the memory of
all processes together. ``process`` cuts off output. System calls that are refused are in ``seccomp``.
"""

from __future__ import annotations

import math

CPU_SECONDS = 5.0  # of each process, after the start
# The wall limit in multiples of the CPU limit. It is generous, because a busy machine is no fault of the program.
WALL_FACTOR = 4.0
MEMORY_BYTES = 2**30  # address space of each process
# All processes of a run together may use this much more, for the interpreter's own pages, its pipes, and files in /tmp.
SLACK_BYTES = 96 * 2**20
# The length of the program's output that is kept, from its end. A longer report is not accepted.
CHANNEL_CAP = 64 * 1024
# Of the private file systems: sizes as mount reads them, and how many files they hold.
TMP_SIZE = "32m"
TMP_INODES = 4096
SHM_SIZE = "16m"
SHM_INODES = 256


def of_one_process(memory_bytes: int, cpu_seconds: float) -> dict[str, int]:
    """Return the resource limits of one process, by their names in the module ``resource``.

    128 threads and processes, 256 descriptors and files of 16 MiB suffice for tests.
    """
    return {
        "RLIMIT_AS": memory_bytes,
        "RLIMIT_CPU": max(1, math.ceil(cpu_seconds)),
        "RLIMIT_FSIZE": 16 * 2**20,
        "RLIMIT_NPROC": 128,
        "RLIMIT_NOFILE": 256,
        "RLIMIT_CORE": 0,
    }
