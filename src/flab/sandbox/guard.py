"""Guard the secrets of a run with an audit hook, which ends the program when it reaches for the tests or the harness.

Python raises an audit event when code accesses a frame (directly, of a traceback or of a generator), the interpreter's
objects, tracing or native memory (PEP 578). The hook finds out which code asked. The tests may do so, the standard library
may do so for itself, and the program may not. An audit hook cannot be removed, and no name in the program leads to this one.

The hook also holds the key of the verdict, which is stored in no frame. The harness asks for the tests, and ends the run,
with audit events of its own. The hook accepts these events only from the harness's code.
"""

from __future__ import annotations

import sys

# These are imported now, before the program can replace them.
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
# Functions of the standard library that return frames, or values held in frames, to their caller.
GIVES_AWAY = {
    "inspect.py": set(
        "currentframe stack trace getouterframes getinnerframes getframeinfo getgeneratorlocals getcoroutinelocals "
        "getasyncgenlocals getclosurevars".split()
    ),
    "traceback.py": {"walk_stack", "walk_tb"},
    "base_tasks.py": {"_task_get_stack"},
}
LOGGING = ("<lambda>", "currentframe")  # logging/__init__.py defines its own currentframe
NATIVE = set(
    "dlopen dlsym dlsym/handle call_function cdata addressof string_at wstring_at PyObj_FromPtr set_exception".split()
)
INTERNAL_MODULES = set(
    "_testcapi _testinternalcapi _testbuffer _testmultiphase _xxsubinterpreters _xxinterpchannels _interpreters "
    "_testlimitedcapi _testclinic _opcode_metadata_test".split()
)


class Guard:
    """Holds the state of the hook: which code is trusted, where the tests come from, and where the verdict goes."""

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
        """Check one audit event. Any exception in the check ends the run."""
        check = self.checks.get(event)
        if check is None:
            return
        # The checks look at frames, which raises further audit events. Ignoring those prevents endless recursion.
        thread = get_ident()
        if thread in self.busy:
            return
        self.busy.add(thread)
        try:
            check(self.getframe(1), args)
        except BaseException as error:
            self.tampering(f"{event}: {type(error).__name__}")
        finally:
            self.busy.discard(thread)

    def tampering(self, what: str) -> None:
        """Report the attempt and end the run."""
        self.report("tampering", f"the program reached for {what}")

    def asker(self, frame: Any) -> str:
        """Return the file name of the nearest code outside the standard library."""
        # Code of the standard library acts on behalf of its caller. The nearest code outside the library is therefore
        # the code that asks.
        while frame is not None and self.trusted(frame.f_code.co_filename):
            frame = frame.f_back
        return HARNESS if frame is None else str(frame.f_code.co_filename)

    def is_program(self, name: str) -> bool:
        """Return whether code with this file name is the program's or was created by it."""
        return name not in (HARNESS, TEST) and not self.trusted(name)

    def reach(self, frame: Any, args: tuple[Any, ...]) -> None:
        """Refuse this event if the program caused it, directly or through the standard library."""
        name = frame.f_code.co_filename
        # doctest saves the current tracing function and restores it later, which is harmless.
        keeps_tracing = self.trusted(name) and name.endswith("/doctest.py")
        if not keeps_tracing and self.is_program(self.asker(frame)):
            self.tampering("the interpreter's frames, objects or tracing")

    def frame(self, frame: Any, args: tuple[Any, ...]) -> None:
        """Refuse to give the program a frame. The standard library may take one that it does not pass on."""
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
        """Refuse access to the frames of tracebacks and generators, to their code, and to the code of test functions."""
        target = args[0]
        name = args[1]
        if name in FRAME_NAMES:
            self.frame(frame, args)
        elif name == "f_code":
            near = frame.f_code
            if self.is_program(near.co_filename):
                self.tampering("a frame's code")
            elif frame.f_locals.get("capture_locals") and self.is_program(self.asker(frame)):  # an option of traceback
                self.tampering("the variables of frames")
        elif name == "__code__" and self.is_program(frame.f_code.co_filename):
            code = target.__code__
            if code.co_filename == TEST and code.co_name.startswith(("check", "test")):
                self.tampering("the code of a test")

    def change(self, frame: Any, args: tuple[Any, ...]) -> None:
        """Refuse to replace the code or the defaults of a function that is not the program's."""
        target = args[0]
        name = args[1]
        near = frame.f_code
        by_program = self.is_program(near.co_filename) or near.co_name == "update_wrapper"
        if name in CODE_NAMES and by_program and self.is_program(self.asker(frame)):
            code = getattr(target, "__code__", None)
            if code is not None and not self.is_program(code.co_filename):
                self.tampering("the code of a function that is not its own")

    def code(self, frame: Any, args: tuple[Any, ...]) -> None:
        """Refuse to run code that claims another file's name."""
        if not self.is_program(frame.f_code.co_filename):
            return
        waiting = [args[0]]
        while waiting:
            one = waiting.pop()
            if not self.is_program(one.co_filename):
                self.tampering("code in another's name")
            waiting += [constant for constant in one.co_consts if hasattr(constant, "co_filename")]

    def named_code(self, frame: Any, args: tuple[Any, ...]) -> None:
        """Refuse to create code that claims another file's name."""
        name = args[1] if len(args) > 1 else None
        if isinstance(name, bytes):
            name = fsdecode(name)
        if not self.is_program(frame.f_code.co_filename) or not isinstance(name, str):
            return
        if not self.is_program(name):
            self.tampering("code in another's name")

    def native(self, frame: Any, args: tuple[Any, ...]) -> None:
        """Refuse native code and memory to the program. ctypes may load itself, and the standard library may use it."""
        while frame is not None and "/ctypes/" in frame.f_code.co_filename and self.trusted(frame.f_code.co_filename):
            frame = frame.f_back
        if frame is not None and self.is_program(frame.f_code.co_filename):
            self.tampering("native code or memory")

    def open(self, frame: Any, args: tuple[Any, ...]) -> None:
        """Refuse to open the pipe of the tests by its number, or the memory of a process by its path."""
        path = args[0]
        if type(path) is int and path == self.tests_fd and self.is_program(self.asker(frame)):
            self.tampering("the harness's descriptors")
        text = path if isinstance(path, str) else fsdecode(path) if isinstance(path, bytes) else ""
        if text.startswith(("/proc/", "/dev/fd")) and text.rpartition("/")[2] in ("mem", "maps"):
            self.tampering("the memory of processes")

    def imported(self, frame: Any, args: tuple[Any, ...]) -> None:
        """Refuse to import modules that exist to look inside the interpreter."""
        if args[0] in INTERNAL_MODULES:
            self.tampering(f"the module {args[0]}")

    def elsewhere_too(self, frame: Any, args: tuple[Any, ...]) -> None:
        """Note that from now on the program may be called in another process or thread."""
        self.elsewhere()

    def from_harness(self, frame: Any) -> None:
        """Accept flab's own events only from the harness's code and only in the original process."""
        # If the program forks, the child has a copy of the hook and its keys. The child must not be able to write
        # a verdict.
        if getpid() != self.process_id:
            _exit(1)
        if frame.f_code.co_filename != HARNESS:
            self.tampering("the harness")

    def loaded(self, frame: Any, args: tuple[Any, ...]) -> None:
        """Report that the program is loaded. flab then sends the tests."""
        self.from_harness(frame)
        self.report("loaded", self.keys[0])

    def deliver(self, frame: Any, args: tuple[Any, ...]) -> None:
        """Read the tests and the secret from the pipe. Keep the secret and hand over the tests."""
        self.from_harness(frame)
        parts = []
        while part := read(self.tests_fd, 2**20):
            parts.append(part)
        close(self.tests_fd)
        self.tests_fd = -1  # from now on this number may belong to another file
        tests = loads(b"".join(parts))
        self.secret = tests.pop("secret")
        args[0].append(tests)

    def end(self, frame: Any, args: tuple[Any, ...]) -> None:
        """Write the verdict: the key with the secret for a pass, or the name of the failure."""
        self.from_harness(frame)
        outcome, detail = args
        # A pass needs a key that the hook had from the start and a secret that came with the tests. A program that
        # ends the run early, or prints an imitation of a pass, cannot know both.
        word = self.keys[1] + self.secret if outcome == "passed" and self.secret else str(outcome)
        self.report("failed" if word == "passed" else word, str(detail))
