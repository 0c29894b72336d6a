"""Kill flab at random moments, go on, and compare with a run that nobody stopped.

    python scripts/kill.py --rounds 30 --seed 0 [--only recover eval]

For each command on the bundled model: once undisturbed, which gives the bytes that are wanted and the time it takes; then again
and again with SIGKILL after a random part of that time, each followed by the same command to its end. After every round the
sources must be untouched, the outcome the same bytes, and neither a temporary name nor a process may be left.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flab import assets

PICO = "--tokens 3000 --search-tokens 1000 --finalist-tokens 1000 --general 0 --refit residual".split()
TRAINING = "--steps 6 --length 64 --batch 4 --micro-batch 4 --evaluations 3".split()
TIMED = {
    "run.json",
    "sweep.json",
    "summary.json",
    "report.json",
    "report.html",
    "report.md",
    "README.md",
    "measure.json",
}
TIMES = {"seconds", "finished", "times", "written", "now"}
GRACE_SECONDS = 10.0  # for processes of a killed one to end


@dataclass
class Case:
    """One command: its arguments without the output, and what its output is called."""

    name: str
    arguments: list[str]
    output: str
    after: list[str] = field(default_factory=list)  # cases whose outputs it reads


def cases(model: Path, place: Path, data: Path) -> list[Case]:
    """The commands, in an order in which each finds what it reads."""
    task = f"code:{assets.problems_path()}"
    smaller = place / "prune" / "wanted" / "smaller"
    recipe = place / "recipe.yml"
    recipe.write_text(
        "model: bundled\nprune: {remove: 0.4, tokens: 3000, search_tokens: 1000, finalist_tokens: 1000, general: 0.0, "
        f"refit: residual}}\nevaluate: {{tasks: {assets.outputs_path()}, limit: 4, max_new_tokens: 16}}\n"
    )
    return [
        Case("plan", ["plan", str(model), "--remove", "0.4", *PICO, "--overwrite"], "plan.json"),
        Case("prune", ["prune", str(model), "--remove", "0.4", *PICO, "--overwrite"], "smaller"),
        Case("data", ["data", str(model), "--instructions", str(data), "--limit", "6", "--max-new-tokens", "24", "--overwrite"],
             "data.jsonl"),
        Case("recover", ["recover", str(smaller), "--teacher", str(model), "--data", str(data), *TRAINING, "--overwrite"],
             "recovered", ["prune"]),
        Case("eval", ["eval", str(model), "--task", task, "--limit", "8", "--batch-size", "2", "--max-new-tokens", "32"], "run"),
        Case("run", ["run", str(recipe)], "run"),
        Case("sweep", ["sweep", str(model), "--remove", "0.3", "0.5", *PICO[:4], "--general", "0"], "sweep"),
    ]  # fmt: skip


def command(case: Case, folder: Path) -> list[str]:
    """The whole command line."""
    return [sys.executable, "-m", "flab", *case.arguments, "-o", str(folder / case.output)]


def digest(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder; of files that tell when and how long, of what they tell besides."""
    return {str(path.relative_to(folder)): _sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _sha256(path: Path) -> str:
    data = path.read_bytes()
    if path.suffix == ".json":
        data = json.dumps(_without_times(json.loads(data)), sort_keys=True).replace(str(path.parent), "").encode()
    return hashlib.sha256(data).hexdigest()


def _without_times(value: object) -> object:
    if isinstance(value, dict):
        return {name: _without_times(one) for name, one in value.items() if name not in TIMES}
    return [_without_times(one) for one in value] if isinstance(value, list) else value


def wanted(found: dict[str, str]) -> dict[str, str]:
    """Without the files that hold measured times in their text."""
    return {name: value for name, value in found.items() if Path(name).name not in TIMED}


def left_over(folder: Path) -> list[str]:
    """Temporary names, and folders of stopped work."""
    return [
        str(p) for p in folder.rglob("*") if ".flab-" in p.name or p.name.endswith((".training", ".partial", ".tmp"))
    ]


def processes(group: int) -> list[int]:
    """Processes of a session that are still there; zombies are gone."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(session) == group and state != "Z":
            found.append(int(entry.name))
    return found


def kill_once(case: Case, folder: Path, after: float) -> tuple[bool, list[int]]:
    """Start the command, kill it; returns whether it was still running, and its processes that outlive it."""
    process = subprocess.Popen(
        command(case, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        end = time.monotonic() + GRACE_SECONDS
        while processes(process.pid) and time.monotonic() < end:
            time.sleep(0.1)
        return True, processes(process.pid)
    return False, processes(process.pid)


def run_case(case: Case, place: Path, rounds: int, rng: random.Random, sources: Sequence[Path]) -> dict[str, object]:
    """One command, undisturbed once and then killed so often."""
    ideal = place / case.name / "wanted"
    ideal.mkdir(parents=True)
    start = time.monotonic()
    subprocess.run(command(case, ideal), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    taken = time.monotonic() - start
    before, good = [digest(source) for source in sources], wanted(digest(ideal))
    faults: list[str] = []
    killed = 0
    for number in range(rounds):
        folder = place / case.name / f"round-{number}"
        folder.mkdir()
        moment = rng.uniform(0.02, 0.98) * taken
        was_running, alive = kill_once(case, folder, moment)
        killed += was_running
        done = subprocess.run(command(case, folder), capture_output=True, text=True)
        checks = {
            "goes on": done.returncode == 0,
            "same bytes": wanted(digest(folder)) == good,
            "sources untouched": [digest(source) for source in sources] == before,
            "nothing left": not left_over(folder),
            "no process left": not alive,
        }
        said = f"{case.name} killed after {moment:.1f} s, then {done.stderr[-300:]!r}"
        found = [f"not {name}: {said}" for name, ok in checks.items() if not ok]
        faults += found
        if not found:
            shutil.rmtree(folder)
    return {"command": case.name, "seconds": round(taken, 1), "rounds": rounds, "killed": killed, "faults": faults}


def main() -> int:
    """Kill all commands in turn; exit status 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="kills in all, shared out over the commands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], metavar="COMMAND")
    parser.add_argument("--place", type=Path, required=True, help="a new folder for everything that is written")
    given = parser.parse_args()
    given.place.mkdir(parents=True)
    model, data = given.place / "model", given.place / "rows.jsonl"
    shutil.copytree(assets.model_path(), model)
    rows = assets.recovery_path().read_text(encoding="utf-8").splitlines(keepends=True)
    data.write_text("".join(rows[:120]), encoding="utf-8")
    known = cases(model, given.place, data)
    needed = {name for case in known if case.name in given.only for name in case.after}
    chosen = [case for case in known if not given.only or case.name in {*given.only, *needed}]
    counted = [case for case in chosen if not given.only or case.name in given.only]
    rng, faulty = random.Random(given.seed), False
    for case in chosen:
        share = (
            given.rounds // len(counted) + (counted.index(case) < given.rounds % len(counted)) if case in counted else 0
        )
        result = run_case(case, given.place, share, rng, [model])
        print(json.dumps(result), flush=True)
        faulty = faulty or bool(result["faults"])
    return int(faulty)


if __name__ == "__main__":
    sys.exit(main())
