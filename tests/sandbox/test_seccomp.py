"""The filter of system calls: what it refuses, asked of the kernel, and what the filter program holds."""

import errno
import platform

import pytest

from flab.errors import SandboxError
from flab.sandbox import Sandbox, jail, seccomp

TEST = "def check(candidate):\n    assert candidate(1, 2) == 3\n"
NUMBERS = 0 if platform.machine() == "x86_64" else 1


def refused(call):
    """A program that adds right only if a child of its own is refused a call."""
    source = (
        "import ctypes, errno, os, socket\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        f"def call():\n    {call}\ntry:\n    call()\nexcept OSError as error:\n    print(errno.errorcode[error.errno])\n"
    )
    return (
        "import subprocess, sys\n"
        f"said = subprocess.run([sys.executable, '-c', {source!r}], capture_output=True, text=True).stdout.strip()\n"
        "def add(a, b):\n    return a + b if said in ('EPERM', 'ENOSYS', 'EAFNOSUPPORT') else said\n"
    )


def by_number(name, arguments="0, 0, 0, 0, 0"):
    table = seccomp.DENIED | seccomp.ABSENT
    number = table[name][NUMBERS]
    return (
        f"if libc.syscall({number}, {arguments}) < 0: raise OSError(ctypes.get_errno(), 'refused')\n    print('done')"
    )


CALLS = {
    name: by_number(name)
    for name in (*seccomp.DENIED, *seccomp.ABSENT)
    if (seccomp.DENIED | seccomp.ABSENT)[name][NUMBERS]
}
CALLS |= {
    f"family {family}": f"socket.socket({family}, socket.SOCK_RAW)" for family in (16, 17, 31, 38, 40)
}  # netlink, packet, bluetooth, alg, vsock


@pytest.fixture(
    scope="module", params=[*jail.launchers(), ("rlimits", jail.bare_launcher)], ids=lambda p: p[1].__name__
)
def sandbox(request):
    from flab.sandbox import probe

    found = Sandbox(*request.param)
    if not seccomp.filter_program():
        pytest.skip("no filter for this architecture")
    if found.level != "rlimits" and (problem := probe(found)) is not None:
        pytest.skip(problem)
    return found


def test_the_kernel_refuses_every_call_of_the_list(sandbox):
    from flab.sandbox import Job

    verdicts = sandbox.run_many([Job(refused(call), TEST, "add") for call in CALLS.values()])
    assert {name: one.detail for name, one in zip(CALLS, verdicts, strict=True) if not one.passed} == {}


@pytest.mark.parametrize("family", ["AF_UNIX", "AF_INET", "AF_INET6"])
def test_usual_sockets_can_be_made(sandbox, family):
    program = f"import socket\nsocket.socket(socket.{family}).close()\ndef add(a, b):\n    return a + b\n"
    assert sandbox.run(program, TEST, "add").passed


def test_files_in_memory_are_refused_where_nothing_bounds_them():
    assert seccomp.filter_program(True) != seccomp.filter_program(False)


def test_an_unknown_architecture_has_no_filter():
    assert seccomp.filter_program(False, "s390x") == b""
    assert len(seccomp.filter_program(False, "aarch64")) % 8 == 0


def test_no_number_stands_twice():
    for table in (0, 1):
        numbers = [pair[table] for pair in (seccomp.DENIED | seccomp.ABSENT).values() if pair[table] is not None]
        assert len(numbers) == len(set(numbers))
    assert errno.EPERM == 1


def test_no_sandbox_error_is_swallowed():
    with pytest.raises(SandboxError, match="did not start"):
        Sandbox("namespaces", lambda packages: ["false"]).run("x = 1", TEST, "add")
