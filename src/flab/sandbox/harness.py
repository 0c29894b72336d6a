"""Run inside the sandbox: set the limits, load the program, run its tests in the same interpreter, and report.

``process`` gives the code of ``MODULES`` to a fresh interpreter. flab's own process never calls it. The program is loaded
before the tests and the secret arrive. ``runner`` turns the report into a verdict.

The report has three lines:

1. ``started``;
2. ``loaded`` and the first key, upon which the tests are sent;
3. the second key and the secret if all tests returned, otherwise an outcome; then CPU microseconds and a detail.
"""

from __future__ import annotations

import _ctypes  # importing the package ctypes would take a tenth of the start-up time
import _signal  # type: ignore[import-not-found]  # signal would import enum
import _socket
import builtins
import faulthandler
import fcntl
import os
import resource
import struct
import sys
from os import _exit, write

from flab.sandbox import forms, guard, honest, pristine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MODULES = ("pristine", "honest", "guard", "forms", "harness")  # in the order in which they import each other
MARK = "\0flab:"  # begins the constants that ``rewrite`` puts in the place of helpers
# linux/prctl.h
SET_DEATH_SIGNAL = 1
SET_DUMPABLE = 4
SET_SECCOMP = 22
SET_NO_NEW_PRIVS = 38
# linux/sockios.h and linux/if.h
GET_LINK_FLAGS = 0x8913
SET_LINK_FLAGS = 0x8914
LINK_UP = 1
# linux/seccomp.h and linux/capability.h
FILTER = 2
CAPABILITY_VERSION = 0x20080522
FRAMES = 30  # stack frames of the harness, the test helpers and the hook, which are not the program's
# The kernel counts CPU time for the limit in ticks. Its count was seen to run a seventh ahead of the time used.
GRACE_S = 1
FAILURES: tuple[tuple[type[BaseException], str], ...] = (
    (MemoryError, "memory"),
    (NameError, "name"),
    (AssertionError, "assertion"),
    (SystemExit, "exit"),
)
NOTHING_ASSERTED = "the tests asserted nothing"
NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError)


def set_limits(limits: dict[str, int]) -> None:
    """Lower the limits of these names. The hard CPU limit is one second later, so that SIGXCPU arrives first."""
    for name, value in limits.items():
        which = getattr(resource, name, None)
        if which is None:
            continue
        hard = value + 1 if name == "RLIMIT_CPU" else value
        # The machine may already have a lower limit. Raising that would need privileges.
        ceiling = resource.getrlimit(which)[1]
        hard = hard if ceiling == resource.RLIM_INFINITY else min(hard, ceiling)
        resource.setrlimit(which, (min(value, hard), hard))


def system_call(name: str, *arguments: int | bytes) -> None:
    """Call a function of the C library on Linux. Raise OSError if it fails."""
    if sys.platform == "linux":
        # ``ctypes`` would do this, but its import takes a tenth of the start-up time of every run.
        library = _ctypes.dlopen(None, 2)  # type: ignore[arg-type]
        address = _ctypes.dlsym(library, name)
        if _ctypes.call_function(address, arguments) != 0:
            raise OSError(f"{name} failed")


def start_loopback() -> None:
    """Bring up the loopback interface of the run's empty network. Do nothing without the right to do so."""
    link = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    try:
        answer = fcntl.ioctl(link.fileno(), GET_LINK_FLAGS, struct.pack("16sH14x", b"lo", 0))
        flags = struct.unpack("16sH14x", answer)[1] | LINK_UP
        fcntl.ioctl(link.fileno(), SET_LINK_FLAGS, struct.pack("16sH14x", b"lo", flags))
    except OSError:
        pass
    finally:
        link.close()


def drop_privileges(filter_program: bytes) -> None:
    """Tie this process to its parent's life, drop all capabilities for good, deny inspection and install the filter."""
    # The order matters. An unprivileged process may install a filter only after no_new_privs. The filter comes last, so
    # that it need not allow any of the calls made here. Because the process is not dumpable, no other process of the
    # same user can read its memory or descriptors.
    system_call("prctl", SET_DEATH_SIGNAL, int(_signal.SIGKILL), 0, 0, 0)
    system_call("prctl", SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    system_call("capset", struct.pack("Ii", CAPABILITY_VERSION, 0), bytes(24))
    system_call("prctl", SET_DUMPABLE, 0, 0, 0, 0)
    if filter_program:
        lines: Any = type("Lines", (_ctypes.Array,), {"_type_": Byte, "_length_": len(filter_program)})
        kept = lines.from_buffer_copy(filter_program)
        argument = struct.pack("HxxxxxxQ", len(filter_program) // 8, _ctypes.addressof(kept))
        system_call("prctl", SET_SECCOMP, FILTER, argument, 0, 0)


def cpu_seconds() -> float:
    """Return the CPU time in seconds of this process and of those of its children that have ended."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def seed(text: str) -> None:
    """Seed ``random`` if the text mentions it, so that a verdict does not depend on chance."""
    if "random" in text:
        import random

        random.seed(0)


class Byte(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """A byte of memory for ctypes arrays. The module array would import collections."""

    _type_ = "B"


class Reporter:
    """Writes the lines of the report. Any line other than ``started`` and ``loaded`` ends the process."""

    def __init__(self, descriptor: int, began: float) -> None:
        self.descriptor = descriptor
        self.began = began
        self.getrusage = resource.getrusage

    def __call__(self, word: str, detail: str) -> None:
        if word == "loaded":
            write(self.descriptor, f"loaded {detail}\n".encode())
            return
        used = [self.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        seconds = sum(one.ru_utime + one.ru_stime for one in used) - self.began
        text = f"{word} {max(1, int(seconds * 1e6))} {detail}".replace("\n", " ").encode("utf-8", "backslashreplace")
        write(self.descriptor, text[:1000] + b"\n")
        _exit(0)


def trusted_files(packages: str) -> Callable[[str], bool]:
    """Return a function that tells whether a file name is of the standard library or an installed package."""
    library = os.__file__.rpartition("/")[0] + "/"
    folders = (library, "<frozen ", *([packages + "/"] if packages else []))
    return lambda name: name.startswith(folders)


def describe(error: BaseException, source: str) -> str:
    """Describe the error and, if its traceback passes through the tests, quote the line of the tests."""
    line = 0
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == guard.TEST:
            line = trace.tb_lineno
        trace = trace.tb_next
    lines = source.splitlines()
    where = f" at: {lines[line - 1].strip()}" if 0 < line <= len(lines) else ""
    try:
        text = f"{type(error).__name__[:100]}: {error}"
    except BaseException:
        text = f"{type(error).__name__[:100]}: (an exception that cannot be printed)"
    return text[:300] + where[:300]


def outcome_of(error: BaseException) -> str:
    """Return the outcome that an exception stands for."""
    return next((outcome for kind, outcome in FAILURES if isinstance(error, kind)), "exception")


def with_helpers(code: Any, found: dict[str, Any]) -> Any:
    """Replace the constants that stand for helpers and builtins by the real objects."""

    def constant(value: Any) -> Any:
        if type(value) is str and value.startswith(MARK):
            return found[value.removeprefix(MARK)]
        if type(value) in (tuple, frozenset):
            return type(value)(map(constant, value))
        return with_helpers(value, found) if hasattr(value, "co_consts") else value

    return code.replace(co_consts=tuple(map(constant, code.co_consts)))


class Calls:
    """Notes whether the tests ran any code of the program."""

    def __init__(self, setprofile: Callable[[Any], None]) -> None:
        self.setprofile = setprofile
        self.any = False

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename == guard.PROGRAM:
            self.note()
            self.setprofile(None)

    def note(self) -> None:
        """Note a call of the program, or that calls may happen where the profiler does not see them."""
        self.any = True


def load(code: Any, names: dict[str, Any], end: Callable[[str, str], None]) -> None:
    """Execute the program. Any exception ends the run."""
    try:
        exec(code, names)
    except BaseException as error:
        end(outcome_of(error), describe(error, ""))


def lender(names: dict[str, Any], program: str, modules: dict[str, Any]) -> Callable[[str], Any]:
    """Return a function for the modules that tests use without an import. It finds the real one if the program imports it."""
    lines = [line.replace(",", " ").split() for line in program.splitlines()]
    imported = {word for line in lines if line[:1] in (["import"], ["from"]) for word in line}

    def module(name: str) -> Any:
        value = names[name] if name in names else eval(name, names)
        is_module = isinstance(value, type(sys)) and value is not modules.get(name)
        is_thing = not hasattr(value, "__qualname__") and not isinstance(value, type(sys))
        return modules.get(name, value) if name in imported and (is_module or is_thing) else value

    return module


def run_tests(
    names: dict[str, Any], tests: dict[str, Any], lies: honest.Honest, calls: Calls, borrow: Callable[[str], Any]
) -> Any:
    """Execute the tests and call what they define. Return the candidate."""
    if tests["code"] is None:
        raise SyntaxError(f"the tests are not Python: {tests['problem']}")
    candidate = forms.find_candidate(names, tests["entry_point"])
    lies.mocks = "mock" in tests["source"]
    # The compiled tests contain marks for the builtins and helpers that they use. Here the real objects replace the marks. The
    # builtins are the originals, because they have been restored by now.
    code = with_helpers(tests["code"], {**vars(builtins), **lies.helpers, "module": borrow})
    form = tests["form"]
    if form["guarded"]:
        names["__name__"] = "__main__"
    calls.setprofile(calls)
    if "threading" in sys.modules:  # the tests may start threads that call the program
        sys.modules["threading"].setprofile(calls)
    exec(code, names)
    # The program must not replace what the tests have defined. The definitions are recorded before the test functions run
    # and are compared afterwards.
    form["values"] = {name: names.get(name) for name in form["bound"]}
    form["methods"] = {name: pristine.methods(names.get(name)) for name in form["bound"]}
    forms.run_form(names, form, candidate)
    return candidate


def verdict(
    names: dict[str, Any],
    tests: dict[str, Any],
    snapshot: pristine.Pristine,
    lies: honest.Honest,
    calls: Calls,
    borrow: Callable[[str], Any],
) -> tuple[str, str]:
    """Run the tests and return outcome and detail. A pass must have called the program and changed nothing else."""
    try:
        candidate = run_tests(names, tests, lies, calls, borrow)
    except BaseException as error:
        return outcome_of(error), describe(error, tests["source"])
    # A pass has to survive four questions. Did an object lie? Was a failed assert swallowed? Was anything patched? Did the
    # tests call the program at all?
    lies.look_at_pending()
    if lies.swallowed:
        line = tests["source"].splitlines()[lies.swallowed[0] - 1].strip()
        return "assertion", f"an assert failed and its exception was swallowed at: {line[:300]}"
    changed = snapshot.changed(set(tests["patched"]))
    form = tests["form"]
    moved = [name for name, value in form["values"].items() if names.get(name) is not value]
    for name, found in form["methods"].items():
        now = pristine.methods(names.get(name))
        moved += [f"{name}.{method}" for method, value in found.items() if now.get(method) is not value]
    if changed or moved:
        return "tampering", f"{changed or moved[0]} was replaced while the tests ran"
    if not calls.any and not form["looks"] and hasattr(candidate, "__code__"):
        return "uncalled", f"the tests never called {tests['entry_point']}"
    return "passed", "" if lies.looked else NOTHING_ASSERTED


def main(job: dict[str, Any], tests_fd: int, report_fd: int) -> None:
    """Limit this process, load the program, ask for the tests, run them and report."""
    os.environ.clear()
    # numpy's memory grows with its threads. ``putenv`` does not change os.environ, so the program sees an empty one.
    os.putenv("OPENBLAS_NUM_THREADS", "1")
    sys.path[:] = [folder for folder in sys.path if folder] + ([job["packages"]] if job["packages"] else [])
    sys.argv[:] = ["candidate"]
    # All limits but one are set before any code of the program is read. The CPU limit follows after the start-up, whose
    # time does not count.
    limit = job["limits"].pop("RLIMIT_CPU")
    set_limits(job["limits"])
    if job["own_network"]:
        start_loopback()
    drop_privileges(job["filter"])
    write(report_fd, b"started\n")
    # This copy is made before the program is compiled or run. The tests will find these originals in their places.
    snapshot = pristine.Pristine(pristine.preload(job["modules"]))
    began = cpu_seconds()
    set_limits({"RLIMIT_CPU": limit + GRACE_S + round(began)})
    # At the CPU limit the interpreter writes a traceback into the report. It shows which line of the tests was waiting.
    faulthandler.register(_signal.SIGXCPU, report_fd, all_threads=False, chain=True)
    reporter = Reporter(report_fd, began)
    try:
        code = compile(job["program"], guard.PROGRAM, "exec", dont_inherit=True, optimize=0)
    except NOT_PYTHON as error:
        reporter("syntax", describe(error, ""))
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)
    run(job, code, tests_fd, reporter, snapshot)


def run(job: dict[str, Any], code: Any, tests_fd: int, reporter: Reporter, snapshot: pristine.Pristine) -> None:
    """Load the program and run its tests under the guard."""
    audit = sys.audit
    setprofile = sys.setprofile
    is_trusted = trusted_files(job["packages"])

    def end(outcome: str, detail: str) -> None:
        audit(guard.END_EVENT, outcome, detail)

    lies = honest.Honest(is_trusted, lambda what: end("tampering", what))
    module = sys.modules["candidate"] = sys.modules["__main__"] = type(sys)("candidate")
    names = vars(module)
    # The program gets the real builtins, which tests may patch. The harness works on a copy.
    names["__builtins__"] = sys.modules["builtins"]
    program = job.pop("program")
    borrow = lender(names, program, snapshot.modules)
    seed(program)
    # The harness and the helpers use stack frames too. The program gets as many frames as it would have on its own.
    sys.setrecursionlimit(sys.getrecursionlimit() + FRAMES)
    calls = Calls(setprofile)
    sys.addaudithook(guard.Guard(is_trusted, tests_fd, reporter, job.pop("keys"), calls.note).hook)
    # This order is the point of the whole file. The program is loaded while the tests are still outside the process.
    # Then the tests arrive, builtins and modules are restored, and the tests run.
    load(code, names, end)
    audit(guard.LOADED_EVENT)
    box: list[dict[str, Any]] = []
    audit(guard.TESTS_EVENT, box)
    tests = box.pop()
    snapshot.restore()
    seed(tests["source"])
    end(*verdict(names, tests, snapshot, lies, calls, borrow))
