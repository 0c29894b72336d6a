"""Runs model-written Python against its tests, never in this process; only a secret proves a pass.

Each run is a fresh ``python -s -S -B`` with an empty environment, a fixed hash seed and a fixed seed of ``random``,
limits on memory, CPU time, file size, processes and open files, no input, capped output, and at the levels
``bubblewrap`` and ``namespaces`` the jail of ``jail``. Inside, the program and its tests are two processes: the
program's is forked off before the tests and the secret are read, the judge's never executes a line of the program,
and plain data is all that crosses. A pass is a random token, new for each run, that the judge sends over a channel of
its own after all tests returned; an exit code, printed text or a message of the program never counts.

Stopped at both isolating levels: reading or writing the user's files, the network, signals to other processes,
processes left behind, fork, memory, disk and output floods, sleeping and endless loops. Stopped at every level:
``exit`` in any form, guessing the token, replacing builtins or modules that the tests use, objects that equal
everything, walking frames or memory for the tests, answers that are malformed or made to exhaust the judge.

Not stopped: what a test asks of the program, it answers: a helper of the program's that the tests call, a method of
an object that it returned, an argument that it changes before the tests read it, the length of what it yields. Nor
reading ``/usr`` and the interpreter's folder, kernel bugs, or the sum over processes of memory and of CPU time,
which only the limit on processes and the wall limit bound (for host root inside a user namespace the kernel does not
apply the limit on processes). At level ``rlimits`` files, network and other processes of the user, this one too, are
open to the program.
"""

from __future__ import annotations

import math
import os
import secrets
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Literal, cast, get_args

from flab.errors import SandboxError
from flab.evaluation import jail
from flab.evaluation.harness import GRACE_S, name_end
from flab.evaluation.process import NUM_REPORT_LINES, Raw, execute
from flab.progress import track

Outcome = Literal["passed", "syntax", "name", "assertion", "exception", "timeout", "memory", "exit", "empty"]
OUTCOMES: tuple[str, ...] = get_args(Outcome)
CPU_SECONDS = 5.0
SECRET_CHARS = 32
ALONE = 1.2  # wall seconds for a CPU second, below which a program had a core to itself
REFUSAL = (
    "model-written code cannot be isolated on this machine ({reason}); allow user namespaces, run as root, "
    "or accept resource limits only with --unsandboxed"
)


@dataclass(frozen=True)
class Job:
    """One program with its tests; a ``check`` that ``test`` defines is called with the ``entry_point``."""

    program: str
    test: str
    entry_point: str


@dataclass(frozen=True)
class Verdict:
    """How one run ended; ``detail`` may be of the program's making, ``cpu_seconds`` are both processes' where known."""

    passed: bool
    outcome: Outcome
    detail: str = ""
    cpu_seconds: float = 0.0


@dataclass(frozen=True)
class Sandbox:
    """Runs jobs in isolation; make one with ``detect``."""

    level: jail.Level
    launcher: jail.Launcher
    memory_bytes: int = 2**30
    wall_factor: float = 4.0  # wall limit in multiples of the CPU limit: generous, a busy machine is no failure
    workers: int = 0  # 0: one for each core this process may use

    @classmethod
    def detect(cls, allow_unsandboxed: bool = False) -> Sandbox:
        """Return the strongest sandbox that works here, each tried once; SandboxError rather than less."""
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
        """Run one program once; raise SandboxError where the sandbox itself does not start."""
        return self._attempt(Job(program, test, entry_point), cpu_seconds)[0]

    def run_many(
        self, jobs: Sequence[Job], description: str = "Running tests", cpu_seconds: float = CPU_SECONDS
    ) -> list[Verdict]:
        """Run all jobs over all cores, in order; a time-out that the machine may share in is tried once more, alone."""
        verdicts: dict[int, Verdict] = {}
        again: list[int] = []
        pool = ThreadPoolExecutor(max_workers=self.workers or _num_cores())
        try:
            futures = {pool.submit(self._attempt, job, cpu_seconds): i for i, job in enumerate(jobs)}
            for future in track(as_completed(futures), description, total=len(futures)):
                index = futures[future]
                verdicts[index], retry = future.result()
                again += [index] if retry else []
        finally:
            pool.shutdown(cancel_futures=True)
        for index in track(sorted(again), f"{description}: time-outs again") if again else ():
            verdicts[index] = self._attempt(jobs[index], cpu_seconds)[0]
        return [verdicts[index] for index in range(len(jobs))]

    def _attempt(self, job: Job, cpu_seconds: float) -> tuple[Verdict, bool]:
        """Return the verdict of one run, and whether it is a time-out of a program that had no core to itself."""
        if not job.program.strip():
            return Verdict(False, "empty", "the program is empty"), False
        limits = _limits(self.memory_bytes, cpu_seconds)
        secret = secrets.token_hex(SECRET_CHARS // 2)
        tests = {"test": job.test, "entry_point": job.entry_point, "secret": secret}
        own_seconds = limits["RLIMIT_CPU"] + GRACE_S
        wall_seconds = self.wall_factor * own_seconds + 1.0
        raw = execute(self.launcher(), {"program": job.program, "limits": limits}, tests, wall_seconds)
        verdict = _judge(raw, secret, limits["RLIMIT_CPU"], wall_seconds)
        alone = not raw.timed_out and raw.wall_seconds < ALONE * own_seconds
        return verdict, verdict.outcome == "timeout" and not alone


def probe(sandbox: Sandbox) -> str | None:
    """Check that a trivial program passes and sees neither files nor network; return what is wrong."""
    with tempfile.NamedTemporaryFile(prefix="flab-canary-") as canary:
        test = (
            f"import os, socket\nassert not os.path.exists({canary.name!r}), 'files are visible'\n"
            f"assert os.path.realpath(os.__file__) == {os.path.realpath(os.__file__)!r}, 'another library is used'\n"
            "assert {name for _, name in socket.if_nameindex()} <= {'lo'}, 'the network is visible'\n"
            "assert os.getppid() == 1 and not os.path.exists('/proc/1'), 'processes are visible'\n"
            "try:\n    open('/flab', 'w')\nexcept OSError:\n    pass\n"
            "else:\n    raise AssertionError('/ is writable')\n"
        )
        try:
            verdict = sandbox.run("def ready(): pass\n", test, "ready")
        except SandboxError as error:
            return str(error)
    return None if verdict.passed else f"self-test: {verdict.detail or verdict.outcome}"


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _limits(memory_bytes: int, cpu_seconds: float) -> dict[str, int]:
    """Resource limits of one process: 32 processes, 64 descriptors and 16 MiB files are plenty for a test."""
    return {
        "RLIMIT_AS": memory_bytes,
        "RLIMIT_CPU": max(1, math.ceil(cpu_seconds)),
        "RLIMIT_FSIZE": 16 * 2**20,
        "RLIMIT_NPROC": 32,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
    }


def _judge(raw: Raw, secret: str, limit_seconds: int, wall_seconds: float) -> Verdict:
    """Turn what a run left into a verdict; raise SandboxError where the harness never began."""
    if not raw.report and not raw.timed_out:
        raise SandboxError(f"the sandbox did not start: {_printable(raw.output)[-300:] or f'code {raw.exit_code}'}")
    last = raw.report[1].decode("utf-8", "replace") if len(raw.report) == NUM_REPORT_LINES else ""
    word, _, rest = last.partition(" ")
    microseconds, _, detail = rest.partition(" ")
    cpu_seconds = int(microseconds) / 1e6 if microseconds.isascii() and microseconds.isdigit() else 0.0
    if word == secret:
        return Verdict(True, "passed", "", cpu_seconds)
    if word in OUTCOMES and word != "passed":
        return Verdict(False, cast(Outcome, word), _printable(detail), cpu_seconds)
    if raw.timed_out:
        return Verdict(False, "timeout", f"no result within {wall_seconds:.0f} s of wall time")
    code = raw.exit_code if raw.exit_code < 128 else 128 - raw.exit_code  # a shell reports signal s as 128 + s
    outcome, detail = name_end(code, 0.0, limit_seconds)
    return Verdict(False, cast(Outcome, outcome), detail)


def _printable(text: str | bytes) -> str:
    """Make text of the program's making safe for a terminal, on one line."""
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return "".join(char if char.isprintable() else " " for char in text).strip()
