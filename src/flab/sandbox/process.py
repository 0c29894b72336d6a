"""Run the harness once behind a launcher: start it, send the tests, read its report, and end all its processes.

``runner`` judges the report. ``harness`` sets the limits that the job names.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import selectors
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Any

from flab.errors import SandboxError
from flab.sandbox import guard, harness, jail
from flab.sandbox.cgroup import Group
from flab.sandbox.limits import CHANNEL_CAP

EXIT_PATIENCE_S = 2.0
# The modules of the harness are executed with their own copy of the builtins and are then removed from sys.modules.
BOOTSTRAP = """import builtins, marshal, sys
def start(job_fd, tests_fd, report_fd):
    with open(job_fd, "rb") as file:
        modules, job = marshal.loads(file.read())
    Module, package = type(sys), "flab.sandbox"
    sys.modules["flab"], sys.modules[package] = Module("flab"), Module(package)
    for name, code in modules:
        module = sys.modules[f"{package}.{name}"] = Module(f"{package}.{name}")
        setattr(sys.modules[package], name, module)
        module.__builtins__ = dict(vars(builtins))
        exec(code, vars(module))
    for name in [name for name in sys.modules if name.partition(".")[0] == "flab"]:
        del sys.modules[name]
    module.main(job, tests_fd, report_fd)
start(*map(int, sys.argv[1:]))
"""


@dataclass(frozen=True)
class Raw:
    """The result of one run: the complete lines of the report, the end of the output, the exit code and the times."""

    report: list[bytes]
    output: bytes
    timed_out: bool
    exit_code: int
    wall_seconds: float
    cpu_seconds: float


class Stop:
    """Ends all current and future runs of one evaluation."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.stopped = False
        self.processes: set[subprocess.Popen[bytes]] = set()

    @contextlib.contextmanager
    def watch(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """Register a process to be ended with the others, or end it at once if that has already happened."""
        with self.lock:
            self.processes.add(process)
            stopped = self.stopped
        try:
            if stopped:
                kill(process)
            yield
        finally:
            with self.lock:
                self.processes.discard(process)

    def now(self) -> None:
        """End all runs."""
        with self.lock:
            self.stopped = True
            for process in self.processes:
                kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its group. When process 1 of a namespace dies, the kernel ends all others in it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


@lru_cache(maxsize=1)
def harness_code() -> list[tuple[str, Any]]:
    """Compile the modules that run inside the sandbox, once for all runs. The interpreter inside is the same."""
    paths = [Path(harness.__file__).parent / f"{name}.py" for name in harness.MODULES]
    return [
        (path.stem, compile(path.read_text(encoding="utf-8"), guard.HARNESS, "exec", dont_inherit=True, optimize=2))
        for path in paths
    ]


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[FileIO, FileIO]]:
    """Yield a pipe as two files. Unlike a descriptor, a file can safely be closed twice while other threads open files."""
    read_fd, write_fd = os.pipe()
    with FileIO(read_fd, "rb") as read_end, FileIO(write_fd, "wb") as write_end:
        yield read_end, write_end


@contextlib.contextmanager
def _file(content: Any) -> Iterator[int]:
    """Yield the descriptor of a nameless file that contains ``content``."""
    with tempfile.TemporaryFile() as file:
        # marshal takes half the start-up time of json. It is safe here, because only flab's own process writes
        # this file.
        file.write(marshal.dumps(content))
        file.seek(0)
        yield file.fileno()


def execute(
    launcher: list[str],
    job: dict[str, Any],
    tests: bytes,
    key: str,
    wall_seconds: float,
    group: Group,
    stop: Stop | None = None,
) -> Raw:
    """Run one harness behind ``launcher`` in ``group`` until it reports, ends or reaches the wall limit, then kill it.

    ``tests`` contains the secret. It is sent when the harness shows ``key``, which means that the program is loaded.
    """
    # There are three channels. The job is a nameless file, because it is known beforehand. The tests come through a
    # pipe, because they must not be in the process before the program is loaded. The report has a separate pipe,
    # because the program owns stdout.
    with _file((harness_code(), job)) as job_fd, _pipe() as (tests_out, tests_in), _pipe() as (report, report_in):
        began = time.monotonic()
        descriptors = [job_fd, tests_out.fileno(), report_in.fileno()]
        process = group.start(lambda enter: _start([*enter, *launcher], descriptors))
        # The child has its own copies of these ends. If they stayed open here, the pipes would not end when the
        # child does.
        tests_out.close()
        report_in.close()
        heard = b""
        output = b""
        timed_out = True
        with (stop or Stop()).watch(process):
            try:
                talk = _Talk(process, report, tests_in, key.encode(), tests)
                timed_out = talk.listen(began + wall_seconds)
                heard = talk.heard
                output = talk.output
            finally:
                exit_code, cpu_seconds = _end(process, 0.0 if timed_out else EXIT_PATIENCE_S)
                output = (output + _rest(process))[-CHANNEL_CAP:]
        wall = time.monotonic() - began
        return Raw(heard.split(b"\n")[:-1], output, timed_out, exit_code, wall, cpu_seconds)


def _start(launcher: list[str], descriptors: list[int]) -> subprocess.Popen[bytes]:
    """Start the interpreter in a new session, with three descriptors and flab's minimal environment."""
    python = [str(jail.interpreter()), "-s", "-S", "-B", "-c", BOOTSTRAP]
    try:
        return subprocess.Popen(
            [*launcher, *python, *map(str, descriptors)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=jail.LAUNCH_ENV,
            pass_fds=descriptors,
            # In a new session, everything that the program starts belongs to this process group and can be killed
            # with it.
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxError(f"the sandbox did not start: {(launcher or python)[0]}: {error.strerror}") from error


class _Talk:
    """Reads the report and the output of one run, and sends the tests when the harness asks for them."""

    def __init__(
        self, process: subprocess.Popen[bytes], report: FileIO, tests_in: FileIO, key: bytes, tests: bytes
    ) -> None:
        assert process.stdout is not None
        self.report_fd = report.fileno()
        self.output_fd = process.stdout.fileno()
        self.tests_in = tests_in
        self.key = key
        self.tests = memoryview(tests)
        self.heard = b""
        self.output = b""

    @property
    def is_over(self) -> bool:
        """Whether the last line has arrived, or the report has become too long."""
        lines = self.heard.split(b"\n")[:-1]
        done = [line for line in lines if not line.startswith((b"started", b"loaded "))]
        return len(self.heard) > CHANNEL_CAP or (bool(done) and not done[0].startswith(b"Stack "))

    def listen(self, deadline: float) -> bool:
        """Read both channels until the report is complete, closed or too long. Return whether time ran out."""
        with selectors.DefaultSelector() as selector:
            for descriptor in (self.report_fd, self.output_fd):
                selector.register(descriptor, selectors.EVENT_READ)
            while self.report_fd in selector.get_map():
                for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                    self._serve(selector, key.fd)
                if self.is_over:
                    break
                if time.monotonic() >= deadline:
                    return True
        return False

    def _serve(self, selector: selectors.BaseSelector, descriptor: int) -> None:
        """Read from or write to one descriptor that is ready."""
        if descriptor not in (self.report_fd, self.output_fd):
            self._send(selector)
            return
        data = os.read(descriptor, CHANNEL_CAP)
        if not data:
            selector.unregister(descriptor)
        elif descriptor == self.output_fd:
            self.output = (self.output + data)[-CHANNEL_CAP:]
        else:
            self.heard += data
            if self.tests and b"\nloaded " + self.key + b"\n" in self.heard and not self.tests_in.closed:
                # The tests may not fit into the pipe, and the program may never read them. Writing must therefore
                # not block the reading of the report.
                os.set_blocking(self.tests_in.fileno(), False)
                selector.register(self.tests_in.fileno(), selectors.EVENT_WRITE)
                self.heard = self.heard.replace(b"\nloaded " + self.key + b"\n", b"\n", 1)

    def _send(self, selector: selectors.BaseSelector) -> None:
        """Send part of the tests. Close the pipe after the last byte or if its reader is gone."""
        try:
            self.tests = self.tests[os.write(self.tests_in.fileno(), self.tests) :]
        except BlockingIOError:
            return
        except OSError:
            self.tests = memoryview(b"")
        if not self.tests:
            selector.unregister(self.tests_in.fileno())
            self.tests_in.close()


def _end(process: subprocess.Popen[bytes], patience_s: float) -> tuple[int, float]:
    """Wait a little for the process to end, kill its whole group, and return the exit code and its CPU seconds.

    The group is killed before its leader is reaped, so that its number cannot belong to another process yet.
    """
    deadline = time.monotonic() + patience_s
    # WNOWAIT looks without reaping. As long as the leader is a zombie, no other process can get its number.
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() >= deadline:
            break
        time.sleep(0.001)
    kill(process)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_utime + usage.ru_stime


def _rest(process: subprocess.Popen[bytes]) -> bytes:
    """Read what is left in the output pipe without waiting for more, and close it."""
    assert process.stdout is not None
    with process.stdout as stream:
        os.set_blocking(stream.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            return os.read(stream.fileno(), CHANNEL_CAP)
    return b""
