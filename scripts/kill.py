"""Kill flab at random moments, go on, and compare with a run that nobody stopped.

    python scripts/kill.py --place NEW_FOLDER --rounds 30 --seed 0 [--only recover eval] [--model FOLDER]

Each command runs once undisturbed, which gives the bytes that are wanted and the processor time it takes. Then it is killed
with SIGKILL after a random part of that time, again and again, each time followed by the same command to its end. After every
round the sources must be untouched, the outcome the same bytes, and neither a temporary name nor a process may be left. The
command runs in a fork of this process, which has imported torch already, so that the moments fall into its work; it verifies
what it wrote in the same process for the same reason.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flab import assets

PICO = "--tokens 3000 --search-tokens 1000 --finalist-tokens 1000 --general 0 --refit none".split()
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
MEASURED = {"seconds", "finished", "times", "written", "now", "measured_bytes"}  # fields, and how others end
MEASURED_ENDS = ("_runtime", "_per_second")
CACHES = "torchinductor_"  # folders that torch keeps for its next runs
GRACE_SECONDS = 10.0  # for processes of a killed one to end
LOOKS_A_SECOND = 50
TICKS = os.sysconf("SC_CLK_TCK")


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
        f"model: {model}\nprune: {{remove: 0.4, tokens: 3000, search_tokens: 1000, finalist_tokens: 1000, general: 0.0, "
        f"calibration: {data}, refit: none}}\nevaluate: {{tasks: {assets.outputs_path()}, limit: 4, max_new_tokens: 16}}\n"
    )
    planning = [str(model), "--calibration", str(data), *PICO]
    return [
        Case("plan", ["plan", *planning, "--remove", "0.4", "--overwrite"], "plan.json"),
        Case("prune", ["prune", *planning, "--remove", "0.4", "--overwrite"], "smaller"),
        Case("data", ["data", str(model), "--instructions", str(data), "--limit", "6", "--max-new-tokens", "24", "--overwrite"],
             "data.jsonl"),
        Case("recover", ["recover", str(smaller), "--teacher", str(model), "--data", str(data), *TRAINING, "--overwrite"],
             "recovered", ["prune"]),
        Case("eval", ["eval", str(model), "--task", task, "--limit", "8", "--batch-size", "2", "--max-new-tokens", "32"], "run"),
        Case("run", ["run", str(recipe)], "run"),
        Case("sweep", ["sweep", *planning[:3], *PICO[:4], *PICO[6:], "--remove", "0.3", "0.5"], "sweep"),
    ]  # fmt: skip


# --- running and killing ---


def warm_up() -> None:
    """Import what the commands import, once; let them verify in their own process."""
    import flab.pruning.pipeline
    import flab.recovery.train
    import flab.runs.report.curve
    import flab.runs.stages
    import flab.runs.sweep
    from flab.pruning.verify import verify

    for module in (flab.pruning.pipeline, flab.recovery.train):
        module.check = lambda folder, against: verify(Path(folder), Path(against))


def start(arguments: Sequence[str], log: Path) -> int:
    """Run a command line in a fork with a session of its own; returns its process id."""
    process = os.fork()
    if process:
        return process
    code = 3
    try:
        os.setsid()
        output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["flab", *arguments]
        from flab.cli.app import main as flab

        flab()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def spent(process: int) -> float:
    """Seconds of processor time of a process, and of its children that have ended."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS


def run_to_end(arguments: Sequence[str], log: Path) -> tuple[int, float]:
    """The exit code of a command and its processor time."""
    _, status, used = os.wait4(start(arguments, log), 0)
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime


def kill_once(arguments: Sequence[str], log: Path, after: float) -> tuple[bool, list[int]]:
    """Start a command and kill it; returns whether it was still running, and its processes that outlive it."""
    process = start(arguments, log)
    while os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if spent(process) >= after:
            os.kill(process, signal.SIGKILL)
            break
        time.sleep(1 / LOOKS_A_SECOND)
    _, status = os.waitpid(process, 0)
    end = time.monotonic() + GRACE_SECONDS
    while processes(process) and time.monotonic() < end:
        time.sleep(0.1)
    return os.waitstatus_to_exitcode(status) == -signal.SIGKILL, processes(process)


def processes(session: int) -> list[int]:
    """Processes of a session that are still there; zombies are gone."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            state, _, _, theirs = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(theirs) == session and state != "Z":
            found.append(int(entry.name))
    return found


# --- comparing ---


def digest(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder; of JSON without what was measured and without the folder's own name."""
    return {
        str(path.relative_to(folder)): _sha256(path, folder) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def _sha256(path: Path, folder: Path) -> str:
    data = path.read_bytes()
    if path.suffix == ".json":
        data = json.dumps(_without_measured(json.loads(data)), sort_keys=True).replace(str(folder), "").encode()
    return hashlib.sha256(data).hexdigest()


def _without_measured(value: object) -> object:
    if isinstance(value, dict):
        named = {name: one for name, one in value.items() if name not in MEASURED and not name.endswith(MEASURED_ENDS)}
        return {name: _without_measured(one) for name, one in named.items()}
    return [_without_measured(one) for one in value] if isinstance(value, list) else value


def wanted(found: dict[str, str]) -> dict[str, str]:
    """Without the files that hold measured times in their text."""
    return {name: value for name, value in found.items() if Path(name).name not in TIMED}


def left_over(folder: Path) -> list[str]:
    """Temporary names, and folders of stopped work, below the folder and in the folder for temporary files."""
    ends = (".training", ".partial", ".tmp", ".old", ".planning")
    here = [path for path in folder.rglob("*") if ".flab-" in path.name or path.name.endswith(ends)]
    there = [path for path in Path(tempfile.gettempdir()).iterdir() if not path.name.startswith(CACHES)]
    return list(map(str, [*here, *there]))


def run_case(case: Case, place: Path, rounds: int, rng: random.Random, sources: Sequence[Path]) -> dict[str, object]:
    """One command, undisturbed once and then killed so often."""
    before = [digest(source) for source in sources]
    ideal, log = place / case.name / "wanted", place / f"{case.name}.log"
    ideal.mkdir(parents=True)
    code, taken = run_to_end([*case.arguments, "-o", str(ideal / case.output)], log)
    if code:
        return {"command": case.name, "faults": [f"undisturbed: exit code {code}: {log.read_text()[-300:]!r}"]}
    good = wanted(digest(ideal))
    faults: list[str] = []
    killed = 0
    for number in range(rounds):
        folder = place / case.name / f"round-{number}"
        folder.mkdir()
        arguments, moment = [*case.arguments, "-o", str(folder / case.output)], rng.uniform(0.02, 0.98) * taken
        was_running, alive = kill_once(arguments, log, moment)
        killed += was_running
        code, _ = run_to_end(arguments, log)
        found = wanted(digest(folder))
        differing = sorted(name for name in {*found, *good} if found.get(name) != good.get(name))
        checks = {
            "goes on": code == 0,
            "same bytes": not differing,
            "sources untouched": [digest(source) for source in sources] == before,
            "nothing left": not left_over(folder),
            "no process left": not alive,
        }
        said = f"killed after {moment:.2f} s, then {log.read_text()[-300:]!r}, left {left_over(folder)}, differing {differing}"
        wrong = [f"not {name}: {said}" for name, ok in checks.items() if not ok]
        faults += wrong
        if not wrong:
            shutil.rmtree(folder)
    return {"command": case.name, "seconds": round(taken, 1), "rounds": rounds, "killed": killed, "faults": faults}


def main() -> int:
    """Kill all commands in turn; exit status 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="kills in all, shared out over the commands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], metavar="COMMAND")
    parser.add_argument("--place", type=Path, required=True, help="a new folder for everything that is written")
    parser.add_argument("--model", type=Path, default=assets.model_path(), help="default: the bundled model")
    parser.add_argument("--rows", type=Path, default=assets.recovery_path(), help="rows to calibrate and train on")
    given = parser.parse_args()
    given.place.mkdir(parents=True)
    place = given.place.resolve()
    model, data, temporary = place / "model", place / "rows.jsonl", place / "temporary"
    shutil.copytree(given.model, model)
    rows = given.rows.read_text(encoding="utf-8").splitlines(keepends=True)
    data.write_text("".join(rows[:120]), encoding="utf-8")
    temporary.mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads do not survive a fork
    warm_up()
    known = cases(model, place, data)
    needed = {name for case in known if case.name in given.only for name in case.after}
    chosen = [case for case in known if not given.only or case.name in {*given.only, *needed}]
    counted = [case for case in chosen if not given.only or case.name in given.only]
    rng, faulty = random.Random(given.seed), False
    for case in chosen:
        share = (
            given.rounds // len(counted) + (counted.index(case) < given.rounds % len(counted)) if case in counted else 0
        )
        result = run_case(case, place, share, rng, [model, data])
        print(json.dumps(result), flush=True)
        faulty = faulty or bool(result["faults"])
    return int(faulty)


if __name__ == "__main__":
    sys.exit(main())
