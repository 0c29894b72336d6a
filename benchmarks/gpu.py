"""The GPU pack: independent steps within one call of at most nine minutes on one GPU; nothing is downloaded.

    python benchmarks/gpu.py                         # on an H100 or H200: a 7 B shape with random weights
    python benchmarks/gpu.py --size pico --device cpu -o /tmp/gpu.json     # the same steps on a CPU: do they run?

Each step runs in a process of its own with its own time limit: one that fails or overruns is noted, and the others go on. The
results are written to benchmarks/results/gpu-SIZE-DATE.json after every step. Exit code 1: a step failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gpu_steps
from gpu_steps import SIZES, Place

from flab.files import write_json
from flab.progress import say
from flab.version import __version__

LEAST_SECONDS = 10  # a step is not begun with less time left
TAIL = 4000  # characters of the output of a step that failed
MEMORY_DISK = Path("/dev/shm")
ROOM_BYTES = 60 * 10**9  # that the random models take, with some to spare


@dataclass(frozen=True)
class Step:
    """One step: what it does, and the seconds that it may take."""

    run: Callable[[Place], dict[str, Any]]
    limit: int


# The cheap steps come first, so that what overruns costs the others least. The limits sum up to less than nine minutes. On
# the first run, on an H200, the first three took 20, 22 and 25 s; the others overran 110, 175 and 60 s and were made smaller.
STEPS = {
    "device": Step(gpu_steps.device, 35),
    "recovery": Step(gpu_steps.recovering, 40),
    "evaluation": Step(gpu_steps.answering, 45),
    "speed": Step(gpu_steps.speed, 140),
    "plan": Step(gpu_steps.planning, 200),
    "tests": Step(gpu_steps.tests, 75),
}
MOST_SECONDS = sum(step.limit for step in STEPS.values())


def in_a_process(name: str, given: argparse.Namespace, limit: float) -> dict[str, Any]:
    """Run one step by this very file; its result, or what it ended with."""
    return ended([sys.executable, __file__, *step_arguments(name, given)], given.work / f"{name}.json", limit)


def step_arguments(name: str, given: argparse.Namespace) -> list[str]:
    """The arguments of the process that does one step."""
    return ["--size", given.size, "--device", given.device, "--work", str(given.work), "--step", name]


def ended(command: Sequence[str], answer: Path, limit: float) -> dict[str, Any]:
    """Run a command and all that it starts for at most ``limit`` seconds; return what it wrote to ``answer``."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code: int | None = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None or process.returncode != 0:
                end_group(process)
        output.seek(0)
        tail = output.read()[-TAIL:]
    seconds = round(time.perf_counter() - start, 2)
    if code == 0 and answer.is_file():
        return {"ok": True, "seconds": seconds, "result": json.loads(answer.read_text())}
    why = f"stopped at its limit of {limit:.0f} s" if code is None else f"ended with exit code {code}"
    return {"ok": False, "seconds": seconds, "why": why, "tail": tail}


def end_group(process: subprocess.Popen[str]) -> None:
    """End a process and what it started, so that the device's memory is free for the next step."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_pack(
    given: argparse.Namespace, start: Callable[[str, argparse.Namespace, float], dict[str, Any]] = in_a_process
) -> dict[str, Any]:
    """Run the steps that are asked for, one after the other, and write the report after each."""
    began = time.perf_counter()
    report: dict[str, Any] = {
        "flab": __version__,
        "date": time.strftime("%Y-%m-%d"),
        "size": given.size,
        "device": given.device,
        "versions": versions(),
        "shape": gpu_steps.facts(SIZES[given.size]),
        "steps": {},
    }
    for name in given.only or STEPS:
        left = given.minutes * 60 - (time.perf_counter() - began)
        if left < LEAST_SECONDS:
            report["steps"][name] = {"ok": False, "seconds": 0.0, "why": "not begun: the time of the pack was used up"}
        else:
            say(f"{name}: begins, {left:.0f} s left")
            report["steps"][name] = start(name, given, min(STEPS[name].limit, left))
        one = report["steps"][name]
        say(f"{name}: {'done' if one['ok'] else one['why']}, {one['seconds']:.0f} s")
        report["seconds"] = round(time.perf_counter() - began, 2)
        write_json(given.output, report)
    return report


def room() -> Path | None:
    """A folder in memory if there is room for the models, else None: the usual place for temporary files."""
    roomy = MEMORY_DISK.is_dir() and shutil.disk_usage(MEMORY_DISK).free >= ROOM_BYTES
    return MEMORY_DISK if roomy and os.access(MEMORY_DISK, os.W_OK) else None


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    found = {}
    for name in ("torch", "transformers", "peft", "accelerate"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", choices=list(SIZES), default="7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", choices=list(STEPS), metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--minutes", type=float, default=MOST_SECONDS / 60, help="of the whole pack")
    parser.add_argument(
        "--work", type=Path, help="folder for the random models (40 GB at 7 B); default: in memory, or a temporary one"
    )
    parser.add_argument("-o", "--output", type=Path, help="default: benchmarks/results/gpu-SIZE-DATE.json")
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)  # the one step that this process does
    found = parser.parse_args(given)
    if found.device != "cpu" and not gpu_steps.is_gpu(found.device):
        parser.error(f"--device {found.device}: no CUDA device here; use --size pico --device cpu to try the pack.")
    if found.output is None:
        results = Path(__file__).parent / "results"
        found.output = results / f"gpu-{found.size}-{time.strftime('%Y-%m-%d')}.json"
    return found


def main(given: Sequence[str] | None = None) -> int:
    """Do one step, or run the pack; return 1 if a step failed."""
    asked = arguments(given)
    if asked.step is not None:
        result = STEPS[asked.step].run(Place(SIZES[asked.size], asked.device, asked.work))
        write_json(asked.work / f"{asked.step}.json", result)
        return 0
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=asked.work or room()) as work:
        asked.work = Path(work)
        report = run_pack(asked)
    say(f"{asked.output}: {report['seconds']:.0f} s")
    return 0 if all(step["ok"] for step in report["steps"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
