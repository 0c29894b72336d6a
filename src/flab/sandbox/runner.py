"""Run model-written Python against its tests in a separate process. Only a secret proves a pass.

Each run is a fresh ``python -s -S -B`` with an empty environment, a fixed hash seed, a fixed seed of ``random``, no input
and capped output. Limits apply to memory, CPU time, file size, processes and open files. A seccomp filter refuses system
calls. At the levels ``bubblewrap`` and ``namespaces``, ``jail`` isolates the run from the machine.

The program and its tests run in one interpreter. To report a pass, the harness writes a random token, new for each run, to
a separate channel after all tests have returned. An exit code or printed text never counts. ``docs/sandbox.md`` lists what
each level promises and what it does not promise.
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
ALONE = 1.2  # a program had a core to itself if its wall time is below this multiple of its CPU time
REFUSAL = (
    "model-written code cannot be isolated on this machine ({reason}); allow user namespaces, run as root, "
    "or accept resource limits only with `unsandboxed`"
)


@dataclass(frozen=True)
class Job:
    """One program with its tests, in any form that ``recognize`` knows. A check is called with the ``entry_point``."""

    program: str
    test: str
    entry_point: str
    packages: tuple[str, ...] = ()  # what the program may need besides the imports of the tests


@dataclass(frozen=True)
class Verdict:
    """How one run ended. ``detail`` may contain text of the program. ``cpu_seconds`` counts all of its processes."""

    passed: bool
    outcome: Outcome
    detail: str = ""
    cpu_seconds: float = 0.0


@dataclass(frozen=True)
class Sandbox:
    """Runs jobs in isolation. ``detect`` returns the right one for this machine."""

    level: jail.Level
    launcher: jail.Launcher
    memory_bytes: int = MEMORY_BYTES
    wall_factor: float = WALL_FACTOR
    workers: int = 0  # 0: one for each core this process may use

    @classmethod
    def detect(cls, allow_unsandboxed: bool = False) -> Sandbox:
        """Return the strongest sandbox that works on this machine. Raise SandboxError if none works."""
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
        """Run one program once. Raise SandboxError if the sandbox itself does not start."""
        with Groups(self.memory_bytes) as groups:
            return self._attempt(Job(program, test, entry_point), cpu_seconds, groups)[0]

    def run_many(
        self, jobs: Sequence[Job], description: str = "Running tests", cpu_seconds: float = CPU_SECONDS
    ) -> list[Verdict]:
        """Run all jobs in parallel on all cores and return their verdicts in the order of the jobs.

        If a busy machine may have caused a time-out, the job is run again on its own. An interrupt ends all runs at once.
        """
        verdicts: dict[int, Verdict] = {}
        again: list[int] = []
        stop = Stop()
        with Groups(self.memory_bytes) as groups:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            pool = ThreadPoolExecutor(max_workers=self.workers or cores or 1)
            try:
                futures = {pool.submit(self._attempt, job, cpu_seconds, groups, stop): i for i, job in enumerate(jobs)}
                for future in track(as_completed(futures), description, total=len(futures), unit="programs"):
                    index = futures[future]
                    verdicts[index], retry = future.result()
                    again += [index] if retry else []
            except BaseException:
                # Without this, the pool would wait for its programs before an interrupt gets through, which may take
                # a minute.
                stop.now()
                raise
            finally:
                pool.shutdown(cancel_futures=True)
            for index in track(sorted(again), f"{description}: repeating time-outs") if again else ():
                verdicts[index] = self._attempt(jobs[index], cpu_seconds, groups)[0]
        return [verdicts[index] for index in range(len(jobs))]

    def _attempt(self, job: Job, cpu_seconds: float, groups: Groups, stop: Stop | None = None) -> tuple[Verdict, bool]:
        """Return the verdict of one run, and whether it is a time-out of a program that had to share its core."""
        if not job.program.strip():
            return Verdict(False, "empty", "the program is empty"), False
        bounds = limits.of_one_process(self.memory_bytes, cpu_seconds)
        # Each run has two keys and a secret. The first key shows that the program is loaded. The second key, followed by
        # the secret, reports a pass. A program cannot guess them, and those of an earlier run are useless.
        keys = (secrets.token_hex(SECRET_CHARS // 2), secrets.token_hex(SECRET_CHARS // 2))
        secret = secrets.token_hex(SECRET_CHARS // 2)
        # Some entry points of MBPP end with a blank.
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
        # The wall limit ends programs that sleep or wait. It is generous, since a busy machine stretches wall time but
        # not CPU time.
        own_seconds = bounds["RLIMIT_CPU"] + GRACE_S
        wall_seconds = self.wall_factor * own_seconds + 1.0
        with groups.lend() as group:
            inside["filter"] = filter_program(allow_memfd=group.path is not None)
            command = self.launcher(entries(packages) if packages else ())
            raw = execute(command, inside, _packed(tests, secret), keys[0], wall_seconds, group, stop)
            overran = group.overran()
        verdict = _judge(raw, keys[1] + secret, bounds["RLIMIT_CPU"], wall_seconds, overran, job.test)
        # If the core was shared, the busy machine may have caused the time-out, so the run will be repeated alone.
        alone = not raw.timed_out and raw.wall_seconds < ALONE * own_seconds
        return verdict, verdict.outcome == "timeout" and not alone

    def _folder(self, packages: tuple[str, ...]) -> str:
        """Return the folder in which the program finds packages. Without a jail it is the place of their installation."""
        if not packages:
            return ""
        return folder_of(packages[0]) if self.level == "rlimits" else INSIDE


def _packed(tests: Tests, secret: str) -> bytes:
    """Serialize the tests and the secret for the harness."""
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
    """Check that a trivial program passes and sees no files, network or processes. Return the problem, or None."""
    # A folder is identified by its device and inode number, so the check need not write anything outside the sandbox.
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


def _judge(raw: Raw, token: str, limit_seconds: int, wall_seconds: float, overran: bool, test: str) -> Verdict:
    """Turn the result of a run into a verdict. Raise SandboxError if the harness did not start."""
    if not raw.report and not raw.timed_out:
        raise SandboxError(f"the sandbox did not start: {_printable(raw.output)[-300:] or f'code {raw.exit_code}'}")
    lines = [line.decode("utf-8", "replace") for line in raw.report[1:]]
    last = lines[-1] if lines else ""
    word, _, rest = last.partition(" ")
    microseconds, _, detail = rest.partition(" ")
    cpu_seconds = int(microseconds) / 1e6 if microseconds.isascii() and microseconds.isdigit() else raw.cpu_seconds
    # A pass is exactly one line that equals the token. Any further line means that something other than the harness
    # wrote here.
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
    """Tell why a process ended before it finished: the CPU limit, memory, or an early exit."""
    # A shell reports death by signal s as exit code 128 + s.
    code = raw.exit_code if raw.exit_code < 128 else 128 - raw.exit_code
    if overran:
        return "memory", "killed by the system, because its processes together used up the memory"
    # At the hard limit the kernel sends SIGKILL. Only the CPU time that was used distinguishes this from another
    # kill.
    killed = code == -signal.SIGKILL and max(raw.cpu_seconds, raw.wall_seconds) >= cpu_limit
    if code == -signal.SIGXCPU or killed:
        return "timeout", f"more than {cpu_limit} s of CPU time"
    end = f"signal {-code}" if code < 0 else f"code {code}"
    return "exit", f"ended with {end} before its tests were finished"


def _place(lines: list[str], test: str) -> str:
    """Quote the line of the tests that was waiting, which is in the traceback that was written at the CPU limit."""
    found = re.search(r'File "<test>", line (\d+)', "\n".join(lines))
    source = test.splitlines()
    if found is None or not 0 < int(found[1]) <= len(source):
        return ""
    return f" at: {_printable(source[int(found[1]) - 1])[:300]}"


def _printable(text: str | bytes) -> str:
    """Put the program's text on one line and make it safe for a terminal."""
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return "".join(char if char.isprintable() else " " for char in text).strip()
