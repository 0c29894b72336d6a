"""The data strategies compared at equal steps on the bundled model: retention over seeds, with its spread.

    python benchmarks/strategies.py --student PRUNED --steps 60 --seeds 3 -o OUT

PRUNED is a folder of ``flab prune`` of the bundled model. The instructions are the recovery pool, less what overlaps with
the tasks; nothing is drawn from the tasks. The seed decides the drawn answers' rows, the held-out prompts' order and the
order of training. Writes OUT/strategies.json and prints a table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path

from flab import Making, Options, Training, assets, evaluate, make_data, recover
from flab.progress import add, console, say, table_of
from flab.runs.recipe_file import BUNDLED_TASKS as TASKS

STRATEGIES = ("verified-self", "reference", "self")


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
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    original, before = (
        passed(assets.model_path(), given.output / "original"),
        passed(given.student, given.output / "before"),
    )
    data = {name: given.output / name / "data.jsonl" for name in STRATEGIES}
    for name, file in data.items():
        file.parent.mkdir(exist_ok=True)
        shared = given.output / "verified-self" / "data.generations.jsonl"
        if shared.is_file() and name != "verified-self":
            shutil.copyfile(shared, file.with_suffix(".generations.jsonl"))
        making = Making(strategy=name, max_new_tokens=200, batch_size=128)
        make_data(assets.model_path(), [assets.recovery_path()], file, making, Options(overwrite=True), TASKS)
    rows = []
    for alpha in given.alpha:
        for name, file in data.items():
            for seed in range(given.seeds):
                out = given.output / f"{name}-{alpha:g}-{seed}"
                training = Training(alpha=alpha, steps=given.steps, length=256, batch=16, micro_batch=16, seed=seed,
                                    patience=99, evaluations=4)  # fmt: skip
                report = recover(given.student, assets.model_path(), file, out, training, Options(overwrite=True))
                scores = passed(out, given.output / "eval" / out.name)
                rows.append({"strategy": name, "alpha": alpha, "seed": seed, "passed": scores,
                             "held_out": report["held_out"], "seconds": report["seconds"]})  # fmt: skip
                say(f"{out.name}: {scores}")
                result = {"steps": given.steps, "original": original, "before": before, "rows": rows}
                (given.output / "strategies.json").write_text(json.dumps(result, indent=1) + "\n")
    show(rows, original, before)


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
