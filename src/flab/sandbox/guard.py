"""An audit hook that ends the program when it reaches for what the tests and the harness know, and that holds the key.

Python raises an audit event when a frame, a traceback's frame, a generator's frame, the interpreter's objects, tracing or
native memory are reached for (PEP 578). The hook finds who asked: code of the standard library may, for itself, the
tests may, the program may not. A hook cannot be removed, and nothing that a program can name leads to this one.

The key of a verdict lies here and in no frame. The harness asks for the tests and for the end of the run by events of
its own, which the hook takes from the harness's own code only.
"""

from __future__ import annotations

import sys

# Taken before the program can put something else in their place.
from _thread import get_ident
from marshal import loads
from os import _exit, close, fsdecode, getpid, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

HARNESS = "<flab>"
TEST = "<test>"
PROGRAM = "<program>"
TESTS_EVENT = "flab.tests"
END_EVENT = "flab.end"
LOADED_EVENT = "flab.loaded"
FRAME_NAMES = ("tb_frame", "gi_frame", "cr_frame", "ag_frame")
CODE_NAMES = ("__code__", "__defaults__", "__kwdefaults__")
# Functions of the standard library that hand frames, or the values in them, to whoever calls them.
GIVES_AWAY = {
    "inspect.py": set(
        "currentframe stack trace getouterframes getinnerframes getframeinfo getgeneratorlocals getcoroutinelocals "
        "getasyncgenlocals getclosurevars".split()
    ),
    "traceback.py": {"walk_stack", "walk_tb"},
    "base_tasks.py": {"_task_get_stack"},
}
LOGGING = ("<lambda>", "currentframe")  # in logging/__init__.py, which has one of its own
NATIVE = set(
    "dlopen dlsym dlsym/handle call_function cdata addressof string_at wstring_at PyObj_FromPtr set_exception".split()
)
INTERNAL_MODULES = set(
    "_testcapi _testinternalcapi _testbuffer _testmultiphase _xxsubinterpreters _xxinterpchannels _interpreters "
    "_testlimitedcapi _testclinic _opcode_metadata_test".split()
)


class Guard:
    """The hook's state: who is trusted, where the tests come from, where a verdict goes."""

    def __init__(
        self,
        trusted: Callable[[str], bool],
        tests_fd: int,
        report: Callable[[str, str], None],
        keys: tuple[str, str],
        elsewhere: Callable[[], None],
    ) -> None:
        self.trusted = trusted
        self.tests_fd = tests_fd
        self.report = report
        self.keys = keys
        self.secret = ""
        self.elsewhere = elsewhere
        self.process_id = getpid()
        self.busy: set[int] = set()
        self.getframe = sys._getframe
        self.checks: dict[str, Callable[[Any, tuple[Any, ...]], None]] = {
            "sys._getframe": self.frame,
            "object.__getattr__": self.attribute,
            "object.__setattr__": self.change,
            "object.__delattr__": self.change,
            "compile": self.named_code,
            "exec": self.code,
            "function.__new__": self.code,
            "code.__new__": self.named_code,
            "open": self.open,
            "import": self.imported,
            "os.fork": self.elsewhere_too,
            "_thread.start_new_thread": self.elsewhere_too,
            TESTS_EVENT: self.deliver,
            LOADED_EVENT: self.loaded,
            END_EVENT: self.end,
        }
        for event in "sys._current_frames sys._current_exceptions sys.settrace sys.setprofile sys.addaudithook".split():
            self.checks[event] = self.reach
        for event in "gc.get_objects gc.get_referrers gc.get_referents sys.monitoring.register_callback".split():
            self.checks[event] = self.reach
        self.checks |= {f"ctypes.{event}": self.native for event in NATIVE}

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        """Look at one event; whatever goes wrong here ends the run."""
        check = self.checks.get(event)
        if check is None:
            return
        # Looking at a frame raises audit events itself, which would end in endless recursion.
        thread = get_ident()
        if thread in self.busy:  # our own look at a frame
            return
        self.busy.add(thread)
        try:
            check(self.getframe(1), args)
        except BaseException as error:
            self.tampering(f"{event}: {type(error).__name__}")
        finally:
            self.busy.discard(thread)

    def tampering(self, what: str) -> None:
        """End the run."""
        self.report("tampering", f"the program reached for {what}")

    def asker(self, frame: Any) -> str:
        """Name the file of the nearest code outside of the standard library."""
        # Code of the standard library acts for whoever called it, so the nearest code outside of it is the one
        # that asks.
        while frame is not None and self.trusted(frame.f_code.co_filename):
            frame = frame.f_back
        return HARNESS if frame is None else str(frame.f_code.co_filename)

    def is_program(self, name: str) -> bool:
        """Return whether code of this file is the program's, or was made by it."""
        return name not in (HARNESS, TEST) and not self.trusted(name)

    def reach(self, frame: Any, args: tuple[Any, ...]) -> None:
        """Refuse the program, directly and through the standard library."""
        name = frame.f_code.co_filename
        # doctest saves the tracing function that there was and sets it again.
        keeps_tracing = self.trusted(name) and name.endswith("/doctest.py")
        if not keeps_tracing and self.is_program(self.asker(frame)):
            self.tampering("the interpreter's frames, objects or tracing")

    def frame(self, frame: Any, args: tuple[Any, ...]) -> None:
        """Refuse a frame to the program; the standard library may have one that it keeps for itself."""
        name = frame.f_code.co_filename
        if not self.trusted(name):
            if self.is_program(name):
                self.tampering("a frame")
            return
        base = name.rpartition("/")[2]
        function = frame.f_code.co_name
        back = frame.f_back
        near = back.f_code.co_filename if back is not None else HARNESS
        if function in GIVES_AWAY.get(base, ()):
            kept = base != "inspect.py" and near == name
            given = not kept and self.is_program(self.asker(frame))
        else:
            given = base == "__init__.py" and function in LOGGING and self.is_program(near)
        if given:
            self.tampering(f"a frame, by {base}: {function}")

    def attribute(self, frame: Any, args: tuple[Any, ...]) -> None:
        """Refuse frames of tracebacks and generators, their code, and the code of functions that hold asserts."""
        target = args[0]
        name = args[1]
        if name in FRAME_NAMES:
            self.frame(frame, args)
        elif name == "f_code":
            near = frame.f_code
            if self.is_program(near.co_filename):
                self.tampering("a frame's code")
            elif frame.f_locals.get("capture_locals") and self.is_program(self.asker(frame)):  # traceback's
                self.tampering("the variables of frames")
        elif name == "__code__" and self.is_program(frame.f_code.co_filename):
            code = target.__code__
            if code.co_filename == TEST and code.co_name.startswith(("check", "test")):
                self.tampering("the code of a test")

    def change(self, frame: Any, args: tuple[Any, ...]) -> None:
        """Refuse new code or defaults for a function that is not the program's."""
        target = args[0]
        name = args[1]
        near = frame.f_code
        by_program = self.is_program(near.co_filename) or near.co_name == "update_wrapper"
        if name in CODE_NAMES and by_program and self.is_program(self.asker(frame)):
            code = getattr(target, "__code__", None)
            if code is not None and not self.is_program(code.co_filename):
                self.tampering("the code of a function that is not its own")

    def code(self, frame: Any, args: tuple[Any, ...]) -> None:
        """Refuse to run code that claims to be someone else's."""
        if not self.is_program(frame.f_code.co_filename):
            return
        waiting = [args[0]]
        while waiting:
            one = waiting.pop()
            if not self.is_program(one.co_filename):
                self.tampering("code in another's name")
            waiting += [constant for constant in one.co_consts if hasattr(constant, "co_filename")]

    def named_code(self, frame: Any, args: tuple[Any, ...]) -> None:
        """Refuse to make code that claims to be someone else's."""
        name = args[1] if len(args) > 1 else None
        if isinstance(name, bytes):
            name = fsdecode(name)
        if not self.is_program(frame.f_code.co_filename) or not isinstance(name, str):
            return
        if not self.is_program(name):
            self.tampering("code in another's name")

    def native(self, frame: Any, args: tuple[Any, ...]) -> None:
        """Refuse native memory to the program; ctypes may load itself, and multiprocessing may use it."""
        while frame is not None and "/ctypes/" in frame.f_code.co_filename and self.trusted(frame.f_code.co_filename):
            frame = frame.f_back
        if frame is not None and self.is_program(frame.f_code.co_filename):
            self.tampering("native code or memory")

    def open(self, frame: Any, args: tuple[Any, ...]) -> None:
        """Refuse the pipe of the tests by number, and the memory of processes by name."""
        path = args[0]
        if type(path) is int and path == self.tests_fd and self.is_program(self.asker(frame)):
            self.tampering("the harness's descriptors")
        text = path if isinstance(path, str) else fsdecode(path) if isinstance(path, bytes) else ""
        if text.startswith(("/proc/", "/dev/fd")) and text.rpartition("/")[2] in ("mem", "maps"):
            self.tampering("the memory of processes")

    def imported(self, frame: Any, args: tuple[Any, ...]) -> None:
        """Refuse modules that exist to look inside the interpreter."""
        if args[0] in INTERNAL_MODULES:
            self.tampering(f"the module {args[0]}")

    def elsewhere_too(self, frame: Any, args: tuple[Any, ...]) -> None:
        """Note that calls may now happen in another process or thread."""
        self.elsewhere()

    def from_harness(self, frame: Any) -> None:
        """Take an event of ours from the harness's own code only, and only in its own process."""
        # A forked child of the program has the hook and its keys as well. It must not be able to write a
        # verdict.
        if getpid() != self.process_id:
            _exit(1)
        if frame.f_code.co_filename != HARNESS:
            self.tampering("the harness")

    def loaded(self, frame: Any, args: tuple[Any, ...]) -> None:
        """Say that the program is loaded; flab then sends the tests."""
        self.from_harness(frame)
        self.report("loaded", self.keys[0])

    def deliver(self, frame: Any, args: tuple[Any, ...]) -> None:
        """Read the tests and the secret from the pipe; keep the secret, hand over the tests."""
        self.from_harness(frame)
        parts = []
        while part := read(self.tests_fd, 2**20):
            parts.append(part)
        close(self.tests_fd)
        self.tests_fd = -1  # the number may be another file's from now on
        tests = loads(b"".join(parts))
        self.secret = tests.pop("secret")
        args[0].append(tests)

    def end(self, frame: Any, args: tuple[Any, ...]) -> None:
        """Write the verdict: the key and the secret, or a failure."""
        self.from_harness(frame)
        outcome, detail = args
        # A pass is proven by a key that was here from the start and a secret that came with the tests: no
        # program that ends the run early, or prints what a pass looks like, can know both.
        word = self.keys[1] + self.secret if outcome == "passed" and self.secret else str(outcome)
        self.report("failed" if word == "passed" else word, str(detail))
