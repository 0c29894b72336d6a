"""Kill flab at random moments, go on, and compare with a run that nobody stopped.

    python scripts/kill.py --place NEW_FOLDER --rounds 30 --seed 0 [--only recover eval] [--model FOLDER]

Each command runs once undisturbed, which gives the bytes that are wanted and the processor time it takes. Then it is killed
with SIGKILL after a random part of that time, again and again, each time followed by the same command to its end. After every
round the sources must be untouched, the outcome the same bytes, and neither a temporary name nor a process may be left. The
command runs in a fork of this process, which has imported torch already, so that the moments fall into its work; it verifies
what it wrote in the same process for the same reason. Orphans of a killed command come to this process, also those with a
session of their own, so that none is overlooked.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
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
LOOKS_A_SECOND = 25
PR_SET_CHILD_SUBREAPER = 36  # of prctl(2)
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


def adopt_orphans() -> None:
    """Make this process the parent of all whose own parent among its descendants has died."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def start(arguments: Sequence[str], log: Path) -> int:
    """Run a command line in a fork; returns its process id."""
    process = os.fork()
    if process:
        return process
    code = 3
    try:
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


@dataclass
class Process:
    """A line of /proc/PID/stat: the parent, the state, and the ticks of processor time with those of ended children."""

    parent: int
    state: str
    ticks: int


def below(ancestor: int) -> dict[int, Process]:
    """Return the descendants of a process, zombies too, by their ids."""
    known: dict[int, Process] = {}
    for entry in (path for path in Path("/proc").iterdir() if path.name.isdigit()):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        known[int(entry.name)] = Process(int(fields[1]), fields[0], sum(map(int, fields[11:15])))
    found = {ancestor}
    while more := {number for number, one in known.items() if one.parent in found} - found:
        found |= more
    return {number: known[number] for number in found - {ancestor}}


def spent() -> float:
    """Return the seconds of processor time of the command that runs, and of all its processes."""
    return sum(one.ticks for one in below(os.getpid()).values()) / TICKS


def run_to_end(arguments: Sequence[str], log: Path) -> tuple[int, float]:
    """Return the exit code of a command and its processor time."""
    _, status, used = os.wait4(start(arguments, log), 0)
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime


def kill_once(arguments: Sequence[str], log: Path, after: float) -> bool:
    """Start a command and kill it after so much processor time. Returns whether it was still running."""
    process = start(arguments, log)
    while os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if spent() >= after:
            os.kill(process, signal.SIGKILL)
            break
        time.sleep(1 / LOOKS_A_SECOND)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def outliving() -> list[str]:
    """Return the command lines of the processes that are still there after their time to end, and end them."""
    end = time.monotonic() + GRACE_SECONDS
    while (left := living()) and time.monotonic() < end:
        time.sleep(0.1)
    named = []
    for number in left:
        with contextlib.suppress(OSError):
            named.append(f"{number} {Path(f'/proc/{number}/cmdline').read_bytes()[:200]!r}")
            os.kill(number, signal.SIGKILL)
    return named


def living() -> list[int]:
    """Return the ids of all descendants that have not ended."""
    reap()
    return [number for number, one in below(os.getpid()).items() if one.state != "Z"]


def reap() -> None:
    """Collect the orphans that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


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
    faults = [f"undisturbed: processes left: {alive}"] if (alive := outliving()) else []
    killed = 0
    number = 0
    while killed < rounds:
        folder = place / case.name / f"round-{number}"
        folder.mkdir()
        number += 1
        arguments, moment = [*case.arguments, "-o", str(folder / case.output)], rng.uniform(0.02, 0.98) * taken
        # A command that ended before its moment is no kill, and there is another round.
        killed += kill_once(arguments, log, moment)
        alive = outliving()
        last = log.read_text()[-300:]
        code, _ = run_to_end(arguments, log)
        alive += outliving()
        found = wanted(digest(folder))
        differing = sorted(name for name in {*found, *good} if found.get(name) != good.get(name))
        checks = {
            "goes on": code == 0,
            "same bytes": not differing,
            "sources untouched": [digest(source) for source in sources] == before,
            "nothing left": not left_over(folder),
            "no process left": not alive,
        }
        said = f"killed after {moment:.2f} s at {last!r}, then {log.read_text()[-300:]!r}"
        wrong = [f"not {name}: {said}" for name, ok in checks.items() if not ok]
        if wrong:
            faults += [*wrong, f"left {left_over(folder)}, differing {differing}, processes {alive}"]
        else:
            shutil.rmtree(folder)
    return {"command": case.name, "seconds": round(taken, 1), "rounds": number, "killed": killed, "faults": faults}


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
    adopt_orphans()
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
