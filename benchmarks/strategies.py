"""The data strategies compared at equal steps on the bundled model: retention over seeds, with its spread.

    python benchmarks/strategies.py --student PRUNED --steps 60 --seeds 3 -o OUT

PRUNED is a folder of ``flab prune`` of the bundled model. The instructions are the recovery pool, less what overlaps with
the tasks; nothing is drawn from the tasks. The seed decides the drawn answers' rows, the held-out prompts' order and the
order of training. Writes OUT/strategies.json and prints a table.

``on-policy`` is distillation on the student's own answers, right or wrong: half of the steps on what the pruned model
writes, the other half on what the model writes that comes out of them. It is left out where alpha is not 1, because its
answers are no targets for the cross entropy.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from flab import Making, Options, Training, assets, evaluate, make_data, recover
from flab.progress import add, console, say, table_of
from flab.runs.recipe_file import BUNDLED_TASKS as TASKS

ON_POLICY = "on-policy"
STRATEGIES = ("verified-self", "reference", "self", ON_POLICY)


def passed(model: Path, out: Path) -> dict[str, int]:
    """Items passed of each task."""
    report = evaluate(model, TASKS, out, gold=False)
    return {task["name"]: task["summary"]["passed"] for task in report["tasks"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--alpha", type=float, nargs="+", default=[1.0, 0.0])
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    original, before = (
        passed(assets.model_path(), given.output / "original"),
        passed(given.student, given.output / "before"),
    )
    data = {name: given.output / name / "data.jsonl" for name in given.strategies}
    for name, file in data.items():
        file.parent.mkdir(exist_ok=True)
        shared = given.output / "verified-self" / "data.generations.jsonl"
        if shared.is_file() and name in ("reference", "self"):
            shutil.copyfile(shared, file.with_suffix(".generations.jsonl"))
        writer = given.student if name == ON_POLICY else assets.model_path()
        write_answers(writer, file, "self" if name == ON_POLICY else name)
    rows = []
    for alpha in given.alpha:
        for name, file in data.items():
            if name == ON_POLICY and alpha != 1:
                continue
            for seed in range(given.seeds):
                out = given.output / f"{name}-{alpha:g}-{seed}"
                training = Training(alpha=alpha, steps=given.steps, length=256, batch=16, micro_batch=16, seed=seed,
                                    patience=99, evaluations=4)  # fmt: skip
                train = recover_on_policy if name == ON_POLICY else recover_off_policy
                report = train(given.student, file, out, training)
                scores = passed(out, given.output / "eval" / out.name)
                rows.append({"strategy": name, "alpha": alpha, "seed": seed, "passed": scores,
                             "held_out": report["held_out"], "seconds": report["seconds"]})  # fmt: skip
                say(f"{out.name}: {scores}")
                result = {"steps": given.steps, "original": original, "before": before, "rows": rows}
                (given.output / "strategies.json").write_text(json.dumps(result, indent=1) + "\n")
    show(rows, original, before)


def write_answers(writer: Path, file: Path, strategy: str) -> None:
    """Write the training rows of one strategy, with answers by ``writer``."""
    making = Making(strategy=strategy, max_new_tokens=200, batch_size=128)
    make_data(writer, [assets.recovery_path()], file, making, Options(overwrite=True), TASKS)


def recover_off_policy(student: Path, file: Path, out: Path, training: Training) -> dict[str, Any]:
    """Train on rows that do not depend on the student."""
    return recover(student, assets.model_path(), file, out, training, Options(overwrite=True))


def recover_on_policy(student: Path, first: Path, out: Path, training: Training) -> dict[str, Any]:
    """Train half of the steps on the student's first answers, and half on those of the model that comes out."""
    half = replace(training, steps=(training.steps or 0) // 2, evaluations=2)
    between = out.with_name(f"{out.name}-half")
    second = between.with_name(f"{between.name}.jsonl")
    recover_off_policy(student, first, between, half)
    write_answers(between, second, "self")
    return recover_off_policy(between, second, out, half)


def show(rows: list[dict], original: dict[str, int], before: dict[str, int]) -> None:
    """Mean and standard deviation over seeds of what is kept of each task."""
    table = table_of(
        "Kept of the original's passes, mean ± standard deviation over seeds", ["alpha, strategy", *original]
    )
    add(table, "before", *(f"{before[task] / original[task]:.3f}" for task in original))
    for key in dict.fromkeys((row["alpha"], row["strategy"]) for row in rows):
        mine = [row["passed"] for row in rows if (row["alpha"], row["strategy"]) == key]
        kept = {task: [one[task] / original[task] for one in mine] for task in original}
        cells = [f"{statistics.mean(v):.3f} ± {statistics.stdev(v) if len(v) > 1 else 0:.3f}" for v in kept.values()]
        add(table, f"{key[0]:g}, {key[1]}", *cells)
    console.print(table)


if __name__ == "__main__":
    main()
