"""What runs inside the sandbox, next to the model-written program: limits, program, tests, one report.

``sandbox`` reads this file as text and gives it to a fresh interpreter with ``-c``; it is never imported by
the library. It imports only the standard library, and it does not protect itself against a program that walks
the interpreter's frames: see ``sandbox`` for what is stopped and what is not.

Protocol, one line each on the report descriptor: ``started``, then either the secret (all tests returned) or
``<outcome> <detail>``. The secret waits in a pipe, so that no Python object holds it while the program runs.
"""

from __future__ import annotations

import builtins
import marshal
import os
import resource
import sys
import types
from typing import Any

SECRET_CHARS = 32


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


def describe(error: BaseException, test: str) -> str:
    """Name the error and, where the trace passes through the tests, the line of the test that met it."""
    line = 0
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<test>":
            line = trace.tb_lineno
        trace = trace.tb_next
    where = f" at: {test.splitlines()[line - 1].strip()}" if line else ""
    return f"{type(error).__name__}: {error}"[:300] + where[:300]


def run(program: str, test: str, entry_point: str) -> tuple[str, BaseException | None]:
    """Execute program, test and ``check(entry_point)``; return the outcome and the error that caused it.

    The tests run on a copy of the program's names with the builtins as they were before the program. What the
    program can replace in ``builtins`` (``isinstance`` and others) is bound here before it starts.
    """
    execute, is_a, find, missing = exec, isinstance, dict.get, object()
    failures: tuple[tuple[Any, str], ...] = (
        (MemoryError, "memory"),
        (NameError, "name"),
        (AssertionError, "assertion"),
        (SystemExit, "exit"),
    )
    pristine = dict(vars(builtins))
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    try:
        program_code = compile(program, "<program>", "exec", dont_inherit=True, optimize=0)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        return "syntax", error
    try:
        test_code = compile(test, "<test>", "exec", dont_inherit=True, optimize=0)
        execute(program_code, module.__dict__)
        names = {**module.__dict__, "__builtins__": pristine}
        own_check = find(names, "check", missing)
        candidate = find(names, entry_point, missing)
        if candidate is missing:
            return "name", NameError(f"the program does not define {entry_point}")
        execute(test_code, names)
        check = find(names, "check", missing)
        if check is not own_check:
            check(candidate)
    except BaseException as error:
        for kind, outcome in failures:
            if is_a(error, kind):
                return outcome, error
        return "exception", error
    return "passed", None


def main(program_fd: int, secret_fd: int, report_fd: int) -> None:
    """Read the job, run it, report and leave at once, so that nothing the program registered still runs."""
    read, write, leave, process_id = os.read, os.write, os._exit, os.getpid
    with open(program_fd, "rb") as file:
        job = marshal.load(file)  # half the start-up time of json, and both ends are the same Python
    os.environ.clear()
    sys.path[:] = [folder for folder in sys.path if folder]
    sys.argv[:] = ["candidate"]
    set_limits(job["limits"])
    test, own_id, tell = job["test"], process_id(), describe
    write(report_fd, b"started\n")
    outcome, error = run(job["program"], test, job["entry_point"])
    if process_id() != own_id:  # a fork of the program came back here
        leave(0)
    if error is None:
        write(report_fd, read(secret_fd, SECRET_CHARS) + b"\n")
        leave(0)
    write(report_fd, outcome.encode() + b" ")
    try:
        detail = tell(error, test).replace("\n", " ").encode("utf-8", "backslashreplace")
    except BaseException:
        detail = b""
    write(report_fd, detail[:1000] + b"\n")
    leave(0)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
