"""Run model-written Python against its tests, never in this process. Only a secret proves a pass.

Each run is a fresh ``python -s -S -B`` with an empty environment, a fixed hash seed and a fixed seed of ``random``,
limits on memory, CPU time, file size, processes and open files, no input, capped output, a seccomp filter, and at the
levels ``bubblewrap`` and ``namespaces`` the jail of ``jail``. Program and tests run in the one interpreter. A pass is a
random token, new for each run, that the harness writes over a channel of its own after all tests returned; an exit code
or printed text never counts. ``docs/sandbox.md`` says what is promised at each level, and what is not.
"""

from __future__ import annotations

import marshal
import os
import re
import secrets
import signal
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

from flab.errors import SandboxError
from flab.progress import track
from flab.sandbox import jail, limits
from flab.sandbox.cgroup import Groups
from flab.sandbox.harness import GRACE_S
from flab.sandbox.limits import CPU_SECONDS, MEMORY_BYTES, WALL_FACTOR
from flab.sandbox.packages import INSIDE, entries, folder_of, is_installed
from flab.sandbox.process import Raw, Stop, execute
from flab.sandbox.rewrite import Tests, prepare
from flab.sandbox.seccomp import filter_program

Outcome = Literal[
    "passed", "syntax", "name", "assertion", "exception", "timeout", "memory", "exit", "empty", "tampering", "uncalled"
]
OUTCOMES: tuple[str, ...] = get_args(Outcome)
SECRET_CHARS = 32
ALONE = 1.2  # wall seconds for a CPU second, below which a program had a core to itself
REFUSAL = (
    "model-written code cannot be isolated on this machine ({reason}); allow user namespaces, run as root, "
    "or accept resource limits only with `unsandboxed`"
)


@dataclass(frozen=True)
class Job:
    """One program with its tests, in any form that ``rewrite`` knows; a check is called with the ``entry_point``."""

    program: str
    test: str
    entry_point: str
    packages: tuple[str, ...] = ()  # that the program may need, besides those that the tests import


@dataclass(frozen=True)
class Verdict:
    """How one run ended. ``detail`` may come from the program, and ``cpu_seconds`` count all of its processes."""

    passed: bool
    outcome: Outcome
    detail: str = ""
    cpu_seconds: float = 0.0


@dataclass(frozen=True)
class Sandbox:
    """Runs jobs in isolation; make one with ``detect``."""

    level: jail.Level
    launcher: jail.Launcher
    memory_bytes: int = MEMORY_BYTES
    wall_factor: float = WALL_FACTOR
    workers: int = 0  # 0: one for each core this process may use

    @classmethod
    def detect(cls, allow_unsandboxed: bool = False) -> Sandbox:
        """Return the strongest sandbox that works here. Each is tried once; without any, it raises SandboxError."""
        reason = "namespaces exist on Linux only"
        for level, launcher in jail.launchers():
            sandbox = cls(level, launcher)
            problem = probe(sandbox)
            if problem is None:
                return sandbox
            reason = problem
        if not allow_unsandboxed:
            raise SandboxError(REFUSAL.format(reason=reason))
        return cls("rlimits", jail.bare_launcher)

    def run(self, program: str, test: str, entry_point: str, cpu_seconds: float = CPU_SECONDS) -> Verdict:
        """Run one program once. Raises SandboxError if the sandbox itself does not start."""
        with Groups(self.memory_bytes) as groups:
            return self._attempt(Job(program, test, entry_point), cpu_seconds, groups)[0]

    def run_many(
        self, jobs: Sequence[Job], description: str = "Running tests", cpu_seconds: float = CPU_SECONDS
    ) -> list[Verdict]:
        """Run all jobs over all cores, in order. A time-out that the busy machine may have caused is tried again alone.

        An interrupt ends the runs under way at once.
        """
        verdicts: dict[int, Verdict] = {}
        again: list[int] = []
        stop = Stop()
        with Groups(self.memory_bytes) as groups:
            pool = ThreadPoolExecutor(max_workers=self.workers or _num_cores())
            try:
                futures = {pool.submit(self._attempt, job, cpu_seconds, groups, stop): i for i, job in enumerate(jobs)}
                for future in track(as_completed(futures), description, total=len(futures), unit="programs"):
                    index = futures[future]
                    verdicts[index], retry = future.result()
                    again += [index] if retry else []
            except BaseException:
                # Without this the pool would wait for programs that may run for a minute before an interrupt
                # gets through.
                stop.now()
                raise
            finally:
                pool.shutdown(cancel_futures=True)
            for index in track(sorted(again), f"{description}: time-outs again") if again else ():
                verdicts[index] = self._attempt(jobs[index], cpu_seconds, groups)[0]
        return [verdicts[index] for index in range(len(jobs))]

    def _attempt(self, job: Job, cpu_seconds: float, groups: Groups, stop: Stop | None = None) -> tuple[Verdict, bool]:
        """Return the verdict of one run, and whether it is a time-out of a program that had no core to itself."""
        if not job.program.strip():
            return Verdict(False, "empty", "the program is empty"), False
        bounds = limits.of_one_process(self.memory_bytes, cpu_seconds)
        # Each run has two keys and a secret. The first key shows that the program is loaded. The second, joined with the
        # secret, is the verdict. A program cannot guess them, and those of an earlier run are useless.
        keys = (secrets.token_hex(SECRET_CHARS // 2), secrets.token_hex(SECRET_CHARS // 2))
        secret = secrets.token_hex(SECRET_CHARS // 2)
        # Some of MBPP's entry points end with a blank.
        tests = prepare(job.test, job.entry_point.strip())
        packages = tuple(name for name in (*tests.packages, *job.packages) if is_installed(name))
        inside: dict[str, Any] = {
            "program": job.program,
            "limits": bounds,
            "modules": list(tests.modules),
            "packages": self._folder(packages),
            "own_network": self.level != "rlimits",
            "keys": keys,
        }
        # The wall limit is for programs that sleep or wait. It is generous, since a busy machine stretches wall
        # time and not CPU time.
        own_seconds = bounds["RLIMIT_CPU"] + GRACE_S
        wall_seconds = self.wall_factor * own_seconds + 1.0
        with groups.lend() as group:
            inside["filter"] = filter_program(allow_memfd=group.path is not None)
            command = self.launcher(entries(packages) if packages else ())
            raw = execute(command, inside, _packed(tests, secret), keys[0], wall_seconds, group, stop)
            overran = group.overran()
        verdict = _judge(raw, keys[1] + secret, bounds["RLIMIT_CPU"], wall_seconds, overran, job.test)
        # If the core was shared, the time-out may be the machine's fault, and the run is repeated alone.
        alone = not raw.timed_out and raw.wall_seconds < ALONE * own_seconds
        return verdict, verdict.outcome == "timeout" and not alone

    def _folder(self, packages: tuple[str, ...]) -> str:
        """Return the folder in which the program finds packages; without a jail it is where they are."""
        if not packages:
            return ""
        return folder_of(packages[0]) if self.level == "rlimits" else INSIDE


def _packed(tests: Tests, secret: str) -> bytes:
    """Return the tests and the secret as the harness reads them."""
    content = {
        "source": tests.source,
        "entry_point": tests.entry_point,
        "code": tests.code,
        "problem": tests.problem,
        "form": asdict(tests.form),
        "patched": list(tests.patched),
        "secret": secret,
    }
    return marshal.dumps(content)


def probe(sandbox: Sandbox) -> str | None:
    """Check that a trivial program passes and sees neither files nor network; return what is wrong."""
    # A folder is known by its device and number, so nothing has to be written outside to prove that it is not visible.
    outside = {(folder.st_dev, folder.st_ino) for folder in map(os.stat, ("/", tempfile.gettempdir()))}
    test = (
        "import os, socket\ndef seen(path):\n    try:\n        found = os.stat(path)\n"
        "        return found.st_dev, found.st_ino\n    except OSError:\n        return None\n"
        f"assert not {{seen('/'), seen({tempfile.gettempdir()!r})}} & {outside!r}, 'files are visible'\n"
        f"assert os.path.realpath(os.__file__) == {os.path.realpath(os.__file__)!r}, 'another library is used'\n"
        "def interface(number):\n    try:\n        return socket.if_indextoname(number)\n"
        "    except OSError:\n        return 'lo'\n"
        "assert {interface(number) for number in range(1, 64)} == {'lo'}, 'the network is visible'\n"
        "assert os.getppid() == 1 and not os.path.exists('/proc/1'), 'processes are visible'\n"
        "try:\n    open('/flab', 'w')\nexcept OSError:\n    pass\n"
        "else:\n    raise AssertionError('/ is writable')\n"
        "ready()\n"
    )
    try:
        verdict = sandbox.run("def ready(): pass\n", test, "ready")
    except SandboxError as error:
        return str(error)
    return None if verdict.passed else f"self-test: {verdict.detail or verdict.outcome}"


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _judge(raw: Raw, token: str, limit_seconds: int, wall_seconds: float, overran: bool, test: str) -> Verdict:
    """Turn the result of a run into a verdict. Raises SandboxError if the harness never began."""
    if not raw.report and not raw.timed_out:
        raise SandboxError(f"the sandbox did not start: {_printable(raw.output)[-300:] or f'code {raw.exit_code}'}")
    lines = [line.decode("utf-8", "replace") for line in raw.report[1:]]
    last = lines[-1] if lines else ""
    word, _, rest = last.partition(" ")
    microseconds, _, detail = rest.partition(" ")
    cpu_seconds = int(microseconds) / 1e6 if microseconds.isascii() and microseconds.isdigit() else raw.cpu_seconds
    # Exactly one line, and equal to the token: anything more means that something besides the harness wrote
    # here.
    if word == token and len(lines) == 1:
        return Verdict(True, "passed", detail, cpu_seconds)
    if word in OUTCOMES and word != "passed":
        return Verdict(False, cast(Outcome, word), _printable(detail), cpu_seconds)
    if lines and not lines[0].startswith(("loaded ", "Stack ")):
        return Verdict(False, "exit", "the program wrote into the report", raw.cpu_seconds)
    if raw.timed_out:
        return Verdict(False, "timeout", f"no result within {wall_seconds:.0f} s of wall time", raw.cpu_seconds)
    outcome, detail = name_end(raw, limit_seconds, overran)
    if outcome == "timeout":
        return Verdict(False, outcome, detail + _place(lines, test), max(raw.cpu_seconds, float(limit_seconds)))
    return Verdict(False, outcome, detail, raw.cpu_seconds)


def name_end(raw: Raw, cpu_limit: int, overran: bool) -> tuple[Outcome, str]:
    """Name the way in which a process ended before it finished: CPU limit, memory, or an early exit."""
    # A shell reports a death by signal s as exit code 128 + s.
    code = raw.exit_code if raw.exit_code < 128 else 128 - raw.exit_code
    if overran:
        return "memory", "killed by the system: its processes used up the memory together"
    # At the hard limit the kernel sends SIGKILL, which looks like any other kill but for the CPU time that was
    # used up.
    killed = code == -signal.SIGKILL and max(raw.cpu_seconds, raw.wall_seconds) >= cpu_limit
    if code == -signal.SIGXCPU or killed:
        return "timeout", f"more than {cpu_limit} s of CPU time"
    end = f"signal {-code}" if code < 0 else f"code {code}"
    return "exit", f"ended with {end} before its tests were over"


def _place(lines: list[str], test: str) -> str:
    """Name the line of the tests that was waiting, from the trace that the interpreter left at the CPU limit."""
    found = re.search(r'File "<test>", line (\d+)', "\n".join(lines))
    source = test.splitlines()
    if found is None or not 0 < int(found[1]) <= len(source):
        return ""
    return f" at: {_printable(source[int(found[1]) - 1])[:300]}"


def _printable(text: str | bytes) -> str:
    """Make the program's text safe for a terminal, on one line."""
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return "".join(char if char.isprintable() else " " for char in text).strip()
