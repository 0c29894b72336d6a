"""What docs/sandbox.md promises, measured: right programs pass, attacks fail and touch nothing, and plain work is not dearer.

    python benchmarks/promise.py [--cases ../shared/cases] [--repeats 3] [--busy 3]

Right programs are those of ``correct_programs.jsonl`` and of ``tests/support``; each is judged ``--repeats`` times with
``--busy`` endless loops beside, and once by a plain interpreter. Attacks are those of ``attacks.jsonl``; a file, a key, a
port and a process of this script must be as they were afterwards, no process may be left, and the memory in use is
watched. Costs are seconds inside one process, in the sandbox and in plain Python. Prints Markdown.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from flab.sandbox import Job, Sandbox, Verdict
from sandbox import busy

ROOT = Path(__file__).parents[1]
ADD_KEY, KEYCTL = 248, 250  # on x86-64
PLAIN = """import json, sys
program, test, name = json.load(sys.stdin)
module = sys.modules["candidate"] = sys.modules["__main__"] = type(sys)("candidate")
names = vars(module)
exec(program, names)
exec(test, names)
names["check"](eval(name, names))
"""
# Seconds are taken inside the tests, so that the start of the interpreter does not hide the difference, and of the thread:
# under a CPU limit the kernel counts those of the process in ticks.
TIMED = """def check(candidate):
    import time
    began = time.thread_time()
{body}    raise ValueError(time.thread_time() - began)
"""
COSTS = {
    "1,000 instances returned one at a time": (
        "class Node:\n    def __init__(self, value):\n        self.value, self.next = value, None\n"
        "    def __eq__(self, other):\n        return isinstance(other, Node) and self.value == other.value\n"
        "    __hash__ = None\ndef f(i):\n    return Node(i)\n",
        "    for i in range(1000):\n        node = candidate(i)\n        assert node.value == i\n"
        "        assert node is not None\n",
    ),
    "10**6 items as the argument of 60 calls": (
        "def f(items):\n    return len(items)\n",
        "    items = list(range(10**6))\n    for _ in range(60):\n        assert candidate(items) == 10**6\n",
    ),
    "10**6 items returned by 60 calls": (
        "items = list(range(10**6))\ndef f():\n    return items\n",
        "    expected = list(range(10**6))\n    for _ in range(60):\n        assert candidate() == expected\n",
    ),
    "an integer of 5,000 digits, 1,000 times": (
        "def f(n):\n    return 10**5000 // n\n",
        "    for n in range(1, 1001):\n        assert candidate(n) == 10**5000 // n\n",
    ),
}


def read_cases(path: Path) -> dict[str, Job]:
    """Read rows of prompt, reference and tests."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    return {
        row["task_id"]: Job(row["prompt"] + row["canonical_solution"], row["test"], row["entry_point"]) for row in rows
    }


def own_cases() -> dict[str, Job]:
    """Collect the right programs of the test suite."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.correct import CORRECT
    from support.rare import RARE
    from support.unusual import UNUSUAL

    found = {}
    for name, (program, test) in {**CORRECT, **UNUSUAL, **RARE}.items():
        lines = "".join(f"    {line}\n" for line in test.split("\n"))
        found[name] = Job(program, test if "def check" in test else f"def check(candidate):\n{lines}", "f")
    return found


def in_plain_python(job: Job) -> tuple[bool, str]:
    """Run a program that we wrote ourselves, with its tests, in a plain interpreter; return whether it ended well."""
    with tempfile.TemporaryDirectory() as folder:
        payload = json.dumps([job.program, job.test, job.entry_point.strip()])
        done = subprocess.run(
            [sys.executable, "-c", PLAIN], input=payload, text=True, capture_output=True, cwd=folder, timeout=120
        )
    return done.returncode == 0, (done.stderr.strip().splitlines() or [""])[-1]


def correct_programs(name: str, jobs: dict[str, Job], sandbox: Sandbox, repeats: int, num_busy: int) -> None:
    """Print how many right programs pass in each run, and where a plain interpreter says something else."""
    with busy(num_busy):
        runs = [sandbox.run_many(list(jobs.values())) for _ in range(repeats)]
    plain = {key: in_plain_python(job)[0] for key, job in jobs.items()}
    counts = ", ".join(f"{sum(one.passed for one in run)}/{len(jobs)}" for run in runs)
    print(f"| {name} | {counts} | {sum(plain.values())}/{len(jobs)} |", flush=True)
    for run in runs:
        for (key, right), one in zip(plain.items(), run, strict=True):
            if one.passed != right:
                print(f"| - {key} | {one.outcome}: {one.detail[:100]} | {'pass' if right else 'fail'} |", flush=True)


class Canaries:
    """What an attack must not touch: a file, a key, a listener and a process."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "file"
        self.file.write_text("intact")
        self.file.chmod(0o666)
        self.folder = folder
        self.library = ctypes.CDLL(None, use_errno=True)
        self.key = self.library.syscall(ADD_KEY, b"user", b"flab-canary", b"intact", 6, -3)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(3600)"])
        self.ports = self.listening()

    @staticmethod
    def listening() -> set[object]:
        """List the addresses on which anything listens."""
        return {one.laddr for one in psutil.net_connections("inet") if one.status == psutil.CONN_LISTEN}

    def keys(self) -> str:
        """Read the key back, and look for one that an attack left."""
        if self.key < 0:
            return "no keyring here"
        content = ctypes.create_string_buffer(16)
        self.library.syscall(KEYCTL, 11, self.key, content, 16)
        left = self.library.syscall(KEYCTL, 10, -3, b"user", b"flab-left", 0)
        return "intact" if content.value == b"intact" and left < 0 else "CHANGED"

    def report(self) -> list[str]:
        """Say of each canary whether it is as it was, and end it."""
        intact = self.file.read_text() == "intact" and list(self.folder.iterdir()) == [self.file]
        try:
            self.listener.accept()
            called = "CALLED"
        except BlockingIOError:
            called = "not called"
        lines = [
            f"file: {'intact' if intact else 'CHANGED'}",
            f"key: {self.keys()}",
            f"listener: {called}",
            f"new ports: {len(self.listening() - self.ports)}",
            f"process: {'alive' if self.child.poll() is None else 'KILLED'}",
        ]
        self.child.kill()
        self.child.wait()
        self.listener.close()
        if self.key >= 0:
            self.library.syscall(KEYCTL, 9, self.key, -3)
        return lines


@contextmanager
def watched_memory() -> Iterator[list[float]]:
    """Collect how much memory is in use beyond what there was, in MiB, ten times a second."""
    began, found, over = psutil.virtual_memory().available, [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            found.append((began - psutil.virtual_memory().available) / 2**20)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def attacks(jobs: dict[str, Job], sandbox: Sandbox) -> None:
    """Print what attacks got, and what they left."""
    place = Path("/tmp/flab-canary")  # the attacks of the file know it
    place.mkdir(mode=0o777)
    place.chmod(0o777)
    before = set(psutil.pids())
    try:
        canaries = Canaries(place)
        with watched_memory() as used:
            verdicts = dict(zip(jobs, sandbox.run_many(list(jobs.values())), strict=True))
        lines = canaries.report()
    finally:
        for file in place.iterdir():
            file.unlink()
        place.rmdir()
    passed = [key for key, one in verdicts.items() if one.passed]
    print(f"- attacks that pass: {len(passed)} of {len(jobs)} {passed}")
    print(f"- {'; '.join(lines)}")
    print(f"- processes of sandbox users left: {survivors(before)}; memory in use: at most {max(used):.0f} MiB more")
    counts: dict[str, int] = {}
    for one in verdicts.values():
        counts[one.outcome] = counts.get(one.outcome, 0) + 1
    print(f"- outcomes: {counts}", flush=True)


def survivors(before: set[int]) -> list[str]:
    """Name new processes that belong to the users that the sandbox draws, or that run its harness."""
    found = []
    for process in psutil.process_iter(["pid", "uids", "name", "cmdline"]):
        info = process.info
        drawn = info["uids"] is not None and 20_000 <= info["uids"].real < 60_000
        if info["pid"] not in before and (drawn or "start(job_fd" in " ".join(info["cmdline"] or ())):
            found.append(f"{info['pid']} {info['name']}")
    return found


def seconds_of(verdict_or_error: str) -> float:
    """Read the seconds that the tests of COSTS end with."""
    return float(verdict_or_error.partition("ValueError: ")[2].split()[0])


def costs(sandbox: Sandbox, repeats: int = 5) -> None:
    """Print what some work costs inside the sandbox and in a plain interpreter."""
    print("\n| work | sandbox, s | plain Python, s | ratio |\n|---|---|---|---|")
    for name, (program, body) in COSTS.items():
        job = Job(program, TIMED.format(body=body), "f")
        inside, plain = [], []
        for _ in range(repeats):  # in turn, so that a busy moment meets both
            verdict: Verdict = sandbox.run(job.program, job.test, "f", cpu_seconds=60)
            inside.append(seconds_of(verdict.detail))
            plain.append(seconds_of(in_plain_python(job)[1]))
        ours, theirs = statistics.median(inside), statistics.median(plain)
        print(f"| {name} | {ours:.5f} | {theirs:.5f} | {ours / theirs:.2f} |", flush=True)


def main() -> None:
    """Measure all that there are cases for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, default=ROOT.parent / "shared" / "cases")
    parser.add_argument("--repeats", type=int, default=3, help="runs of the right programs")
    parser.add_argument("--busy", type=int, default=3, help="endless loops beside")
    parser.add_argument("--only", choices=("correct", "attacks", "costs"), default=None)
    options = parser.parse_args()
    sandbox = Sandbox.detect()
    print(f"Level {sandbox.level}, {os.cpu_count()} cores, Python {platform.python_version()}")
    files = {name: options.cases / f"{name}.jsonl" for name in ("correct_programs", "attacks")}
    if options.only in (None, "correct"):
        print(f"\n| right programs | pass, {options.busy} loops beside | plain Python |\n|---|---|---|")
        correct_programs("tests/support", own_cases(), sandbox, options.repeats, options.busy)
        if files["correct_programs"].is_file():
            jobs = read_cases(files["correct_programs"])
            correct_programs("correct_programs.jsonl", jobs, sandbox, options.repeats, options.busy)
    if options.only in (None, "attacks") and files["attacks"].is_file():
        print()
        attacks(read_cases(files["attacks"]), sandbox)
    if options.only in (None, "costs"):
        costs(sandbox)


if __name__ == "__main__":
    main()
