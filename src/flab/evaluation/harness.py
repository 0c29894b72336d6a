"""What runs inside the sandbox: limits, then two processes, the program's and the judge's, and one report.

``process`` gives the code of this file and of ``MODULES`` to a fresh interpreter; the library never calls it.
The program is compiled and forked off before the tests and the secret are read, and keeps no descriptor but its
output and two pipes: what it must not know was never in its memory. The judge lets no process look into it, and
calls the program's functions through ``remote``. What a verdict means ``sandbox`` decides.

Report, one line each: ``started``, then the secret (all tests returned) or an outcome, each followed by the CPU
microseconds of both processes and a detail.
"""

from __future__ import annotations

import _ctypes  # the package ctypes would take a tenth of the start
import _signal  # type: ignore[import-not-found]  # signal would import enum
import marshal
import os
import resource
import select
import struct
import sys

from flab.evaluation import judge
from flab.evaluation.remote import Broken, Channel, Peer, Policy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MODULES = ("wire", "proxies", "standins", "remote", "judge", "harness")  # in the order of their imports
SET_DUMPABLE, SET_NO_NEW_PRIVS, CAPABILITY_VERSION = 4, 38, 0x20080522  # linux/prctl.h, linux/capability.h
PROGRAM_FRAMES = 1040  # the usual thousand, and what is below the program here
PATIENCE_S = 1.0
GRACE_S = 1  # the kernel counts CPU time for the limit in ticks, and was seen a seventh ahead of what was used


def set_limits(limits: dict[str, int]) -> None:
    """Lower limits by name; the CPU's hard limit is one second later, so that SIGXCPU comes first."""
    for name, value in limits.items():
        which = getattr(resource, name, None)
        if which is None:
            continue
        hard = value + 1 if name == "RLIMIT_CPU" else value
        ceiling = resource.getrlimit(which)[1]
        hard = hard if ceiling == resource.RLIM_INFINITY else min(hard, ceiling)
        resource.setrlimit(which, (min(value, hard), hard))


def system_call(name: str, *arguments: int | bytes) -> None:
    """Call a function of the C library where it is Linux's; OSError where it fails."""
    if sys.platform == "linux":
        library = _ctypes.dlopen(None, 2)  # type: ignore[arg-type]
        address = _ctypes.dlsym(library, name)
        if _ctypes.call_function(address, arguments) != 0:
            raise OSError(f"{name} failed")


def drop_privileges() -> None:
    """Give up all capabilities for good, and let no process of this user look into this one."""
    system_call("prctl", SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    system_call("capset", struct.pack("Ii", CAPABILITY_VERSION, 0), bytes(24))
    system_call("prctl", SET_DUMPABLE, 0, 0, 0, 0)


class Candidate:
    """The program's process as the judge sees it: whether it lives, how it ended, what it used."""

    def __init__(self, process_id: int, read_fd: int, cpu_limit: int) -> None:
        self.process_id, self.read_fd, self.cpu_limit = process_id, read_fd, cpu_limit
        self.code: int | None = None
        self.cpu_seconds = 0.0
        self.ended_fd = os.pidfd_open(process_id) if hasattr(os, "pidfd_open") else read_fd
        self.poll = select.poll()
        for descriptor in {read_fd, self.ended_fd}:
            self.poll.register(descriptor, select.POLLIN)

    def wait(self) -> bool:
        """Wait for bytes; False once the process ended, even where a child of it still holds the pipe."""
        return any(descriptor == self.read_fd for descriptor, _ in self.poll.poll())

    def end(self, patience_s: float = 0.0) -> None:
        """Wait a little for the process to end by itself, then kill it; note how it ended."""
        if self.code is not None:
            return
        ended = select.poll()
        ended.register(self.ended_fd, select.POLLIN)
        if not ended.poll(patience_s * 1000) or self.ended_fd == self.read_fd:
            os.kill(self.process_id, _signal.SIGKILL)
        _, status, usage = os.wait4(self.process_id, 0)
        self.code = os.waitstatus_to_exitcode(status)
        self.cpu_seconds = usage.ru_utime + usage.ru_stime

    def explain(self, error: BaseException) -> Broken:
        """Say what a failure to hear the program means."""
        if isinstance(error, (EOFError, OSError)):
            self.end(PATIENCE_S)
            return Broken(*name_end(self.code or 0, self.cpu_seconds, self.cpu_limit))
        if isinstance(error, MemoryError):
            return Broken("memory", "an answer of the program is too large")
        return Broken("exit", f"an answer of the program is malformed: {type(error).__name__}: {error}"[:200])


def name_end(code: int, cpu_seconds: float, cpu_limit: int) -> tuple[str, str]:
    """Name the end of a process that did not finish: CPU limit, memory, or left early."""
    if code == -_signal.SIGXCPU or (code == -_signal.SIGKILL and cpu_seconds >= cpu_limit):
        return "timeout", f"more than {cpu_limit} s of CPU time"
    if code == -_signal.SIGKILL:
        return "memory", "killed by the system"
    end = f"signal {-code}" if code < 0 else f"code {code}"
    return "exit", f"ended with {end} before its tests were over"


def seed(text: str) -> None:
    """Let ``random`` begin alike in every run of a text that uses it, so that no verdict changes by luck."""
    if "random" in text:
        import random

        random.seed(0)


def leave(error: BaseException) -> Broken:
    """End the program's process when the judge is gone."""
    os._exit(1)


def serve_program(job: dict[str, Any], code: Any, read_fd: int, write_fd: int) -> None:
    """Be the program's process: load it, say how that went, and do what the judge asks until it is killed."""
    for low, high in ((3, read_fd), (read_fd + 1, write_fd), (write_fd + 1, 2**16)):
        os.closerange(low, high)
    system_call("prctl", SET_DUMPABLE, 1, 0, 0, 0)
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)
    set_limits({"RLIMIT_CPU": job["limits"]["RLIMIT_CPU"] + GRACE_S})
    peer = Peer(Channel(read_fd, write_fd, lambda: True), Policy(), leave)
    module = sys.modules["candidate"] = type(sys)("candidate")
    peer.export(vars(module))
    sys.setrecursionlimit(PROGRAM_FRAMES)
    seed(job.pop("program"))
    try:
        exec(code, vars(module))
    except BaseException as error:
        peer.reply(b"E", error)
    else:
        peer.reply(b"A", None)
    while True:
        peer.hear([])


def report(report_fd: int, word: str, cpu_seconds: float, detail: str) -> None:
    """Write the last line; nothing can follow it."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    total = int((own.ru_utime + own.ru_stime + cpu_seconds) * 1e6)
    text = f"{word} {total} {detail}".replace("\n", " ").encode("utf-8", "backslashreplace")
    os.write(report_fd, text[:1000] + b"\n")
    os._exit(0)


def judge_program(job: dict[str, Any], candidate: Candidate, peer: Peer, test_fd: int, report_fd: int) -> None:
    """Be the judge's process: read the tests and the secret, run the tests, report."""
    with open(test_fd, "rb") as file:
        tests = marshal.load(file)
    sys.setrecursionlimit(6000)  # comparing nested data needs depth
    seed(tests["test"])
    outcome, error = judge.outcome_of(peer, job["program"], tests)
    try:
        detail = "" if error is None else judge.describe(error, tests["test"])
    except BaseException:
        detail = ""
    candidate.end()
    word = tests["secret"] if outcome == "passed" else outcome
    report(report_fd, word, candidate.cpu_seconds, detail)


def main(job: dict[str, Any], test_fd: int, report_fd: int) -> None:
    """Limit this process, compile the program, fork it off and judge it."""
    os.environ.clear()
    sys.path[:] = [folder for folder in sys.path if folder]
    sys.argv[:] = ["candidate"]
    limit = job["limits"]["RLIMIT_CPU"]
    set_limits({**job["limits"], "RLIMIT_CPU": limit + GRACE_S + 1})  # and a second for the start
    drop_privileges()
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # an interrupt by the program ends the judge
    os.write(report_fd, b"started\n")
    try:
        code = compile(job["program"], "<program>", "exec", dont_inherit=True, optimize=0)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        report(report_fd, "syntax", 0.0, judge.describe(error, ""))
    (from_judge, to_program), (from_program, to_judge) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        serve_program(job, code, from_judge, to_judge)
    os.close(from_judge)
    os.close(to_judge)
    candidate = Candidate(child, from_program, limit)
    peer = Peer(Channel(from_program, to_program, candidate.wait), judge.Guard(), candidate.explain)
    judge_program(job, candidate, peer, test_fd, report_fd)
