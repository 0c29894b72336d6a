"""What the sandbox says of the reference solutions, whether it always says it, and what it costs.

    python benchmarks/sandbox.py [--data ../shared/data] [--limit N] [--repeats 3]

Each file's references (prompt + canonical solution) are judged once with the machine as it is and ``--repeats`` times
with four busy processes beside; all verdicts must agree. What fails is run once more in one plain interpreter, program
and tests together: where that passes, the sandbox is at fault. Milliseconds for each problem are wall time: on one core
(one worker, all processes pinned to one), and on all. Prints Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from flab.sandbox import Job, Sandbox, Verdict, jail, probe

FILES = "HumanEval MBPP_test CodeHarmony_test CodeHarmony_valid recode_format recode_nlaugmenter".split()
NUM_BUSY = 4
PLAIN = "import json, sys\njob = json.load(sys.stdin)\nnames = {'__name__': 'candidate'}\n"
PLAIN += "exec(job[0], names)\nexec(job[1], names)\nnames['check'](names[job[2].strip()])\n"


def read_jobs(path: Path, limit: int | None) -> dict[str, Job]:
    """Read the references of a file in HumanEval's format."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()][:limit]
    return {
        str(row["task_id"]): Job(row["prompt"] + row["canonical_solution"], row["test"], row["entry_point"])
        for row in rows
    }


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep processes busy beside."""
    others = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Pin this process and what it starts to one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def judge(sandbox: Sandbox, jobs: dict[str, Job]) -> tuple[dict[str, Verdict], float]:
    """Return the verdicts by id, and the milliseconds for each problem."""
    began = time.perf_counter()
    verdicts = sandbox.run_many(list(jobs.values()))
    return dict(zip(jobs, verdicts, strict=True)), (time.perf_counter() - began) * 1000 / len(jobs)


def passes_plainly(job: Job) -> bool:
    """Run program and tests together in one interpreter, without any sandbox: for references only."""
    command = [str(jail.interpreter()), "-s", "-S", "-B", "-c", PLAIN]
    payload = json.dumps([job.program, job.test, job.entry_point])
    done = subprocess.run(command, input=payload, text=True, capture_output=True, timeout=60)
    return done.returncode == 0


def measure(name: str, jobs: dict[str, Job], repeats: int, sandbox: Sandbox) -> list[str]:
    """Judge one file in all ways; print its row, and return a line for each failure."""
    with one_core():
        first, on_one = judge(replace(sandbox, workers=1), jobs)
    again, on_all = judge(sandbox, jobs)
    runs = [again]
    with busy(NUM_BUSY):
        runs += [judge(sandbox, jobs)[0] for _ in range(repeats)]
    changed = sorted({key for run in runs for key in jobs if run[key].outcome != first[key].outcome})
    failed = {key: one for key, one in first.items() if not one.passed}
    unjust = [key for key in failed if passes_plainly(jobs[key])]
    cells = [
        name,
        f"{len(jobs) - len(failed)}/{len(jobs)}",
        len(unjust),
        len(changed),
        f"{on_one:.0f}",
        f"{on_all:.0f}",
    ]
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    notes = {**dict.fromkeys(unjust, "passes plainly"), **dict.fromkeys(changed, "not the same in all runs")}
    return [
        f"- {name} {key}: {one.outcome}: {one.detail[:100]} {notes.get(key, '')}" for key, one in failed.items()
    ] + [f"- {name} {key}: {notes[key]}" for key in changed if key not in failed]


def levels() -> list[Sandbox]:
    """List what isolates here, one for each way there is."""
    found = [Sandbox(level, launcher) for level, launcher in jail.launchers()]
    return [sandbox for sandbox in found if probe(sandbox) is None]


def compare_levels(jobs: dict[str, Job]) -> None:
    """Print what each way of isolating costs on one core, none included."""
    print("\n| level | launcher | ms a problem on one core |\n|---|---|---|")
    for sandbox in [*levels(), Sandbox("rlimits", jail.bare_launcher)]:
        with one_core():
            _, milliseconds = judge(replace(sandbox, workers=1), jobs)
        print(f"| {sandbox.level} | {sandbox.launcher.__name__} | {milliseconds:.0f} |", flush=True)


def main() -> None:
    """Measure all files that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--limit", type=int, default=None, help="problems of each file")
    parser.add_argument("--repeats", type=int, default=3, help="runs with busy processes beside")
    options = parser.parse_args()
    sandbox = Sandbox.detect()
    paths = [path for path in (options.data / f"{name}.jsonl" for name in FILES) if path.is_file()]
    print(
        f"Level {sandbox.level}, {os.cpu_count()} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    )
    print(
        f"\n| file | passed | failures that pass plainly | changed in {options.repeats + 2} runs | ms, one core | ms, all cores |"
    )
    print("|---|---|---|---|---|---|")
    notes = [
        note for path in paths for note in measure(path.stem, read_jobs(path, options.limit), options.repeats, sandbox)
    ]
    print("\n" + "\n".join(notes))
    if paths:
        compare_levels(dict(list(read_jobs(paths[0], options.limit).items())[:100]))


if __name__ == "__main__":
    main()
