"""One run of the harness behind a launcher: start it, listen to its two channels, end it and all it started.

It does not judge what came back: ``sandbox`` does. It sets no limits: ``harness`` does, from the job it is
given.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Any

from flab.errors import SandboxError
from flab.evaluation import harness, jail

CHANNEL_CAP = 64 * 1024  # the end of what the program printed is kept; a report longer than this is no report
EXIT_PATIENCE_S = 2.0
NUM_REPORT_LINES = 2
BOOTSTRAP = """import marshal, sys
with open(int(sys.argv[1]), "rb") as file:
    modules, job = marshal.load(file)
Module, package = type(sys), "flab.evaluation"
sys.modules["flab"], sys.modules[package] = Module("flab"), Module(package)
for name, code in modules:
    module = sys.modules[f"{package}.{name}"] = Module(f"{package}.{name}")
    setattr(sys.modules[package], name, module)
    exec(code, vars(module))
module.main(job, int(sys.argv[2]), int(sys.argv[3]))
"""


@dataclass(frozen=True)
class Raw:
    """What one run left: complete report lines, the end of its output, how it ended, and the time it took."""

    report: list[bytes]
    output: bytes
    timed_out: bool
    exit_code: int
    wall_seconds: float


@lru_cache(maxsize=1)
def harness_code() -> list[tuple[str, Any]]:
    """Compile the modules that run inside: the interpreter there is the same, and need not do it for each run."""
    paths = [Path(harness.__file__).parent / f"{name}.py" for name in harness.MODULES]
    return [
        (path.stem, compile(path.read_text(encoding="utf-8"), path.name, "exec", dont_inherit=True, optimize=2))
        for path in paths
    ]


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[FileIO, FileIO]]:
    """Yield a pipe as two files: unlike numbers, they may be closed twice while other threads open files."""
    read_fd, write_fd = os.pipe()
    with FileIO(read_fd, "rb") as read_end, FileIO(write_fd, "wb") as write_end:
        yield read_end, write_end


@contextlib.contextmanager
def _file(content: Any) -> Iterator[int]:
    """Yield a nameless file that holds ``content``."""
    with tempfile.TemporaryFile() as file:
        file.write(marshal.dumps(content))  # half the start-up time of json; only our own side writes it
        file.seek(0)
        yield file.fileno()


def execute(launcher: list[str], job: dict[str, Any], tests: dict[str, str], wall_seconds: float) -> Raw:
    """Run one harness behind ``launcher`` until it reported, ended or met the wall limit, then kill it.

    ``tests``, with the secret, lie in a file of their own: the program's process never holds it.
    """
    with _file((harness_code(), job)) as job_fd, _file(tests) as tests_fd, _pipe() as (report, report_in):
        began = time.monotonic()
        process = _start(launcher, [job_fd, tests_fd, report_in.fileno()])
        report_in.close()
        heard, output, timed_out = b"", b"", True
        try:
            heard, output, timed_out = _listen(process, report, began + wall_seconds)
        finally:
            exit_code = _end(process, 0.0 if timed_out else EXIT_PATIENCE_S)
            output = (output + _rest(process))[-CHANNEL_CAP:]
        return Raw(heard.split(b"\n")[:-1], output, timed_out, exit_code, time.monotonic() - began)


def _start(launcher: list[str], descriptors: list[int]) -> subprocess.Popen[bytes]:
    """Start the interpreter in a session of its own, with three descriptors and an environment of ours."""
    python = [str(jail.interpreter()), "-s", "-S", "-B", "-c", BOOTSTRAP]
    try:
        return subprocess.Popen(
            [*launcher, *python, *map(str, descriptors)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=jail.LAUNCH_ENV,
            pass_fds=descriptors,
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxError(f"the sandbox did not start: {(launcher or python)[0]}: {error.strerror}") from error


def _listen(process: subprocess.Popen[bytes], report: FileIO, deadline: float) -> tuple[bytes, bytes, bool]:
    """Read both channels until the report is complete, closed or too long; the bool: time ran out."""
    assert process.stdout is not None
    heard = {report.fileno(): b"", process.stdout.fileno(): b""}
    with selectors.DefaultSelector() as selector:
        for descriptor in heard:
            selector.register(descriptor, selectors.EVENT_READ)
        while report.fileno() in selector.get_map():
            events = selector.select(max(0.0, deadline - time.monotonic()))
            for key, _ in events:
                data = os.read(key.fd, CHANNEL_CAP)
                heard[key.fd] += data
                if not data:
                    selector.unregister(key.fd)
            said = heard[report.fileno()]
            heard[process.stdout.fileno()] = heard[process.stdout.fileno()][-CHANNEL_CAP:]
            if said.count(b"\n") >= NUM_REPORT_LINES or len(said) > CHANNEL_CAP:
                break
            if time.monotonic() >= deadline:
                return said, heard[process.stdout.fileno()], True
    return heard[report.fileno()], heard[process.stdout.fileno()], False


def _end(process: subprocess.Popen[bytes], patience_s: float) -> int:
    """Wait a little for the process to end, kill its whole group, and return the exit code.

    The group is killed before the leader is reaped, so that its number cannot have gone to anyone else.
    """
    deadline = time.monotonic() + patience_s
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() >= deadline:
            break
        time.sleep(0.001)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def _rest(process: subprocess.Popen[bytes]) -> bytes:
    """Take what is still in the output pipe without waiting for more, and close it."""
    assert process.stdout is not None
    with process.stdout as stream:
        os.set_blocking(stream.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            return os.read(stream.fileno(), CHANNEL_CAP)
    return b""
