"""Assemble a seccomp filter for the parts of the kernel that namespaces leave open.

The filter denies the keyring, System V and POSIX message queues, System V shared memory and semaphores, io_uring,
userfaultfd, bpf, perf, access to other processes' memory and descriptors, mounts, new namespaces, kernel modules, kexec,
clocks, and every socket family except Unix and Internet. A denied call fails with an error number, and the program
continues. No library is needed: a filter is an array of eight-byte instructions (linux/filter.h, linux/seccomp.h).

``harness`` installs the filter at every level, after the jail is built and before the program is loaded.
"""

from __future__ import annotations

import errno
import platform
import struct
from functools import lru_cache

# linux/bpf_common.h: load a word, compare, return; linux/seccomp.h: offsets in struct seccomp_data
LOAD = 0x20
EQUAL = 0x15
AT_LEAST = 0x35
ANY_BIT = 0x45
RETURN = 0x06
NUMBER = 0
ARCHITECTURE = 4
FIRST_ARGUMENT = 16
SECOND_ARGUMENT = 24
ALLOW = 0x7FFF0000
FAIL = 0x00050000
KILL = 0x80000000

NEW_NAMESPACES = 0x7E020080  # every CLONE_NEW flag (linux/sched.h), time included
X32 = 0x40000000  # the number of the first call in the second table of x86-64
FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
TIOCSTI = 0x5412  # pushes characters into a terminal's input

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "riscv64": 0xC00000F3}
# The numbers on x86-64 and in the table that newer architectures share, or None if an architecture lacks the call.
DENIED: dict[str, tuple[int | None, int | None]] = {
    # the session keyring belongs to no namespace
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # kernel objects whose memory does not count towards the limits of a process
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmdt": (67, 197),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "mq_timedsend": (242, 182),
    "mq_timedreceive": (243, 183),
    "mq_notify": (244, 184),
    "mq_getsetattr": (245, 185),
    "memfd_secret": (447, 447),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # large parts of the kernel that tested programs do not need
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "modify_ldt": (154, None),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "lookup_dcookie": (212, 18),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27),
    "personality": (135, 92),
    # the machine
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "iopl": (172, None),
    "ioperm": (173, None),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    # mounts and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
}
ABSENT: dict[str, tuple[int, int]] = {  # libraries fall back if the kernel answers that it lacks the call
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "clone3": (435, 435),  # its flags lie in memory, where a filter cannot see them; glibc falls back to clone
}
MEMFD_CREATE = (319, 279)
SOCKET = (41, 198)
SOCKETPAIR = (53, 199)
CLONE = (56, 220)
IOCTL = (16, 29)


def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """Pack one instruction (struct sock_filter). The jumps are numbers of instructions to skip."""
    return struct.pack("<HBBI", code, if_true, if_false, value)


def fail(number: int) -> int:
    """Return the action that makes a call fail with an error number."""
    return FAIL | number


def deny(number: int, action: int) -> bytes:
    """Return the instructions that answer one call with ``action``."""
    return instruction(EQUAL, number, 0, 1) + instruction(RETURN, action)


@lru_cache(maxsize=2)
def filter_program(allow_memfd: bool = False, machine: str = "") -> bytes:
    """Assemble the filter for this machine's architecture. The filter is empty for an unknown architecture.

    ``allow_memfd`` permits files in memory, whose size only a control group bounds.
    """
    machine = machine or platform.machine()
    if machine not in AUDIT_ARCH:
        return b""
    table = 0 if machine == "x86_64" else 1
    # The numbers of system calls differ between architectures, and a 64-bit process may make 32-bit calls. A call of
    # another architecture therefore kills the process. Otherwise such a call could bypass the list below by its
    # number.
    lines = [
        instruction(LOAD, ARCHITECTURE),
        instruction(EQUAL, AUDIT_ARCH[machine], 1, 0),
        instruction(RETURN, KILL),
        instruction(LOAD, NUMBER),
    ]
    if machine == "x86_64":
        lines += [instruction(AT_LEAST, X32, 0, 1), instruction(RETURN, fail(errno.ENOSYS))]
    denied = [numbers[table] for numbers in DENIED.values()]
    lines += [deny(number, fail(errno.EPERM)) for number in denied if number is not None]
    absent = [*ABSENT.values(), *([] if allow_memfd else [MEMFD_CREATE])]
    lines += [deny(numbers[table], fail(errno.ENOSYS)) for numbers in absent]
    # multiprocessing and asyncio need sockets, but families such as packet, netlink or vsock reach deep into the
    # kernel.
    for call in (SOCKET, SOCKETPAIR):
        lines += _if_called(call[table], FIRST_ARGUMENT, _allow_only(FAMILIES, errno.EAFNOSUPPORT))
    lines += _if_called(CLONE[table], FIRST_ARGUMENT, [instruction(ANY_BIT, NEW_NAMESPACES & ~0xFF, 0, 1), _refuse()])
    lines += _if_called(IOCTL[table], SECOND_ARGUMENT, [instruction(EQUAL, TIOCSTI, 0, 1), _refuse()])
    lines.append(instruction(RETURN, ALLOW))
    return b"".join(lines)


def _refuse() -> bytes:
    return instruction(RETURN, fail(errno.EPERM))


def _allow_only(values: tuple[int, ...], number: int) -> list[bytes]:
    """Allow a few values of the loaded argument and fail for all others."""
    last = len(values)
    tests = [instruction(EQUAL, value, last - at, 0) for at, value in enumerate(values)]
    return [*tests, instruction(RETURN, fail(number))]


def _if_called(number: int, argument: int, body: list[bytes]) -> list[bytes]:
    """Apply ``body`` to an argument of one call, then load the call's number again."""
    steps = [instruction(LOAD, argument), *body, instruction(LOAD, NUMBER)]
    return [instruction(EQUAL, number, 0, len(steps)), *steps]
