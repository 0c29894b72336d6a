"""Define the limits of a run, all in one place. ``docs/sandbox.md`` lists them for users.

Each limit is enforced elsewhere: ``harness`` sets the limits of each process and adds
:data:`flab.sandbox.harness.GRACE_S` to the CPU time, ``jail`` sizes ``/tmp`` and ``/dev/shm``, ``cgroup`` limits the memory
of all processes together, and ``process`` cuts off output. ``seccomp`` lists the system calls that are refused.
"""

from __future__ import annotations

import math

CPU_SECONDS = 5.0  # for each process, not counting the start-up
# The wall limit as a multiple of the CPU limit. It is generous, because the program is not at fault if the machine is busy.
WALL_FACTOR = 4.0
MEMORY_BYTES = 2**30  # address space of each process
# All processes of a run together may use this many bytes more, for the interpreter, its pipes, and files in /tmp.
SLACK_BYTES = 96 * 2**20
# The bytes of output that are kept, counted from the end. A longer report is not accepted.
CHANNEL_CAP = 64 * 1024
# The private file systems: sizes as mount reads them, and the number of files.
TMP_SIZE = "32m"
TMP_INODES = 4096
SHM_SIZE = "16m"
SHM_INODES = 256


def of_one_process(memory_bytes: int, cpu_seconds: float) -> dict[str, int]:
    """Return the resource limits of one process under their names in the module ``resource``.

    Tests need no more than 128 threads and processes, 256 descriptors and files of 16 MiB.
    """
    return {
        "RLIMIT_AS": memory_bytes,
        "RLIMIT_CPU": max(1, math.ceil(cpu_seconds)),
        "RLIMIT_FSIZE": 16 * 2**20,
        "RLIMIT_NPROC": 128,
        "RLIMIT_NOFILE": 256,
        "RLIMIT_CORE": 0,
    }
